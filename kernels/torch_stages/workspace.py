"""What the stages need beside their inputs."""

from __future__ import annotations

from torch import Tensor

from ..counts import routed_counts
from ..numerics import compute_dtype
from ..settings import INT8, Settings


def key_bytes(k: Tensor, tokens: int, settings: Settings) -> int:
    """Bytes for one head of ``k`` with ``tokens`` video keys: sorted keys and values, a float copy of each."""
    of_key = 1 if settings.precision == INT8 else k.itemsize
    return tokens * k.shape[3] * (of_key + k.itemsize + 2 * compute_dtype(k.dtype).itemsize)


def table_bytes(k: Tensor, queries: int, tokens: int, settings: Settings) -> int:
    """Bytes for one head with ``queries`` video queries and ``tokens`` video keys: the probe's tables, int8 queries."""
    groups, keys = routed_counts(tokens, settings, queries)
    wide = compute_dtype(k.dtype).itemsize
    return 4 * groups * keys * wide + (queries * (k.shape[3] + wide) if settings.precision == INT8 else 0)
