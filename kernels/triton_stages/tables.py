"""Sizes of the tables that a kernel holds of all clusters."""

import torch

# Of a program; warps of AMD's data centre GPUs are twice as wide.
MOST_WARPS = 16 if torch.version.hip else 32


def table_size(count: int) -> int:
    """Logarithm of a table for ``count`` clusters: one size for all usual counts, so that a new length compiles nothing."""
    return max(10, (count - 1).bit_length())


def table_warps(log_count: int) -> int:
    """Warps that hold tables of ``2 ** log_count`` clusters in registers."""
    return max(4, min(MOST_WARPS, 1 << log_count >> 7))
