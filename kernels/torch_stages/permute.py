"""Keys and values into cluster order. Queries and the output are never permuted."""

from __future__ import annotations

from torch import Tensor

from ..types import Clusters, SortedKeys
from .cluster import gather_rows


def permute(keys: Tensor, values: Tensor, clusters: Clusters) -> SortedKeys:
    """Sort keys and values ``[B, H, N, D]`` (any strides) by cluster; the values inherit the keys' labels."""
    return SortedKeys(gather_rows(keys, clusters.order), gather_rows(values, clusters.order), clusters)
