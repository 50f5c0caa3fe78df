"""k-means of keys and queries, warm-started from the previous denoising step."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import compute_dtype
from ..types import Clusters
from .chunks import row_slices


def cluster(
    tokens: Tensor,
    count: int,
    iterations: int,
    centroids: Tensor | None = None,
    labels: Tensor | None = None,
    metric: Tensor | None = None,
    candidates: int = 0,
) -> Clusters:
    """k-means with a fixed number of iterations (Lloyd's algorithm).

    Deterministic: the first centroids are tokens at a stride near the golden section of the sequence, sums run in
    token order, and ties go to the lower cluster.

    Args:
        tokens: ``[B, H, N, D]``, any strides.
        count: clusters, at most N.
        iterations: assignments, each followed by an update of the means, so that centroids are exact means.
        centroids: ``[B, H, count, D]`` of any dtype to start from; None samples tokens.
        labels: integer ``[B, H, N]``, the cluster of each token so far, or None.
        metric: symmetric ``[B, H, D, D]``; the squared distance of x from c is ``(x - c)^T metric (x - c)``. None is Euclidean.
        candidates: a token that has a cluster is compared with the centroids nearest to that cluster's, so many of them; 0
            compares it with all.
    """
    if centroids is None:
        centroids = tokens[:, :, sampled_positions(tokens.shape[2], count, tokens.device)]
    centroids = finite(centroids.to(compute_dtype(tokens.dtype)))
    for _ in range(iterations):
        near = _near(centroids, metric, candidates) if 0 < candidates < count and labels is not None else None
        labels = _nearest(tokens, centroids, metric, labels, near)
        clusters = cluster_from_labels(tokens, labels, centroids)
        centroids = clusters.centroids
    return clusters


def cluster_from_labels(tokens: Tensor, labels: Tensor, previous: Tensor) -> Clusters:
    """The clusters that ``labels`` (integer ``[B, H, N]``) describe; empty ones take the ``previous`` centroid.

    So does a mean that is not finite, element by element: one token without a number must not spoil the others of its cluster,
    nor the calls that start from these centroids.
    """
    labels = labels.long()
    sizes = labels.new_zeros((*labels.shape[:2], previous.shape[2])).scatter_add_(-1, labels, torch.ones_like(labels))
    return cluster_as(tokens, Clusters(labels, previous, sizes, labels.argsort(dim=-1, stable=True)))


def cluster_as(tokens: Tensor, clusters: Clusters) -> Clusters:
    """The partition of ``clusters`` with ``tokens`` ``[B, H, N, D]`` in the places of those that it was found for.

    A cluster without members, or whose mean is not finite, takes the centroid of ``clusters``.
    """
    previous = finite(clusters.centroids.to(compute_dtype(tokens.dtype)))
    sums = segment_sum(gather_rows(tokens, clusters.order).to(previous.dtype), clusters.sizes)
    means = sums / clusters.sizes.clamp(min=1)[..., None]
    centroids = torch.where((clusters.sizes > 0)[..., None] & means.isfinite(), means, previous)
    return clusters.with_centroids(centroids)


def split(clusters: Clusters, tokens: Tensor, largest: int, count: int) -> Clusters:
    """The same clusters with those of more than ``largest`` tokens cut into pieces, each token staying at its place in the order.

    Args:
        clusters: of ``tokens`` ``[B, H, N, D]``.
        largest: tokens of a piece; the last one of a cluster has what is left.
        count: clusters of the result, at least C + N // largest. Empty ones come last.
    """
    ends = (-(-clusters.sizes // largest)).cumsum(-1)
    number = torch.arange(count, device=tokens.device).expand(*ends.shape[:2], -1).contiguous()
    owners = torch.searchsorted(ends, number, right=True)
    pieces = number - F.pad(ends, (1, 0)).gather(-1, owners)
    starts = (clusters.offsets.gather(-1, owners) + largest * pieces).clamp(max=tokens.shape[2])
    rows = torch.arange(tokens.shape[2], device=tokens.device).expand(*ends.shape[:2], -1).contiguous()
    by_row = torch.searchsorted(starts, rows, right=True) - 1
    labels = torch.empty_like(by_row).scatter_(-1, clusters.order.long(), by_row)
    return cluster_from_labels(tokens, labels, gather_rows(clusters.centroids, owners.clamp(max=ends.shape[-1] - 1)))


def finite(centroids: Tensor) -> Tensor:
    """``centroids`` with zeros for what is not finite."""
    return torch.where(centroids.isfinite(), centroids, 0)


def segment_sum(rows: Tensor, sizes: Tensor) -> Tensor:
    """Sums of consecutive runs: ``[B, H, N, D]`` and run lengths ``[B, H, C]`` to ``[B, H, C, D]``, in row order."""
    return torch.segment_reduce(rows, "sum", lengths=sizes, axis=2, unsafe=True)


def gather_rows(tokens: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``[B, H, N, D]`` at ``positions`` ``[B, H, M]`` as contiguous ``[B, H, M, D]``."""
    # An expanded index, because take_along_dim would write out eight bytes for every element.
    return tokens.gather(2, positions[..., None].expand(*positions.shape, tokens.shape[-1]))


def _near(centroids: Tensor, metric: Tensor | None, candidates: int) -> Tensor:
    """Int64 ``[B, H, C, candidates]``, ascending: the centroids nearest to each, itself among them."""
    scaled, bias = _points(centroids, metric)
    return (centroids @ scaled.mT - bias).topk(candidates, sorted=False).indices.sort(dim=-1).values


def _points(centroids: Tensor, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """``p`` ``[B, H, C, D]`` and ``b`` ``[B, H, 1, C]`` such that the centroid nearest to x has the largest ``x . p - b``."""
    # |x - c|^2 without |x|^2, and with c relative to the mean centroid m: an offset common to all tokens, which
    # keys often have, must not drown the differences. argmax of xS(c - m) - (c - m)S(c - m) / 2 - mS(c - m).
    mean = centroids.mean(dim=2, keepdim=True)
    relative = centroids - mean
    scaled = relative if metric is None else relative @ metric
    return scaled, (scaled * (relative / 2 + mean)).sum(-1)[:, :, None]


def _nearest(tokens: Tensor, centroids: Tensor, metric: Tensor | None, last: Tensor | None = None, near: Tensor | None = None) -> Tensor:
    """Label of the nearest centroid, with ``near`` among those that are near to the ``last`` one."""
    scaled, bias = _points(centroids, metric)
    labels = tokens.new_empty(tokens.shape[:3], dtype=torch.int64)
    row_elements = tokens.shape[0] * tokens.shape[1] * max(centroids.shape[2], tokens.shape[3])
    for rows in row_slices(tokens.shape[2], row_elements, tokens.device):
        scores = tokens[:, :, rows].to(scaled.dtype) @ scaled.mT - bias
        if near is None:
            labels[:, :, rows] = scores.argmax(-1)
        else:
            allowed = gather_rows(near, last[:, :, rows].long())
            labels[:, :, rows] = allowed.gather(-1, scores.gather(-1, allowed).argmax(-1, keepdim=True)).squeeze(-1)
    return labels


def sampled_positions(tokens: int, count: int, device: torch.device) -> Tensor:
    """``count`` distinct positions spread evenly at every scale, so that no row of a frame is sampled twice in a row."""
    stride = max(1, round(tokens * (math.sqrt(5) - 1) / 2))
    while math.gcd(stride, tokens) != 1:
        stride += 1
    return torch.arange(count, device=device) * stride % tokens
