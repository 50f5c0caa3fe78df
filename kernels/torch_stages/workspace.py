"""What the stages need beside their inputs."""

from __future__ import annotations

from torch import Tensor

from ..counts import routed_counts
from ..numerics import compute_dtype
from ..settings import Settings


def key_bytes(k: Tensor, tokens: int) -> int:
    """Bytes for one head of ``k`` with ``tokens`` video keys: sorted keys and values, a float copy of each."""
    return tokens * k.shape[3] * 2 * (k.itemsize + compute_dtype(k.dtype).itemsize)


def table_bytes(k: Tensor, queries: int, tokens: int, settings: Settings) -> int:
    """Bytes for one head with ``queries`` video queries and ``tokens`` video keys: the probe's tables."""
    groups, keys = routed_counts(tokens, settings, queries)
    return 4 * groups * keys * compute_dtype(k.dtype).itemsize
