"""Splitting work so that no temporary grows with the square of the sequence."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Elements of one temporary: small enough to stay in a CPU's cache, large enough to fill a GPU.
WORKSPACE_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 24}


def row_slices(rows: int, row_elements: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover ``rows`` rows, each of at most the workspace of the device, and at least one row."""
    step = max(1, WORKSPACE_ELEMENTS[device.type] // max(1, row_elements))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
