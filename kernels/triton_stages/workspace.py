"""What the stages need beside their inputs."""

from __future__ import annotations

from torch import Tensor

from ..counts import routed_counts
from ..settings import Settings
from .route import most_entries


def working_bytes(q: Tensor, tokens: int, settings: Settings) -> int:
    """Bytes for one head of ``q`` with ``tokens`` video tokens.

    Sorted keys and values, their order and products, the float32 tables of the probe and the routing, the lists of exact rows,
    and each group's own centroids.
    """
    queries, keys = routed_counts(tokens, settings)
    dim = q.shape[3]
    sorted_keys = tokens * (2 * dim * q.itemsize + 40)
    tables = queries * keys * (8 * 4 + 1)
    lists = 4 * queries * most_entries(tokens, keys, settings)
    centroids = queries * keys * dim * q.itemsize if settings.weights_centroids else 0
    return sorted_keys + tables + lists + centroids
