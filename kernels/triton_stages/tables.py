"""Sizes of the tables that a kernel holds of all clusters."""


def table_size(count: int) -> int:
    """Logarithm of a table for ``count`` clusters: one size for all usual counts, so that a new length compiles nothing."""
    return max(10, (count - 1).bit_length())


def table_warps(log_count: int) -> int:
    """Warps that hold tables of ``2 ** log_count`` clusters in registers."""
    return max(4, min(32, 1 << log_count >> 7))
