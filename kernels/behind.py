"""Sorted rows with some behind the last, because kernels load tiles whole that reach beyond a cluster."""

import torch
from torch import Tensor

# As many as the largest tile of keys has. Those of values are zeros: no weight times them must be anything else.
ROWS_BEHIND = 64


def room_for_sorted(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for ``rows`` ``[B, H, N, D]`` in another order, and for ROWS_BEHIND further ones behind the last."""
    memory = torch.empty(rows.numel() + ROWS_BEHIND * rows.shape[3], dtype=dtype, device=rows.device)
    return memory[: rows.numel()].view(rows.shape)


def followed_by_zeros(rows: Tensor) -> Tensor:
    """A copy of ``rows`` ``[B, H, N, D]`` with ROWS_BEHIND rows of zeros behind the last."""
    room = room_for_sorted(rows, rows.dtype)
    rows_behind(room).zero_()
    return room.copy_(rows)


def rows_behind(rows: Tensor) -> Tensor:
    """The rows ``[ROWS_BEHIND, D]`` behind sorted ``rows`` ``[B, H, N, D]``."""
    return rows.as_strided((ROWS_BEHIND, rows.shape[3]), (rows.shape[3], 1), rows.storage_offset() + rows.numel())
