"""k-means of keys and queries, warm-started from the previous denoising step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..torch_stages.cluster import sampled_positions
from ..types import Clusters
from .route import select_warps, table_size
from .similarity import number_by_similarity
from .tiles import cut

# Tokens and centroids of one tile of scores. Two blocks of the wide tile fit a multiprocessor of 227 KiB; the others suit 99 KiB.
NEAREST_WIDE = {"ROWS": 256, "COLUMNS": 64, "num_warps": 8, "num_stages": 2}
NEAREST = {"ROWS": 128, "COLUMNS": 64, "num_warps": 4, "num_stages": 2}
NEAREST_FLOAT32 = {"ROWS": 64, "COLUMNS": 32, "num_warps": 4, "num_stages": 2}
# Tokens of one tile that are compared with the candidates of their last cluster.
NEAR = {"ROWS": 64, "num_warps": 4}
# Bytes of the scores from which candidates are chosen.
CHOICE_BYTES = 64 * 2**20
MEANS = {"ROWS": 16, "STAGES": 3, "num_warps": 2}
# Sorting is by radix: half the bits, half the passes.
LARGEST_INT16 = torch.iinfo(torch.int16).max


@triton.jit
def _better(b_first, first_code, b_second, second_code):
    """The larger of two scores and its code, the first where they are equal."""
    m_second = b_second > b_first
    return tl.where(m_second, b_second, b_first), tl.where(m_second, second_code, first_code)


@triton.jit(do_not_specialize=["heads", "tokens", "clusters", "padded"])
def _nearest(
    x, x_batch, x_head, x_row,
    relative, bias, labels,
    heads, tokens, clusters, padded,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The nearest centroid of ROWS tokens of one head: products and a running argmax, ties to the lower label.

    |x - c|^2 without |x|^2: the nearest has the largest x(c - m) - |c - m|^2 / 2 - m(c - m), for any m.
    """
    i_n, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n = i_n.to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
    o_d = tl.arange(0, D)  # [D]
    o_c = tl.arange(0, COLUMNS)  # [K]
    m_n = o_n < tokens  # [R]
    p_x = x + i_h // heads * x_batch + i_h % heads * x_head
    b_x = tl.load(p_x + o_n[:, None] * x_row + o_d, m_n[:, None], other=0.0)  # [R, D]
    p_c = relative + i_h * padded * D + o_c[:, None] * D + o_d  # [K, D]
    p_bias = bias + i_h * padded + o_c  # [K]

    # One thread holds columns 2l, 2l + 1, 2l + 8 and 2l + 9 of every 16: it keeps the best of the four and waits for no other.
    b_best = tl.full([ROWS, COLUMNS // 16, 4], float("-inf"), tl.float32)  # [R, K / 16, 4]
    b_code = tl.zeros([ROWS, COLUMNS // 16, 4], tl.int32)  # [R, K / 16, 4], four times the tile, plus 1 for odd, plus 2 for high
    for i_c in range(0, padded // COLUMNS):
        b_s = tl.dot(b_x, tl.trans(tl.load(p_c))) - tl.load(p_bias)[None, :]  # [R, K]
        b_s = tl.permute(tl.reshape(b_s, [ROWS, COLUMNS // 16, 2, 4, 2]), (0, 1, 3, 2, 4))  # [R, K / 16, 4, 2, 2]
        b_even, b_odd = tl.split(b_s)  # [R, K / 16, 4, 2]
        b_s, b_parity = _better(b_even, 4 * i_c, b_odd, 4 * i_c + 1)  # [R, K / 16, 4, 2]
        b_low, b_high = tl.split(b_s)  # [R, K / 16, 4]
        b_low_code, b_high_code = tl.split(b_parity)  # [R, K / 16, 4]
        b_s, b_new = _better(b_low, b_low_code, b_high, b_high_code + 2)  # [R, K / 16, 4]
        b_best, b_code = _better(b_best, b_code, b_s, b_new)
        p_c += COLUMNS * D
        p_bias += COLUMNS

    o_16 = 16 * tl.arange(0, COLUMNS // 16)[None, :, None]  # [1, K / 16, 1]
    o_2 = 2 * tl.arange(0, 4)[None, None, :]  # [1, 1, 4]
    b_label = (b_code >> 2) * COLUMNS + o_16 + (b_code & 2) * 4 + o_2 + (b_code & 1)  # [R, K / 16, 4]
    b_top = tl.max(tl.max(b_best, 2), 1)  # [R]
    b_label = tl.where(b_best == b_top[:, None, None], b_label, clusters - 1)
    tl.store(labels + i_h * tokens + o_n, tl.minimum(tl.min(tl.min(b_label, 2), 1), clusters - 1), m_n)


@triton.jit(do_not_specialize=["clusters"])
def _choose_candidates(scores, candidates, clusters, LOG_C: tl.constexpr, COUNT: tl.constexpr):
    """The COUNT places of the largest scores of one row, ascending; ties to the lower place."""
    i_row = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, 1 << LOG_C)  # [C]
    m_c = o_c < clusters  # [C]
    b_bits = tl.load(scores + i_row * clusters + o_c, m_c, other=0.0).to(tl.int32, bitcast=True)  # [C]
    # As integers that are in the order of the floats.
    b_bits = tl.where(b_bits < 0, b_bits ^ 0x7FFFFFFF, b_bits)  # [C]
    least = -(1 << 31)
    t = tl.where(tl.sum((m_c & (b_bits >= 0)).to(tl.int32), 0) >= COUNT, 0, least)
    for i_bit in tl.static_range(31):
        higher = t | (1 << (30 - i_bit))
        t = tl.where(tl.sum((m_c & (b_bits >= higher)).to(tl.int32), 0) >= COUNT, higher, t)
    b_tied = (m_c & (b_bits == t)).to(tl.int32)  # [C]
    b_above = (m_c & (b_bits > t)).to(tl.int32)  # [C]
    m_tied = (b_tied > 0) & (tl.cumsum(b_tied, 0) <= COUNT - tl.sum(b_above, 0))  # [C]
    m_chosen = (b_above > 0) | m_tied  # [C]
    tl.store(candidates + i_row * COUNT + tl.cumsum(m_chosen.to(tl.int32), 0) - 1, o_c, m_chosen)


@triton.jit(do_not_specialize=["heads", "tokens", "clusters", "tiles"])
def _nearest_candidate(
    x, x_batch, x_head, x_row,
    order, tile_owners, tile_starts, tile_stops,
    candidates, relative, bias, labels,
    heads, tokens, clusters, tiles,
    D: tl.constexpr, ROWS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """The nearest of the candidates of one cluster, for ROWS of its tokens; ties to the lower label. Scores as in ``_nearest``."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_c = tl.load(tile_owners + i_h * tiles + i_tile)
    if i_c >= clusters:
        return
    o_r = tl.load(tile_starts + i_h * tiles + i_tile) + tl.arange(0, ROWS)  # [R], place in the order
    m_r = o_r < tl.load(tile_stops + i_h * tiles + i_tile)  # [R]
    o_d = tl.arange(0, D)  # [D]
    i_token = tl.load(order + i_h * tokens + o_r, m_r, other=0).to(tl.int64)  # [R]
    p_x = x + i_h // heads * x_batch + i_h % heads * x_head
    b_x = tl.load(p_x + i_token[:, None] * x_row + o_d, m_r[:, None], other=0.0)  # [R, D]
    b_candidate = tl.load(candidates + (i_h * clusters + i_c) * CANDIDATES + tl.arange(0, CANDIDATES))  # [K]
    i_candidate = i_h * clusters + b_candidate  # [K]
    b_c = tl.load(relative + i_candidate[:, None] * D + o_d)  # [K, D]
    b_s = tl.dot(b_x, tl.trans(b_c)) - tl.load(bias + i_candidate)[None, :]  # [R, K]
    b_best = tl.where(b_s == tl.max(b_s, 1)[:, None], b_candidate[None, :], clusters - 1)  # [R, K]
    tl.store(labels + i_h * tokens + i_token, tl.min(b_best, 1), m_r)


@triton.jit(do_not_specialize=["heads", "tokens", "clusters"])
def _means(
    x, x_batch, x_head, x_row,
    order, offsets, previous, means,
    heads, tokens, clusters,
    D: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The mean of the members of one cluster of one head, summed in a fixed order; without members the previous centroid."""
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
    tl.store(means + p_mean, tl.where(i_stop > i_start, b_mean, b_previous))


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
        The clusters, labels in int32.
    """
    tokens = readable(tokens)
    warm = centroids is not None
    if not warm:
        centroids = tokens[:, :, sampled_positions(tokens.shape[2], count, tokens.device)]
    near = 0 < candidates < count
    clusters = _as_clusters(labels, centroids) if near and labels is not None else None
    for iteration in range(iterations):
        if not warm and iteration == iterations - 1:
            centroids = number_by_similarity(centroids)
        points = _points(tokens, centroids, metric)
        if near and clusters is not None:
            labels = _nearest_candidates(tokens, points, clusters, candidates)
        else:
            labels = _nearest_labels(tokens, points)
        clusters = cluster_from_labels(tokens, labels, centroids)
        centroids = clusters.centroids
    return clusters


def cluster_from_labels(tokens: Tensor, labels: Tensor, previous: Tensor) -> Clusters:
    """The clusters that ``labels`` (integer ``[B, H, N]``) describe; empty ones take the ``previous`` centroid."""
    order, offsets = _sort(labels, previous.shape[2])
    return Clusters(labels, _cluster_means(readable(tokens), order, offsets, previous), offsets.diff(dim=-1), order)


def _as_clusters(labels: Tensor, centroids: Tensor) -> Clusters:
    """Clusters of ``labels`` with the centroids that they had."""
    order, offsets = _sort(labels, centroids.shape[2])
    return Clusters(labels, centroids, offsets.diff(dim=-1), order)


def readable(tokens: Tensor) -> Tensor:
    """``tokens``, copied only when the elements of a row are apart."""
    return tokens if tokens.stride(-1) == 1 else tokens.contiguous()


def _nearest_tiles(tokens: Tensor) -> dict[str, int]:
    if tokens.dtype == torch.float32:
        return NEAREST_FLOAT32
    nvidia = tokens.is_cuda and torch.version.hip is None
    return NEAREST_WIDE if nvidia and torch.cuda.get_device_capability(tokens.device)[0] in (9, 10) else NEAREST


@dataclass(frozen=True)
class _Points:
    """Centroids as the kernels want them: the nearest one of x has the largest ``x . relative - bias``.

    Attributes:
        relative: contiguous ``[B, H, C, D]`` in the dtype of the tokens.
        bias: contiguous float32 ``[B, H, C]``.
    """

    relative: Tensor
    bias: Tensor


def _points(tokens: Tensor, centroids: Tensor, metric: Tensor | None) -> _Points:
    # Relative to the mean centroid: an offset common to all tokens, which keys often have, must not drown the differences.
    mean = centroids.mean(dim=2, keepdim=True, dtype=torch.float32)
    relative = centroids - mean
    scaled = (relative if metric is None else relative @ metric).to(tokens.dtype).contiguous()
    # From the rounded values, so that scores are distances to one definite point.
    return _Points(scaled, (scaled.float() * (relative / 2 + mean)).sum(-1).contiguous())


def _nearest_labels(tokens: Tensor, points: _Points) -> Tensor:
    """Int32 ``[B, H, N]``: the nearest centroid of every token."""
    batch, heads, length, dim = tokens.shape
    count = points.bias.shape[2]
    tiles = _nearest_tiles(tokens)
    padding = -count % tiles["COLUMNS"]
    labels = tokens.new_empty(batch, heads, length, dtype=torch.int32)
    _nearest[(triton.cdiv(length, tiles["ROWS"]), batch * heads)](
        tokens, *tokens.stride()[:3],
        F.pad(points.relative, (0, 0, 0, padding)), F.pad(points.bias, (0, padding), value=torch.inf), labels,
        heads, length, count, count + padding,
        D=dim, **tiles,
    )  # fmt: skip
    return labels


def _nearest_candidates(tokens: Tensor, points: _Points, clusters: Clusters, candidates: int) -> Tensor:
    """Int32 ``[B, H, N]``: the nearest of the centroids that are nearest to each token's last one."""
    batch, heads, length, dim = tokens.shape
    near = _candidates(clusters, points, candidates)
    rows = cut(clusters, NEAR["ROWS"])
    labels = tokens.new_empty(batch, heads, length, dtype=torch.int32)
    _nearest_candidate[(rows.owners.shape[-1], batch * heads)](
        tokens, *tokens.stride()[:3],
        clusters.order, rows.owners, rows.starts, rows.stops,
        near, points.relative, points.bias, labels,
        heads, length, points.bias.shape[2], rows.owners.shape[-1],
        D=dim, CANDIDATES=candidates, **NEAR,
    )  # fmt: skip
    return labels


def _candidates(clusters: Clusters, points: _Points, candidates: int) -> Tensor:
    """Int32 ``[B, H, C, candidates]``, ascending: the centroids nearest to each of the last ones."""
    last, relative, bias = (tensor.flatten(0, 1) for tensor in (clusters.centroids, points.relative, points.bias))
    count, size = bias.shape[-1], table_size(bias.shape[-1])
    near = torch.empty(len(bias), count, candidates, dtype=torch.int32, device=bias.device)
    # Tables of all pairs of centroids, for as many heads at once as are small beside the inputs.
    at_once = max(1, CHOICE_BYTES // (4 * count**2))
    for some in map(slice, range(0, len(bias), at_once), range(at_once, len(bias) + at_once, at_once)):
        scores = last[some].float() @ relative[some].float().mT
        scores -= bias[some, None]
        _choose_candidates[(scores[..., 0].numel(),)](
            scores, near[some], count, LOG_C=size, COUNT=candidates, num_warps=max(2, select_warps(size) // 4)
        )
    return near.unflatten(0, clusters.sizes.shape[:2])


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
