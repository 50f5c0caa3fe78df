"""What stands for a key cluster where it is not computed exactly."""

from __future__ import annotations

from ..types import SortedKeys, Summaries
from .chunks import row_slices
from .cluster import segment_sum


def summarize(sorted_keys: SortedKeys) -> Summaries:
    """Mean key and value of every cluster, log sizes, and the squared norm of each value."""
    clusters, values = sorted_keys.clusters, sorted_keys.values
    dtype = clusters.centroids.dtype
    sizes = clusters.sizes
    value_means = segment_sum(values.to(dtype), sizes) / sizes.clamp(min=1)[..., None]
    value_norms = values.new_empty(values.shape[:3], dtype=dtype)
    for rows in row_slices(values.shape[2], values.shape[0] * values.shape[1] * values.shape[3], values.device):
        value_norms[:, :, rows] = values[:, :, rows].to(dtype).square().sum(-1)
    return Summaries(
        key_means=clusters.centroids,
        value_means=value_means,
        log_sizes=sizes.to(dtype).log(),
        value_norms=value_norms,
    )
