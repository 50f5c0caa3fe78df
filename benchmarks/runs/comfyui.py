"""A real ComfyUI in this process: started as its main.py starts it, but for the web server."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata

from ..checkout import Checkout


def start(checkout: Checkout, arguments: Sequence[str], cpu: bool) -> None:
    """Import ComfyUI; torch must not have been imported before, because ComfyUI chooses its allocator.

    Weights stay on the GPU once they are there: streaming them from host memory is another matter than attention.

    Args:
        arguments: more of ComfyUI's, such as ``--use-sage-attention``.

    Raises RuntimeError where torch finds no GPU and ``cpu`` does not say to go without.
    """
    # Before the folder that Python was started in: ComfyUI has a nodes.py, and the pack a folder of that name.
    sys.path.insert(0, str(checkout.path))
    words = ["--base-directory", tempfile.mkdtemp(prefix="comfyui_"), "--disable-dynamic-vram"]
    given = sys.argv
    sys.argv = ["main.py", *words, *(["--cpu", "--use-pytorch-cross-attention"] if cpu else []), *arguments]
    logging.basicConfig(level=logging.WARNING, format="ComfyUI: %(message)s")
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401  reads sys.argv
    finally:
        sys.argv = given
    import cuda_malloc  # noqa: F401  tells torch which allocator to take
    import torch

    if not cpu and not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} finds no GPU here; --tiny runs on a CPU")
    import comfy.sample
    import comfy.sd
    from server import PromptServer

    if not hasattr(PromptServer, "instance"):
        PromptServer.instance = None  # nobody is shown what nodes say


def versions(checkout: Checkout) -> dict[str, str]:
    """Columns of the versions that a sampler run depends on, empty for what is not installed."""
    return {"comfyui": checkout.version, "comfy_kitchen": _version("comfy-kitchen")}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
