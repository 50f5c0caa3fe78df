"""k-means of keys and queries, warm-started from the previous denoising step."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..torch_stages.cluster import _sampled_members, _sampled_positions
from ..types import Clusters, QueryGroups
from .similarity import number_by_similarity

# Tokens and centroids of one tile of scores; narrower for float32, which takes twice the shared memory.
NEAREST = {"ROWS": 128, "COLUMNS": 64, "num_warps": 4, "num_stages": 3}
NEAREST_FLOAT32 = {"ROWS": 64, "COLUMNS": 32, "num_warps": 4, "num_stages": 2}
CENTRE = {"ROWS": 32, "num_warps": 4}
MEANS = {"ROWS": 32, "num_warps": 4}
SLOTS = {"ROWS": 64, "num_warps": 4, "num_stages": 2}
REGROUP = {"ROWS": 128, "num_warps": 4}
# Sorting is by radix: half the bits, half the passes.
LARGEST_INT16 = torch.iinfo(torch.int16).max


@triton.jit(do_not_specialize=["clusters", "padded"])
def _centre(
    centroids, mean, relative, bias,
    clusters, padded,
    D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Centroids relative to their mean, rounded to the dtype of the products, and what to subtract from the products.

    |x - c|^2 without |x|^2, and with c relative to the mean centroid m: an offset common to all tokens, which keys often
    have, must not drown the differences. The nearest centroid has the largest x(c - m) - |c - m|^2 / 2 - m(c - m).
    """
    i_c, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_c = i_c * ROWS + tl.arange(0, ROWS)  # [R]
    o_d = tl.arange(0, D)  # [D]
    m_c = o_c < clusters  # [R]
    b_mean = tl.load(mean + i_h * D + o_d)  # [D]
    b_c = tl.load(centroids + (i_h * clusters + o_c)[:, None] * D + o_d, m_c[:, None], other=0.0).to(tl.float32)  # [R, D]
    b_c = tl.where(m_c[:, None], b_c - b_mean, 0.0).to(relative.dtype.element_ty)  # [R, D]
    # From the rounded values, so that scores are distances to one definite point.
    b_r = b_c.to(tl.float32)  # [R, D]
    b_bias = tl.sum(b_r * (0.5 * b_r + b_mean), 1)  # [R]
    m_pad = o_c < padded  # [R]
    tl.store(relative + (i_h * padded + o_c)[:, None] * D + o_d, b_c, m_pad[:, None])
    tl.store(bias + i_h * padded + o_c, tl.where(m_c, b_bias, float("inf")), m_pad)


@triton.jit(do_not_specialize=["heads", "tokens", "clusters", "padded"])
def _nearest(
    x, x_batch, x_head, x_row,
    relative, bias, labels,
    heads, tokens, clusters, padded,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The nearest centroid of ROWS tokens of one head: products and a running argmax, ties to the lower label."""
    i_n, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n = i_n.to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
    o_d = tl.arange(0, D)  # [D]
    o_c = tl.arange(0, COLUMNS)  # [K]
    m_n = o_n < tokens  # [R]
    p_x = x + i_h // heads * x_batch + i_h % heads * x_head
    b_x = tl.load(p_x + o_n[:, None] * x_row + o_d, m_n[:, None], other=0.0)  # [R, D]
    p_c = relative + i_h * padded * D + o_c[:, None] * D + o_d  # [K, D]
    p_bias = bias + i_h * padded + o_c  # [K]

    # The best of every place in the tile over all tiles, for pairs of columns that one thread holds: no thread waits for another.
    b_best = tl.full([ROWS, COLUMNS // 2], float("-inf"), tl.float32)  # [R, K / 2]
    b_code = tl.zeros([ROWS, COLUMNS // 2], tl.int32)  # [R, K / 2], twice the tile, plus one for the odd column
    for i_c in range(0, padded // COLUMNS):
        b_c = tl.load(p_c)  # [K, D]
        b_s = tl.dot(b_x, tl.trans(b_c)) - tl.load(p_bias)[None, :]  # [R, K]
        b_even, b_odd = tl.split(tl.reshape(b_s, [ROWS, COLUMNS // 2, 2]))  # [R, K / 2]
        m_odd = b_odd > b_even  # [R, K / 2]
        b_pair = tl.where(m_odd, b_odd, b_even)  # [R, K / 2]
        m_new = b_pair > b_best  # [R, K / 2]
        b_best = tl.where(m_new, b_pair, b_best)
        b_code = tl.where(m_new, tl.where(m_odd, 2 * i_c + 1, 2 * i_c), b_code)
        p_c += COLUMNS * D
        p_bias += COLUMNS

    o_pair = tl.arange(0, COLUMNS // 2)[None, :]  # [1, K / 2]
    b_label = (b_code >> 1) * COLUMNS + 2 * o_pair + (b_code & 1)  # [R, K / 2]
    b_label = tl.where(b_best == tl.max(b_best, 1)[:, None], b_label, clusters - 1)  # [R, K / 2]
    tl.store(labels + i_h * tokens + o_n, tl.minimum(tl.min(b_label, 1), clusters - 1), m_n)


@triton.jit(do_not_specialize=["heads", "tokens", "clusters"])
def _means(
    x, x_batch, x_head, x_row,
    order, offsets, previous, means,
    heads, tokens, clusters,
    D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The mean of the members of one cluster of one head, summed in a fixed order; without members the previous centroid."""
    i_c, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_start = tl.load(offsets + i_h * (clusters + 1) + i_c)
    i_stop = tl.load(offsets + i_h * (clusters + 1) + i_c + 1)
    o_d = tl.arange(0, D)  # [D]
    p_x = x + i_h // heads * x_batch + i_h % heads * x_head
    p_mean = (i_h * clusters + i_c) * D + o_d  # [D]
    b_sum = tl.zeros([ROWS, D], tl.float32)  # [R, D]
    for i_r in range(i_start, i_stop, ROWS):
        o_r = i_r + tl.arange(0, ROWS)  # [R]
        m_r = o_r < i_stop  # [R]
        i_token = tl.load(order + i_h * tokens + o_r, m_r, other=0).to(tl.int64)  # [R]
        b_sum += tl.load(p_x + i_token[:, None] * x_row + o_d, m_r[:, None], other=0.0).to(tl.float32)
    b_mean = tl.sum(b_sum, 0) / tl.maximum(i_stop - i_start, 1).to(tl.float32)  # [D]
    b_previous = tl.load(previous + p_mean).to(tl.float32)  # [D]
    tl.store(means + p_mean, tl.where(i_stop > i_start, b_mean, b_previous))


@triton.jit(do_not_specialize=["heads", "tokens", "groups", "split"])
def _slots(
    x, x_batch, x_head, x_row,
    order, offsets, centroids, slots, sizes,
    heads, tokens, groups, split,
    D: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The nearest of the ``split`` centroids of one routing group for each of its members, in the group's order."""
    i_g, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_start = tl.load(offsets + i_h * (groups + 1) + i_g)
    i_stop = tl.load(offsets + i_h * (groups + 1) + i_g + 1)
    o_d = tl.arange(0, D)  # [D]
    o_s = tl.arange(0, SLOTS)  # [S]
    m_s = o_s < split  # [S]
    i_probe = (i_h * groups + i_g) * split + o_s  # [S]
    b_c = tl.load(centroids + i_probe[:, None] * D + o_d, m_s[:, None], other=0.0).to(tl.float32)  # [S, D]
    b_mean = tl.sum(b_c, 0) / split  # [D]
    b_c = tl.where(m_s[:, None], b_c - b_mean, 0.0).to(x.dtype.element_ty)  # [S, D]
    b_r = b_c.to(tl.float32)  # [S, D]
    b_bias = tl.where(m_s, tl.sum(b_r * (0.5 * b_r + b_mean), 1), float("inf"))  # [S]
    p_x = x + i_h // heads * x_batch + i_h % heads * x_head
    b_count = tl.zeros([SLOTS], tl.int32)  # [S]
    for i_r in range(i_start, i_stop, ROWS):
        o_r = i_r + tl.arange(0, ROWS)  # [R]
        m_r = o_r < i_stop  # [R]
        i_token = tl.load(order + i_h * tokens + o_r, m_r, other=0).to(tl.int64)  # [R]
        b_x = tl.load(p_x + i_token[:, None] * x_row + o_d, m_r[:, None], other=0.0)  # [R, D]
        b_s = tl.dot(b_x, tl.trans(b_c)) - b_bias[None, :]  # [R, S]
        b_top = b_s == tl.max(b_s, 1)[:, None]  # [R, S]
        b_slot = tl.minimum(tl.min(tl.where(b_top, o_s[None, :], SLOTS), 1), split - 1)  # [R]
        tl.store(slots + i_h * tokens + o_r, b_slot, m_r)
        b_count += tl.sum(((b_slot[:, None] == o_s[None, :]) & m_r[:, None]).to(tl.int32), 0)
    tl.store(sizes + i_probe, b_count, m_s)


@triton.jit(do_not_specialize=["tokens", "groups", "split"])
def _regroup(
    order, offsets, slots, sizes, fine_order, labels,
    tokens, groups, split,
    ROWS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Sort the members of one routing group by slot, stably, and label them."""
    i_g, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_start = tl.load(offsets + i_h * (groups + 1) + i_g)
    i_stop = tl.load(offsets + i_h * (groups + 1) + i_g + 1)
    o_s = tl.arange(0, SLOTS)  # [S]
    b_size = tl.load(sizes + (i_h * groups + i_g) * split + o_s, o_s < split, other=0).to(tl.int32)  # [S]
    b_next = i_start + tl.cumsum(b_size, 0) - b_size  # [S], where the next member of each slot goes
    for i_r in range(i_start, i_stop, ROWS):
        o_r = i_r + tl.arange(0, ROWS)  # [R]
        m_r = o_r < i_stop  # [R]
        i_token = tl.load(order + i_h * tokens + o_r, m_r, other=0)  # [R]
        b_slot = tl.load(slots + i_h * tokens + o_r, m_r, other=0)  # [R]
        b_one = ((b_slot[:, None] == o_s[None, :]) & m_r[:, None]).to(tl.int32)  # [R, S]
        b_row = tl.sum(b_one * (b_next[None, :] + tl.cumsum(b_one, 0) - 1), 1)  # [R]
        tl.store(fine_order + i_h * tokens + b_row, i_token, m_r)
        tl.store(labels + i_h * tokens + i_token, i_g * split + b_slot, m_r)
        b_next += tl.sum(b_one, 0)


def cluster(tokens: Tensor, count: int, iterations: int, centroids: Tensor | None = None) -> Clusters:
    """Euclidean k-means with a fixed number of iterations (Lloyd's algorithm).

    Deterministic: the first centroids are tokens at a stride near the golden section of the sequence, sums run in a fixed
    order, and ties go to the lower cluster. Products are in the dtype of the tokens (tf32 for float32), sums in float32.

    Args:
        tokens: ``[B, H, N, D]``, float16, bfloat16 or float32, any strides; D a power of two, at least 16.
        count: clusters, at most N.
        iterations: assignments, each followed by an update of the means, so that centroids are exact means.
        centroids: ``[B, H, count, D]`` of any dtype to start from; None samples tokens, and numbers the clusters so that
            similar ones are neighbours, because selected neighbours make one run of rows for the attention kernel.

    Returns:
        The clusters, labels in int32.
    """
    tokens = _readable(tokens)
    warm = centroids is not None
    if not warm:
        centroids = tokens[:, :, _sampled_positions(tokens.shape[2], count, tokens.device)]
    for iteration in range(iterations):
        if not warm and iteration == iterations - 1:
            centroids = number_by_similarity(centroids)
        clusters = cluster_from_labels(tokens, _nearest_labels(tokens, centroids), centroids)
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

    A query is compared with the probe centroids of its own routing group only.

    Args:
        queries: ``[B, H, N, D]``, as for :func:`cluster`.
        routing_count: routing groups, at most N.
        split: probe groups per routing group; small routing groups leave some of theirs empty.
        iterations: k-means iterations on each level.
        routing_centroids, probe_centroids: ``[B, H, G, D]`` and ``[B, H, G * split, D]`` to start from; None samples.
    """
    queries = _readable(queries)
    if routing_centroids is None:
        routing_centroids = queries[:, :, _sampled_positions(queries.shape[2], routing_count, queries.device)]
    if split == 1:
        routing = cluster(queries, routing_count, iterations, routing_centroids)
        return QueryGroups(routing, routing.centroids, split)
    if iterations > 1:
        routing_centroids = cluster(queries, routing_count, iterations - 1, routing_centroids).centroids
    # The means of the routing groups follow from those of their parts, so only their members are needed.
    labels = _nearest_labels(queries, routing_centroids)
    order, offsets = _sort(labels, routing_count)
    routing = Clusters(labels, routing_centroids, offsets.diff(dim=-1), order)
    if probe_centroids is None:
        probe_centroids = _sampled_members(queries, routing, split)
    for _ in range(iterations):
        probe = _split_groups(queries, routing, probe_centroids, split)
        probe_centroids = probe.centroids
    return QueryGroups(probe, _merged_means(probe, split, routing_centroids), split)


def cluster_from_labels(tokens: Tensor, labels: Tensor, previous: Tensor) -> Clusters:
    """The clusters that ``labels`` (integer ``[B, H, N]``) describe; empty ones take the ``previous`` centroid."""
    order, offsets = _sort(labels, previous.shape[2])
    return Clusters(labels, _cluster_means(_readable(tokens), order, offsets, previous), offsets.diff(dim=-1), order)


def _readable(tokens: Tensor) -> Tensor:
    """``tokens``, copied only when the elements of a row are apart."""
    return tokens if tokens.stride(-1) == 1 else tokens.contiguous()


def _nearest_labels(tokens: Tensor, centroids: Tensor) -> Tensor:
    """Int32 ``[B, H, N]``: the nearest centroid of every token."""
    batch, heads, length, dim = tokens.shape
    count = centroids.shape[2]
    tiles = NEAREST_FLOAT32 if tokens.dtype == torch.float32 else NEAREST
    padded = triton.cdiv(count, tiles["COLUMNS"]) * tiles["COLUMNS"]
    relative = tokens.new_empty(batch, heads, padded, dim)
    bias = tokens.new_empty(batch, heads, padded, dtype=torch.float32)
    labels = tokens.new_empty(batch, heads, length, dtype=torch.int32)
    mean = centroids.mean(dim=2, dtype=torch.float32)
    _centre[(triton.cdiv(padded, CENTRE["ROWS"]), batch * heads)](
        centroids.contiguous(), mean, relative, bias,
        count, padded,
        D=dim, **CENTRE,
    )  # fmt: skip
    _nearest[(triton.cdiv(length, tiles["ROWS"]), batch * heads)](
        tokens, *tokens.stride()[:3],
        relative, bias, labels,
        heads, length, count, padded,
        D=dim, **tiles,
    )  # fmt: skip
    return labels


def _sort(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions by label, stable, int64 ``[B, H, N]``, and where each label begins among them, int64 ``[B, H, count + 1]``."""
    kind = torch.int16 if count <= LARGEST_INT16 else torch.int32
    ranked, order = labels.to(kind).sort(dim=-1, stable=True)
    bounds = torch.arange(count + 1, dtype=kind, device=labels.device)
    return order, torch.searchsorted(ranked, bounds.expand(*labels.shape[:2], -1).contiguous())


def _cluster_means(tokens: Tensor, order: Tensor, offsets: Tensor, previous: Tensor) -> Tensor:
    """Float32 ``[B, H, C, D]``: the means of ``order[offsets[j]:offsets[j + 1]]``, or the ``previous`` centroids."""
    batch, heads, length, dim = tokens.shape
    means = torch.empty(previous.shape, dtype=torch.float32, device=tokens.device)
    _means[(previous.shape[2], batch * heads)](
        tokens, *tokens.stride()[:3],
        order, offsets, previous.contiguous(), means,
        heads, length, previous.shape[2],
        D=dim, **MEANS,
    )  # fmt: skip
    return means


def _split_groups(queries: Tensor, routing: Clusters, centroids: Tensor, split: int) -> Clusters:
    """One iteration of k-means inside every routing group, from ``centroids`` ``[B, H, G * split, D]``."""
    batch, heads, length, dim = queries.shape
    count, offsets = routing.sizes.shape[-1], routing.offsets
    slots, labels = torch.empty(2, batch, heads, length, dtype=torch.int32, device=queries.device)
    sizes = offsets.new_empty(batch, heads, count * split)
    order = torch.empty_like(routing.order)
    width = max(16, triton.next_power_of_2(split))
    _slots[(count, batch * heads)](
        queries, *queries.stride()[:3],
        routing.order, offsets, centroids.contiguous(), slots, sizes,
        heads, length, count, split,
        D=dim, SLOTS=width, **SLOTS,
    )  # fmt: skip
    _regroup[(count, batch * heads)](
        routing.order, offsets, slots, sizes, order, labels,
        length, count, split,
        SLOTS=width, **REGROUP,
    )  # fmt: skip
    probe = Clusters(labels, centroids, sizes, order)
    return replace(probe, centroids=_cluster_means(queries, order, probe.offsets, centroids))


def _merged_means(probe: Clusters, split: int, previous: Tensor) -> Tensor:
    """Means of the routing groups from those of their parts; empty groups take the ``previous`` centroid."""
    sizes = probe.sizes.unflatten(-1, (-1, split))[..., None]
    total = sizes.sum(-2)
    means = (probe.centroids.unflatten(2, (-1, split)) * (sizes / total.clamp(min=1)[..., None, :])).sum(-2)
    return torch.where(total > 0, means, previous.to(means.dtype))
