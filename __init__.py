"""SVG-EAR sparse attention for ComfyUI."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension that ComfyUI registers; called once, at server start."""
    from .nodes import SVGEARExtension

    return SVGEARExtension()
