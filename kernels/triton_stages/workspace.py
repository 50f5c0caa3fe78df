"""What the stages need beside their inputs."""

from __future__ import annotations

from torch import Tensor

from ..counts import routed_counts
from ..settings import Settings
from .route import most_entries


def key_bytes(k: Tensor, tokens: int) -> int:
    """Bytes for one head of ``k`` with ``tokens`` video keys: sorted keys and values, their order and products."""
    return tokens * (2 * k.shape[3] * k.itemsize + 40)


def table_bytes(k: Tensor, queries: int, tokens: int, settings: Settings) -> int:
    """Bytes for one head with ``queries`` video queries and ``tokens`` video keys.

    The float32 tables of the probe and the routing, the lists of exact rows, and each group's own centroids.
    """
    groups, keys = routed_counts(tokens, settings, queries)
    tables = groups * keys * (8 * 4 + 1)
    lists = 4 * groups * most_entries(tokens, keys, settings)
    centroids = groups * keys * k.shape[3] * k.itemsize if settings.weights_centroids else 0
    return tables + lists + centroids
