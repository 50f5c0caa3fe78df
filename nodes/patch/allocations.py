"""Allocations that ComfyUI's compiler must not record."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch


def unrecorded(device: torch.device) -> AbstractContextManager:
    """Around what is allocated on ``device`` in another order from call to call, or outlives a pass through the model.

    The Comfy Compiler (ComfyUI 0.35 and later) records the allocations of a pass and gives the same memory again in the next. Clusters
    and what is recorded of a run stay longer than that, and a sparse call allocates otherwise than a dense one.
    """
    prefetch = sys.modules.get("comfy.model_prefetch")
    pause, is_on = (getattr(prefetch, name, None) for name in ("pause_malloc_graph", "malloc_graph_enabled"))
    if pause is None or (is_on is not None and not is_on(device)):
        return nullcontext()
    return pause()
