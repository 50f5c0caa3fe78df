"""What stands for a key cluster where it is not computed exactly."""

from __future__ import annotations

import torch

from ..types import SortedKeys, Summaries
from .chunks import row_slices
from .cluster import gather_rows, segment_sum


def summarize(sorted_keys: SortedKeys) -> Summaries:
    """Mean key and value of every cluster, log sizes, and the products of each value that the probe needs."""
    clusters, values = sorted_keys.clusters, sorted_keys.values
    dtype = clusters.centroids.dtype
    sizes = clusters.sizes
    value_means = segment_sum(values.to(dtype), sizes) / sizes.clamp(min=1)[..., None]
    row_labels = clusters.sorted_labels
    value_norms = values.new_empty(values.shape[:3], dtype=dtype)
    value_dots = torch.empty_like(value_norms)
    for rows in row_slices(values.shape[2], values.shape[0] * values.shape[1] * values.shape[3], values.device):
        chunk = values[:, :, rows].to(dtype)
        means = gather_rows(value_means, row_labels[:, :, rows])
        value_norms[:, :, rows] = chunk.square().sum(-1)
        value_dots[:, :, rows] = (chunk * means).sum(-1)
    return Summaries(
        key_means=clusters.centroids,
        value_means=value_means,
        log_sizes=sizes.to(dtype).log(),
        value_norms=value_norms,
        value_dots=value_dots,
    )
