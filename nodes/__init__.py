"""Everything that knows ComfyUI. The submodules without a node in them import without it."""


def __getattr__(name):
    if name != "SVGEARExtension":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .extension import SVGEARExtension

    return SVGEARExtension
