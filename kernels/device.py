"""What a device can run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps

import torch

SUPPORTED_TYPES = ("cpu", "cuda")
# Products of bfloat16 matrices need Ampere or newer.
LEAST_CAPABILITY = (8, 0)


@lru_cache
def unavailable_reason(device: torch.device) -> str | None:
    """Why SVG-EAR cannot run on ``device``, or None when it can. As far as shows without running anything.

    ROCm devices appear as ``cuda`` in torch.
    """
    if device.type not in SUPPORTED_TYPES:
        return f"device type {device.type!r} is not supported (supported: {', '.join(SUPPORTED_TYPES)})"
    if device.type == "cpu":
        return None
    if importlib.util.find_spec("triton") is None:
        package = "triton-windows" if sys.platform == "win32" else "triton"
        return f"Triton is not installed (pip install {package})"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < LEAST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; 8.0 (RTX 30, A100) or newer is needed"
    return None


def on_device(device: torch.device) -> AbstractContextManager:
    """Makes ``device`` the current one, on which Triton launches whatever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def on_its_device(call: Callable) -> Callable:
    """``call`` with the device of its first argument, a tensor, as the current one."""

    @wraps(call)
    def guarded(q, *args, **kwargs):
        with on_device(q.device):
            return call(q, *args, **kwargs)

    return guarded
