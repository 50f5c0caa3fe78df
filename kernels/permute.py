"""Keys and values into cluster order. Queries and the output are never permuted."""

from __future__ import annotations

from torch import Tensor

from .cluster import gather_rows
from .types import Clusters, SortedKeys


def permute(keys: Tensor, values: Tensor, clusters: Clusters) -> SortedKeys:
    """Sort keys and values ``[B, H, N, D]`` (any strides) by cluster; the values inherit the keys' labels."""
    return SortedKeys(gather_rows(keys, clusters.order), gather_rows(values, clusters.order), clusters)
