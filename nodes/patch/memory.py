"""What counts as out of memory."""

from __future__ import annotations

import sys

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether ``error`` says that memory ran out, under any of its names: drivers and allocators have errors of their own.

    ComfyUI is asked first: it also clears what an asynchronous allocator left behind.
    """
    management = sys.modules.get("comfy.model_management")
    if management is not None and hasattr(management, "is_oom") and management.is_oom(error):
        return True
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )
