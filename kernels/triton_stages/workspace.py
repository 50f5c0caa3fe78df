"""What the stages need beside their inputs."""

from __future__ import annotations

from torch import Tensor

from ..counts import routed_counts
from ..settings import INT8, Settings
from .route import most_entries


def key_bytes(k: Tensor, tokens: int, settings: Settings) -> int:
    """Bytes for one head of ``k`` with ``tokens`` video keys: sorted keys and values, their order and products."""
    of_key = 1 if settings.precision == INT8 else k.itemsize
    return tokens * (k.shape[3] * (of_key + k.itemsize) + 40)


def table_bytes(k: Tensor, queries: int, tokens: int, settings: Settings) -> int:
    """Bytes for one head with ``queries`` video queries and ``tokens`` video keys.

    The float32 tables of the probe and the routing, the lists of exact rows, each group's own centroids, and in int8 the
    queries with a scale for each.
    """
    groups, keys = routed_counts(tokens, settings, queries)
    tables = groups * keys * (8 * 4 + 1)
    lists = 4 * groups * most_entries(tokens, keys, settings)
    centroids = groups * keys * k.shape[3] * k.itemsize if settings.weights_centroids else 0
    int8_queries = queries * (k.shape[3] + 4) if settings.precision == INT8 else 0
    return tables + lists + centroids + int8_queries
