"""k-means of keys and queries, warm-started from the previous denoising step."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..strides import readable
from ..torch_stages.cluster import finite, sampled_positions
from ..tuning import launched
from ..types import Clusters
from .launches import Kernel
from .nearest import nearest_candidates, nearest_labels, points
from .similarity import number_by_similarity
from .sort import Sorted, sort_by_label

MEANS = launched(ROWS=16, STAGES=3, num_warps=2)


@Kernel
@triton.jit(do_not_specialize=["heads", "tokens", "clusters"])
def _means(
    x, x_batch, x_head, x_row,
    order, offsets, previous, means, rounded,
    heads, tokens, clusters,
    D: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The mean of the members of one cluster of one head, summed in a fixed order, and rounded; without members the previous centroid.

    So is what is not finite of a mean, or zero where neither is.
    """
    i_c, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_start = tl.load(offsets + i_h * (clusters + 1) + i_c)
    i_stop = tl.load(offsets + i_h * (clusters + 1) + i_c + 1)
    o_d = tl.arange(0, D)  # [D]
    p_x = x + i_h // heads * x_batch + i_h % heads * x_head
    p_mean = (i_h * clusters + i_c) * D + o_d  # [D]
    b_sum = tl.zeros([ROWS, D], tl.float32)  # [R, D]
    for i_r in tl.range(i_start, i_stop, ROWS, num_stages=STAGES):
        o_r = i_r + tl.arange(0, ROWS)  # [R]
        m_r = o_r < i_stop  # [R]
        i_token = tl.load(order + i_h * tokens + o_r, m_r, other=0).to(tl.int64)  # [R]
        b_sum += tl.load(p_x + i_token[:, None] * x_row + o_d, m_r[:, None], other=0.0).to(tl.float32)
    b_mean = tl.sum(b_sum, 0) / tl.maximum(i_stop - i_start, 1).to(tl.float32)  # [D]
    b_previous = tl.load(previous + p_mean).to(tl.float32)  # [D]
    b_previous = tl.where(tl.abs(b_previous) < float("inf"), b_previous, 0.0)  # [D]
    m_mean = (i_stop > i_start) & (tl.abs(b_mean) < float("inf"))  # [D]
    b_mean = tl.where(m_mean, b_mean, b_previous)  # [D]
    tl.store(means + p_mean, b_mean)
    tl.store(rounded + p_mean, b_mean.to(rounded.dtype.element_ty))


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

    Deterministic: the first centroids are tokens at a stride near the golden section of the sequence, sums run in a fixed
    order, and ties go to the lower cluster. Products are in the dtype of the tokens (tf32 for float32), sums in float32.

    Args:
        tokens: ``[B, H, N, D]``, float16, bfloat16 or float32, any strides; D a power of two, at least 16.
        count: clusters, at most N.
        iterations: assignments, each followed by an update of the means, so that centroids are exact means.
        centroids: ``[B, H, count, D]`` of any dtype to start from; None samples tokens, and numbers the clusters so that
            similar ones are neighbours, because selected neighbours make one run of rows for the attention kernel.
        labels: integer ``[B, H, N]``, the cluster of each token so far, or None.
        metric: symmetric ``[B, H, D, D]``; the squared distance of x from c is ``(x - c)^T metric (x - c)``. None is Euclidean.
        candidates: a token that has a cluster is compared with the centroids nearest to that cluster's, so many of them (a
            power of two, at least 16); 0 compares it with all.

    Returns:
        The clusters, labels in as few bytes as they need.
    """
    tokens = readable(tokens)
    warm = centroids is not None
    if not warm:
        centroids = finite(tokens[:, :, sampled_positions(tokens.shape[2], count, tokens.device)])
    near = 0 < candidates < count
    clusters = _clusters(labels, centroids, sort_by_label(labels, count)) if near and labels is not None else None
    for iteration in range(iterations):
        if not warm and iteration == iterations - 1:
            centroids = number_by_similarity(centroids)
        targets = points(tokens, centroids, metric)
        if near and clusters is not None:
            labels = nearest_candidates(tokens, targets, clusters, candidates)
        else:
            labels = nearest_labels(tokens, targets)
        clusters = cluster_from_labels(tokens, labels, centroids)
        centroids = clusters.centroids
    return clusters


def cluster_from_labels(tokens: Tensor, labels: Tensor, previous: Tensor) -> Clusters:
    """The clusters that ``labels`` (integer ``[B, H, N]``) describe; empty ones take the ``previous`` centroid."""
    return cluster_as(tokens, _clusters(labels, previous, sort_by_label(labels, previous.shape[2])))


def cluster_as(tokens: Tensor, clusters: Clusters) -> Clusters:
    """The partition of ``clusters`` with ``tokens`` in the places of those that it was found for. See the torch stage."""
    tokens, previous = readable(tokens), clusters.centroids.contiguous()
    batch, heads, length, dim = tokens.shape
    count = previous.shape[2]
    means = torch.empty(previous.shape, dtype=torch.float32, device=tokens.device)
    rounded = torch.empty(previous.shape, dtype=tokens.dtype, device=tokens.device)
    _means[(count, batch * heads)](
        tokens, *tokens.stride()[:3],
        clusters.order, clusters.offsets, previous, means, rounded,
        heads, length, count,
        D=dim, **MEANS,
    )  # fmt: skip
    return clusters.with_centroids(means, rounded)


def _clusters(labels: Tensor, centroids: Tensor, members: Sorted, rounded: Tensor | None = None) -> Clusters:
    return Clusters(labels, centroids, members.sizes, members.order, rounded).with_offsets(members.offsets)
