"""What stands for a key cluster where it is not computed exactly."""

from __future__ import annotations

from ..types import SortedKeys, Summaries
from .chunks import row_slices
from .cluster import gather_rows, segment_sum


def summarize(sorted_keys: SortedKeys) -> Summaries:
    """Mean key and value of every cluster, log sizes, and products of each value with itself and with the mean."""
    clusters, values = sorted_keys.clusters, sorted_keys.values
    dtype = clusters.centroids.dtype
    sizes = clusters.sizes
    value_means = segment_sum(values.to(dtype), sizes) / sizes.clamp(min=1)[..., None]
    labels = clusters.sorted_labels
    value_norms, value_dots = (values.new_empty(values.shape[:3], dtype=dtype) for _ in range(2))
    for rows in row_slices(values.shape[2], values.shape[0] * values.shape[1] * values.shape[3], values.device):
        some = values[:, :, rows].to(dtype)
        value_norms[:, :, rows] = some.square().sum(-1)
        value_dots[:, :, rows] = (some * gather_rows(value_means, labels[:, :, rows])).sum(-1)
    return Summaries(
        key_means=clusters.centroids,
        value_means=value_means,
        log_sizes=sizes.to(dtype).log(),
        value_norms=value_norms,
        value_dots=value_dots,
    )
