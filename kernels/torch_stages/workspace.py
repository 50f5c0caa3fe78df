"""What the stages need beside their inputs."""

from __future__ import annotations

from torch import Tensor

from ..counts import routed_counts
from ..numerics import compute_dtype
from ..settings import Settings


def working_bytes(q: Tensor, tokens: int, settings: Settings) -> int:
    """Bytes for one head of ``q`` with ``tokens`` video tokens: sorted keys and values, a float copy of each, the probe's tables."""
    queries, keys = routed_counts(tokens, settings)
    wide = compute_dtype(q.dtype).itemsize
    return tokens * q.shape[3] * 2 * (q.itemsize + wide) + 4 * queries * keys * wide
