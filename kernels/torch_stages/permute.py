"""Keys and values into cluster order. Queries and the output are never permuted."""

from __future__ import annotations

from torch import Tensor

from ..behind import followed_by_zeros
from ..types import Clusters, SortedKeys
from .cluster import gather_rows


def permute(keys: Tensor, values: Tensor, clusters: Clusters) -> SortedKeys:
    """Sort keys and values ``[B, H, N, D]`` (any strides) by cluster; the values inherit the keys' labels."""
    sorted_keys, sorted_values = (followed_by_zeros(gather_rows(rows, clusters.order)) for rows in (keys, values))
    return SortedKeys(sorted_keys, sorted_values, clusters)
