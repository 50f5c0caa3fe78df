"""The nearest centroid of every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..counts import label_dtype
from ..numerics import ceil_div
from ..tuning import PRECISE, architecture, launched
from ..types import Clusters
from .launches import Kernel
from .tables import table_size, table_warps
from .tiles import cut, load_tile

# Tokens and centroids of one tile of scores. Two blocks of the wide tile fit a multiprocessor of 227 KiB; the others suit 99 KiB.
NEAREST_WIDE = launched(ROWS=256, COLUMNS=64, num_warps=8, num_stages=2)
NEAREST = launched(ROWS=128, COLUMNS=64, num_warps=4, num_stages=2)
NEAREST_FLOAT32 = launched(ROWS=64, COLUMNS=32, num_warps=4, num_stages=2)
# Tokens of one tile that are compared with the candidates of their last cluster.
NEAR, NEAR_FLOAT32 = launched(ROWS=64, num_warps=4), launched(ROWS=64, num_warps=8)
POINTS = launched(ROWS=16, num_warps=4, num_stages=1)
# Points are padded to whole tiles of any of the above.
PADDED = 64
SCORES = launched(ROWS=64, COLUMNS=64, num_warps=4, num_stages=2)
# Most dimensions of one product of float32 in three parts, which takes registers.
DIMS = 32
# Bytes of the scores from which candidates are chosen.
CHOICE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Points:
    """Centroids as the kernels want them: the nearest one of x has the largest ``x . relative - bias``.

    Attributes:
        relative: ``[B, H, padded, D]`` in the dtype of the tokens, zero behind the last.
        bias: float32 ``[B, H, padded]``, infinite behind the last.
        count: how many there are.
    """

    relative: Tensor
    bias: Tensor
    count: int


@Kernel
@triton.jit(do_not_specialize=["clusters", "padded"])
def _points(
    centroids, metric, relative, bias,
    clusters, padded,
    D: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ROWS centroids of one head relative to their mean, in the ``metric`` if there is one: ``_nearest`` has the formula."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_d = tl.arange(0, D)  # [D]
    p_centroids = centroids + i_h * clusters * D
    # An offset common to all tokens, which keys often have, must not drown the differences.
    b_sum = tl.zeros([ROWS, D], tl.float32)  # [R, D]
    for i_c in range(0, clusters, ROWS):
        o_c = i_c + tl.arange(0, ROWS)[:, None]  # [R, 1]
        b_sum += tl.load(p_centroids + o_c * D + o_d, o_c < clusters, other=0.0).to(tl.float32)
    b_mean = tl.sum(b_sum, 0) / clusters  # [D]

    o_c = i_tile * ROWS + tl.arange(0, ROWS)  # [R]
    m_c = (o_c < clusters)[:, None]  # [R, 1]
    p_c = p_centroids + o_c[:, None] * D  # [R, 1]
    b_c = tl.load(p_c + o_d, m_c, other=0.0).to(tl.float32)  # [R, D]
    b_relative = tl.where(m_c, b_c - b_mean[None, :], 0.0)  # [R, D]
    b_bias = tl.zeros([ROWS], tl.float32)  # [R]
    # Some dimensions at a time: the whole metric in three parts would take more registers than there are.
    for i_k in range(0, D, DIMS):
        o_k = i_k + tl.arange(0, DIMS)  # [K]
        b_some_mean = tl.sum(tl.where(o_d[:, None] == o_k[None, :], b_mean[:, None], 0.0), 0)  # [K]
        b_some = tl.load(p_c + o_k, m_c, other=0.0).to(tl.float32)  # [R, K]
        b_some = tl.where(m_c, b_some - b_some_mean[None, :], 0.0)
        b_scaled = b_some  # [R, K]
        if metric is not None:
            b_metric = tl.load(metric + i_h * D * D + o_d[:, None] * D + o_k)  # [D, K]
            b_scaled = tl.dot(b_relative, b_metric, input_precision=PRECISION)
        b_rounded = b_scaled.to(relative.dtype.element_ty)  # [R, K]
        tl.store(relative + (i_h * padded + o_c)[:, None] * D + o_k, b_rounded)
        # From the rounded values, so that scores are distances to one definite point.
        b_bias += tl.sum(b_rounded.to(tl.float32) * (b_some / 2 + b_some_mean[None, :]), 1)
    tl.store(bias + i_h * padded + o_c, tl.where(o_c < clusters, b_bias, float("inf")))


@triton.jit
def _better(b_first, first_code, b_second, second_code):
    """The larger of two scores and its code, the first where they are equal."""
    m_second = b_second > b_first
    return tl.where(m_second, b_second, b_first), tl.where(m_second, second_code, first_code)


@Kernel
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


@Kernel
@triton.jit(do_not_specialize=["clusters", "padded"])
def _scores(
    last, relative, bias, scores,
    clusters, padded,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIMS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What ROWS of the last centroids of one head score with COLUMNS of the present ones."""
    i_row, i_column, i_h = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_r = i_row * ROWS + tl.arange(0, ROWS)  # [R]
    o_c = i_column * COLUMNS + tl.arange(0, COLUMNS)  # [K]
    m_r = o_r < clusters  # [R]
    b_s = tl.zeros([ROWS, COLUMNS], tl.float32)  # [R, K]
    for i_d in range(0, D, DIMS):
        o_d = i_d + tl.arange(0, DIMS)  # [D]
        b_last = tl.load(last + (i_h * clusters + o_r)[:, None] * D + o_d, m_r[:, None], other=0.0)  # [R, D]
        b_c = tl.load(relative + (i_h * padded + o_c)[:, None] * D + o_d)  # [K, D]
        b_s = tl.dot(b_last, tl.trans(b_c.to(b_last.dtype)), b_s, input_precision=PRECISION)
    b_s -= tl.load(bias + i_h * padded + o_c)[None, :]
    tl.store(scores + (i_h * clusters + o_r)[:, None] * clusters + o_c, b_s, m_r[:, None] & (o_c < clusters)[None, :])


@Kernel
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
    for i_bit in range(31):
        higher = t | (1 << (30 - i_bit))
        t = tl.where(tl.sum((m_c & (b_bits >= higher)).to(tl.int32), 0) >= COUNT, higher, t)
    b_tied = (m_c & (b_bits == t)).to(tl.int32)  # [C]
    b_above = (m_c & (b_bits > t)).to(tl.int32)  # [C]
    m_tied = (b_tied > 0) & (tl.cumsum(b_tied, 0) <= COUNT - tl.sum(b_above, 0))  # [C]
    m_chosen = (b_above > 0) | m_tied  # [C]
    tl.store(candidates + i_row * COUNT + tl.cumsum(m_chosen.to(tl.int32), 0) - 1, o_c, m_chosen)


@Kernel
@triton.jit(do_not_specialize=["heads", "tokens", "clusters", "padded"])
def _nearest_candidate(
    x, x_batch, x_head, x_row,
    order, tiles,
    candidates, relative, bias, labels,
    heads, tokens, clusters, padded,
    D: tl.constexpr, ROWS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """The nearest of the candidates of one cluster, for ROWS of its tokens; ties to the lower label. Scores as in ``_nearest``."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_c, i_start, i_stop = load_tile(tiles + i_h * tl.num_programs(0) * 3, i_tile)
    if i_c >= clusters:
        return
    o_r = i_start + tl.arange(0, ROWS)  # [R], place in the order
    m_r = o_r < i_stop  # [R]
    o_d = tl.arange(0, D)  # [D]
    i_token = tl.load(order + i_h * tokens + o_r, m_r, other=0).to(tl.int64)  # [R]
    p_x = x + i_h // heads * x_batch + i_h % heads * x_head
    b_x = tl.load(p_x + i_token[:, None] * x_row + o_d, m_r[:, None], other=0.0)  # [R, D]
    b_candidate = tl.load(candidates + (i_h * clusters + i_c) * CANDIDATES + tl.arange(0, CANDIDATES))  # [K]
    b_c = tl.load(relative + i_h * padded * D + b_candidate[:, None] * D + o_d)  # [K, D]
    b_s = tl.dot(b_x, tl.trans(b_c)) - tl.load(bias + i_h * padded + b_candidate)[None, :]  # [R, K]
    b_best = tl.where(b_s == tl.max(b_s, 1)[:, None], b_candidate[None, :], clusters - 1)  # [R, K]
    tl.store(labels + i_h * tokens + i_token, tl.min(b_best, 1), m_r)


def points(tokens: Tensor, centroids: Tensor, metric: Tensor | None) -> Points:
    """The ``centroids`` ``[B, H, C, D]`` as points for ``tokens``; see the torch stage for the ``metric``."""
    batch, heads, count, dim = centroids.shape
    padded = ceil_div(count, PADDED) * PADDED
    found = Points(
        relative=tokens.new_empty(batch, heads, padded, dim),
        bias=torch.empty(batch, heads, padded, dtype=torch.float32, device=tokens.device),
        count=count,
    )
    _points[(padded // POINTS["ROWS"], batch * heads)](
        centroids.contiguous(), metric, found.relative, found.bias, count, padded,
        D=dim, DIMS=min(dim, DIMS), PRECISION=PRECISE, **POINTS,
    )  # fmt: skip
    return found


def nearest_labels(tokens: Tensor, points: Points) -> Tensor:
    """``[B, H, N]`` in the dtype of labels: the nearest point of every token."""
    batch, heads, length, dim = tokens.shape
    tiles = _nearest_tiles(tokens)
    labels = torch.empty(batch, heads, length, dtype=label_dtype(points.count), device=tokens.device)
    _nearest[(ceil_div(length, tiles["ROWS"]), batch * heads)](
        tokens, *tokens.stride()[:3],
        points.relative, points.bias, labels,
        heads, length, points.count, points.bias.shape[2],
        D=dim, **tiles,
    )  # fmt: skip
    return labels


def nearest_candidates(tokens: Tensor, points: Points, last: Clusters, candidates: int) -> Tensor:
    """``[B, H, N]`` in the dtype of labels: the nearest of the points that are nearest to each token's ``last`` centroid."""
    batch, heads, length, dim = tokens.shape
    near = _candidates(last.centroids, points, candidates)
    tiles = NEAR_FLOAT32 if tokens.dtype == torch.float32 else NEAR
    rows = cut(last, tiles["ROWS"])
    labels = torch.empty(batch, heads, length, dtype=label_dtype(points.count), device=tokens.device)
    _nearest_candidate[(rows.count, batch * heads)](
        tokens, *tokens.stride()[:3],
        last.order, rows.table,
        near, points.relative, points.bias, labels,
        heads, length, points.count, points.bias.shape[2],
        D=dim, CANDIDATES=candidates, **tiles,
    )  # fmt: skip
    return labels


def _candidates(last: Tensor, points: Points, candidates: int) -> Tensor:
    """Int32 ``[B * H, C, candidates]``, ascending: the points nearest to each of the ``last`` centroids."""
    last, relative, bias = (tensor.flatten(0, 1) for tensor in (last.contiguous(), points.relative, points.bias))
    (heads, padded, dim), count, size = relative.shape, points.count, table_size(points.count)
    near = torch.empty(heads, count, candidates, dtype=torch.int32, device=bias.device)
    # Tables of all pairs of centroids, for as many heads at once as are small beside the inputs.
    at_once = max(1, min(heads, CHOICE_BYTES // (4 * count**2)))
    scores = torch.empty(at_once, count, count, dtype=torch.float32, device=bias.device)
    tiles = (ceil_div(count, SCORES["ROWS"]), ceil_div(count, SCORES["COLUMNS"]))
    for first in range(0, heads, at_once):
        some = slice(first, first + at_once)
        found = near[some]
        _scores[(*tiles, len(found))](
            last[some], relative[some], bias[some], scores, count, padded,
            D=dim, DIMS=min(dim, DIMS), PRECISION=PRECISE, **SCORES,
        )  # fmt: skip
        _choose_candidates[(len(found) * count,)](
            scores, found, count, LOG_C=size, COUNT=candidates, **launched(num_warps=max(2, table_warps(size) // 4))
        )
    return near


def _nearest_tiles(tokens: Tensor) -> dict[str, int]:
    if tokens.dtype == torch.float32:
        return NEAREST_FLOAT32
    return NEAREST_WIDE if architecture(tokens.device) // 10 in (9, 10) else NEAREST
