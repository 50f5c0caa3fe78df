"""k-means of keys and queries, warm-started from the previous denoising step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..numerics import compute_dtype
from ..types import Clusters, QueryGroups
from .chunks import row_slices


def cluster(tokens: Tensor, count: int, iterations: int, centroids: Tensor | None = None) -> Clusters:
    """Euclidean k-means with a fixed number of iterations (Lloyd's algorithm).

    Deterministic: the first centroids are tokens at a stride near the golden section of the sequence, sums run in
    token order, and ties go to the lower cluster.

    Args:
        tokens: ``[B, H, N, D]``, any strides.
        count: clusters, at most N.
        iterations: assignments, each followed by an update of the means, so that centroids are exact means.
        centroids: ``[B, H, count, D]`` of any dtype to start from; None samples tokens.
    """
    if centroids is None:
        centroids = tokens[:, :, _sampled_positions(tokens.shape[2], count, tokens.device)]
    for _ in range(iterations):
        clusters = cluster_from_labels(tokens, _nearest(tokens, centroids), centroids)
        centroids = clusters.centroids
    return clusters


def group_queries(
    queries: Tensor,
    routing_count: int,
    split: int,
    iterations: int,
    routing_centroids: Tensor | None = None,
    probe_centroids: Tensor | None = None,
) -> QueryGroups:
    """Cluster queries into routing groups, then each routing group into ``split`` probe groups, top-down.

    A query is compared with the probe centroids of its own routing group only; this torch version computes the distances
    to all of them and picks those.

    Args:
        queries: ``[B, H, N, D]``, any strides.
        routing_count: routing groups, at most N.
        split: probe groups per routing group; small routing groups leave some of theirs empty.
        iterations: k-means iterations on each level.
        routing_centroids, probe_centroids: ``[B, H, G, D]`` and ``[B, H, G * split, D]`` to start from; None samples.
    """
    routing = cluster(queries, routing_count, iterations, routing_centroids)
    if split == 1:
        return QueryGroups(routing, routing.centroids, split)
    if probe_centroids is None:
        probe_centroids = _sampled_members(queries, routing, split)
    for _ in range(iterations):
        slots = _nearest(queries, probe_centroids, within=routing.labels, split=split)
        probe = cluster_from_labels(queries, routing.labels * split + slots, probe_centroids)
        probe_centroids = probe.centroids
    return QueryGroups(probe, routing.centroids, split)


def cluster_from_labels(tokens: Tensor, labels: Tensor, previous: Tensor) -> Clusters:
    """The clusters that ``labels`` (int64 ``[B, H, N]``) describe; empty ones take the ``previous`` centroid."""
    count, previous = previous.shape[2], previous.to(compute_dtype(tokens.dtype))
    sizes = labels.new_zeros((*labels.shape[:2], count)).scatter_add_(-1, labels, torch.ones_like(labels))
    order = labels.argsort(dim=-1, stable=True)
    sums = segment_sum(gather_rows(tokens, order).to(previous.dtype), sizes)
    centroids = torch.where((sizes > 0)[..., None], sums / sizes.clamp(min=1)[..., None], previous)
    return Clusters(labels, centroids, sizes, order)


def segment_sum(rows: Tensor, sizes: Tensor) -> Tensor:
    """Sums of consecutive runs: ``[B, H, N, D]`` and run lengths ``[B, H, C]`` to ``[B, H, C, D]``, in row order."""
    return torch.segment_reduce(rows, "sum", lengths=sizes, axis=2, unsafe=True)


def gather_rows(tokens: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``[B, H, N, D]`` at ``positions`` ``[B, H, M]`` as contiguous ``[B, H, M, D]``."""
    # An expanded index, because take_along_dim would write out eight bytes for every element.
    return tokens.gather(2, positions[..., None].expand(*positions.shape, tokens.shape[-1]))


def _nearest(tokens: Tensor, centroids: Tensor, within: Tensor | None = None, split: int = 1) -> Tensor:
    """Label of the nearest centroid, or its slot among the ``split`` centroids of the group ``within``."""
    # |x - c|^2 without |x|^2, and with c relative to the mean centroid m: an offset common to all tokens, which
    # keys often have, must not drown the differences. argmax of x(c - m) - |c - m|^2 / 2 - m(c - m).
    centroids = centroids.to(compute_dtype(tokens.dtype))
    mean = centroids.mean(dim=2, keepdim=True)
    relative = centroids - mean
    bias = (relative * (relative / 2 + mean)).sum(-1)[:, :, None]
    labels = tokens.new_empty(tokens.shape[:3], dtype=torch.int64)
    row_elements = tokens.shape[0] * tokens.shape[1] * max(centroids.shape[2], tokens.shape[3])
    for rows in row_slices(tokens.shape[2], row_elements, tokens.device):
        scores = tokens[:, :, rows].to(centroids.dtype) @ relative.transpose(-1, -2) - bias
        if within is not None:
            groups = scores.unflatten(-1, (-1, split))
            scores = torch.take_along_dim(groups, within[:, :, rows, None, None], dim=3).squeeze(3)
        labels[:, :, rows] = scores.argmax(-1)
    return labels


def _sampled_positions(tokens: int, count: int, device: torch.device) -> Tensor:
    """``count`` distinct positions spread evenly at every scale, so that no row of a frame is sampled twice in a row."""
    stride = max(1, round(tokens * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, tokens) != 1:
        stride += 1
    return torch.arange(count, device=device) * stride % tokens


def _sampled_members(queries: Tensor, routing: Clusters, split: int) -> Tensor:
    """Evenly spaced members of every routing group, ``[B, H, G * split, D]``."""
    fractions = (torch.arange(split, device=queries.device) + 0.5) / split
    ranks = (routing.sizes[..., None] * fractions).long() + routing.offsets[..., :-1, None]
    positions = routing.order.gather(-1, ranks.clamp(max=queries.shape[2] - 1).flatten(-2))
    return gather_rows(queries, positions)
