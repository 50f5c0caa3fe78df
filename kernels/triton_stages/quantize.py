"""Keys into cluster order as int8, and queries as int8, so that their products take half the time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..behind import ROWS_BEHIND, room_for_sorted
from ..numerics import LARGEST_INT8, ceil_div, weighed_in
from ..strides import readable
from ..tuning import architecture, launched
from ..types import Clusters, Quantized, SortedKeys
from .int8 import START, ZERO
from .launches import Kernel
from .permute import rows_of

# Head dimensions: fewer than a product of int8 takes at once, or more than the rotation has signs for, are others.
DIMS = (32, 64, 128, 256)
# Programs that share the keys of a head to find what they reach, and rows of a step.
PARTS = 32
RANGES = launched(ROWS=64, STAGES=3, num_warps=8)
# Rows of a step, and steps of a program.
QUANTIZE = launched(ROWS=64, STEPS=4, num_warps=4, num_stages=2)
# Four warps would spill registers on sm_120.
QUANTIZE_SM120 = launched(ROWS=64, STEPS=4, num_warps=8, num_stages=2)
# Products of float32 take twice the shared memory.
RANGES_FLOAT32 = launched(ROWS=32, STAGES=1, num_warps=8)
QUANTIZE_FLOAT32 = launched(ROWS=32, STEPS=8, num_warps=8, num_stages=1)
LARGEST = tl.constexpr(LARGEST_INT8)


@triton.jit
def hadamard(D: tl.constexpr, kind: tl.constexpr):
    """The Walsh-Hadamard matrix [D, D] of ones with signs, D a power of two up to 256."""
    o_d = tl.arange(0, D)  # [D]
    b_common = o_d[:, None] & o_d[None, :]  # [D, D]
    b_common ^= b_common >> 4
    # Bit n of the number says whether n, of four bits, has an odd number of ones.
    return (1 - 2 * ((0x6996 >> (b_common & 15)) & 1)).to(kind)


@triton.jit
def rotate(b_rows, b_hadamard):
    """Rows [R, D] times the matrix, in float32: ``D ** 0.5`` times as long as they were."""
    if b_rows.dtype == tl.float32:
        # In two parts, of which tf32 loses nothing of the first and of the second what is beyond 20 bits.
        b_high = (b_rows.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # [R, D]
        return tl.dot(b_high, b_hadamard, tl.dot(b_rows - b_high, b_hadamard))
    return tl.dot(b_rows, b_hadamard)


@triton.jit
def to_int8(b_rows):
    """Rounded to the nearest integer; larger ones to the largest."""
    b_shifted = tl.minimum(tl.maximum(b_rows, -1.0 * LARGEST), 1.0 * LARGEST) + ZERO
    return (b_shifted.to(tl.int32, bitcast=True) + START).to(tl.int8)


@triton.jit
def inverse_or_zero(b_scale):
    """``1 / b_scale``, zero where that is next to nothing."""
    return tl.where(b_scale > 1.0e-30, 1.0 / b_scale, 0.0)


@triton.jit
def quantize_rows(b_rows, D: tl.constexpr):
    """Rotated rows [R, D] as int8, and the scale [R] of each."""
    b_scale = tl.max(tl.abs(b_rows), 1) * (1.0 / LARGEST)  # [R]
    return to_int8(b_rows * inverse_or_zero(b_scale)[:, None]), b_scale * D**-0.5


@Kernel
@triton.jit(do_not_specialize=["tokens"])
def _ranges(
    k, k_head, k_row, ranges,
    tokens,
    D: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The largest and the smallest of the rotated keys of one head in every direction, of every PARTS-th tile."""
    i_part, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_d = tl.arange(0, D)  # [D]
    b_h = hadamard(D, k.dtype.element_ty)  # [D, D]
    b_high = tl.full([ROWS, D], float("-inf"), tl.float32)  # [R, D]
    b_low = tl.full([ROWS, D], float("inf"), tl.float32)  # [R, D]
    for i_r in tl.range(i_part * ROWS, tokens, PARTS * ROWS, num_stages=STAGES):
        # The last token more often than once.
        o_r = tl.minimum(i_r + tl.arange(0, ROWS), tokens - 1).to(tl.int64)[:, None]  # [R, 1]
        b_k = rotate(tl.load(k + i_h * k_head + o_r * k_row + o_d), b_h)  # [R, D]
        b_high = tl.maximum(b_high, b_k, propagate_nan=tl.PropagateNan.ALL)
        b_low = tl.minimum(b_low, b_k, propagate_nan=tl.PropagateNan.ALL)
    p_range = ranges + (i_h * PARTS + i_part) * 2 * D + o_d  # [D]
    # Instead of what is no number, which the maximum of a column would leave out: the scale is then infinite.
    tl.store(p_range, tl.max(tl.where(b_high == b_high, b_high, float("inf")), 0))
    tl.store(p_range + D, tl.min(b_low, 0))


@triton.jit
def _rotated_rows(p_rows, row_stride, o_row, rows, b_h, D: tl.constexpr):
    """Rotated rows ``o_row`` [R, 1] of a table with ``rows`` of them."""
    p_row = p_rows + tl.minimum(o_row, rows - 1).to(tl.int64) * row_stride + tl.arange(0, D)  # [R, D]
    return rotate(tl.load(p_row), b_h)


@triton.jit
def _store_rows(p_8, p_scales, i_first, rows, b_8, b_scale, i_row, D: tl.constexpr, ROWS: tl.constexpr):
    """Write int8 rows [R, D] and their scales [R] from row ``i_row`` on of a table of ``rows`` that begins at ``i_first``."""
    o_row = i_row + tl.arange(0, ROWS)  # [R]
    tl.store(p_8 + (i_first + o_row)[:, None] * D + tl.arange(0, D), b_8, (o_row < rows)[:, None])
    tl.store(p_scales + i_first + o_row, b_scale, o_row < rows)


@Kernel
@triton.jit(
    do_not_specialize=["all_queries", "keys", "clusters", "groups", "extra", "first_group", "first_extra", "first_token"],
    do_not_specialize_on_alignment=["order", "key_scales", "extra_scales", "mean_query_scales", "query_scales"],
)
def _quantize(
    q, q_head, q_row, k, k_head, k_row, v, v_head, v_row, order, ranges,
    key_means, extra_k, extra_k_head, extra_k_row, mean_queries,
    sorted_k, sorted_v,
    means_8, key_scales, extra_8, extra_scales, mean_queries_8, mean_query_scales, q_8, query_scales,
    all_queries, keys, clusters, groups, extra, first_group, first_extra, first_token,
    D: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Some rows of one head: of the key means, from tile ``first_group`` on of the mean queries, then of the text, then of the tokens."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_r = tl.arange(0, ROWS)[:, None]  # [R, 1]
    o_d = tl.arange(0, D)[None, :]  # [1, D]
    b_h = hadamard(D, k.dtype.element_ty)  # [D, D]
    p_range = ranges + (i_h * PARTS + tl.arange(0, PARTS)[:, None]) * 2 * D + o_d  # [P, D]
    b_high, b_low = tl.max(tl.load(p_range), 0), tl.min(tl.load(p_range + D), 0)  # [D]
    b_middle = (b_high + b_low)[None, :] / 2  # [1, D]
    scale = tl.max(b_high - b_low, 0) / (2 * LARGEST)
    if i_tile == 0:
        tl.store(key_scales + i_h, scale * D**-0.5)

    if i_tile < first_group:
        i_row = i_tile * ROWS
        b_k = _rotated_rows(key_means + i_h * clusters * D, D, i_row + o_r, clusters, b_h, D)  # [R, D]
        # A cluster without members keeps a centroid that need not lie within the range.
        b_8 = to_int8((b_k - b_middle) * inverse_or_zero(scale))  # [R, D]
        tl.store(means_8 + (i_h * clusters + i_row + o_r) * D + o_d, b_8, i_row + o_r < clusters)
    elif i_tile < first_extra:
        i_row = (i_tile - first_group) * ROWS
        b_8, b_scale = quantize_rows(_rotated_rows(mean_queries + i_h * groups * D, D, i_row + o_r, groups, b_h, D), D)
        _store_rows(mean_queries_8, mean_query_scales, i_h * groups, groups, b_8, b_scale, i_row, D, ROWS)
    elif i_tile < first_token:
        i_row = (i_tile - first_extra) * ROWS
        b_k = _rotated_rows(extra_k + i_h * extra_k_head, extra_k_row, i_row + o_r, extra, b_h, D)  # [R, D]
        b_8, b_scale = quantize_rows(b_k - b_middle, D)
        _store_rows(extra_8, extra_scales, i_h * extra, extra, b_8, b_scale, i_row, D, ROWS)
    else:
        for i_step in range(0, STEPS):
            i_row = ((i_tile - first_token) * STEPS + i_step) * ROWS
            m_row = i_row + o_r < keys  # [R, 1]
            m_out = i_row + o_r < rows_of(i_h, keys)  # [R, 1]
            i_token = tl.load(order + i_h * keys + i_row + o_r, m_row, other=0).to(tl.int64)  # [R, 1]
            p_out = (i_h * keys + i_row + o_r) * D + o_d  # [R, D]
            b_v = tl.load(v + i_h * v_head + i_token * v_row + o_d, m_row, other=0)  # [R, D]
            tl.store(sorted_v + p_out, b_v.to(sorted_v.dtype.element_ty), m_out)
            b_k = rotate(tl.load(k + i_h * k_head + i_token * k_row + o_d), b_h)  # [R, D]
            tl.store(sorted_k + p_out, to_int8((b_k - b_middle) * inverse_or_zero(scale)), m_out)
            b_8, b_scale = quantize_rows(_rotated_rows(q + i_h * q_head, q_row, i_row + o_r, all_queries, b_h, D), D)
            _store_rows(q_8, query_scales, i_h * all_queries, all_queries, b_8, b_scale, i_row, D, ROWS)


def tiles_of(number: int, float32: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Launch options of ``_ranges`` and of ``_quantize`` on the architecture of that number in the tables of tiles."""
    if float32:
        return RANGES_FLOAT32, QUANTIZE_FLOAT32
    return RANGES, QUANTIZE_SM120 if number // 10 == 12 else QUANTIZE


def quantize(queries: Tensor, keys: Tensor, values: Tensor, clusters: Clusters, extra: Tensor, groups: Clusters) -> SortedKeys:
    """Keys in int8 and values into cluster order, of one batch item ``[1, H, N, D]``; D a power of two from 32 to 256.

    See the torch stage for the arguments.
    """
    queries, keys, values, extra = map(readable, (queries, keys, values, extra))
    (_, heads, length, dim), query_count = keys.shape, queries.shape[2]
    if dim not in DIMS:
        raise ValueError(f"the head dimension is {dim}; precision int8 computes {', '.join(map(str, DIMS))}: take precision full")
    key_means, mean_queries = clusters.rounded_to(keys.dtype), groups.rounded_to(keys.dtype)
    count, group_count, extra_count = key_means.shape[2], mean_queries.shape[2], extra.shape[2]

    def integers(rows: int) -> Tensor:
        return torch.empty(1, heads, rows, dim, dtype=torch.int8, device=keys.device)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=keys.device)

    for_ranges, tiles = tiles_of(architecture(keys.device), keys.dtype == torch.float32)
    ranges = floats(heads, PARTS, 2, dim)
    _ranges[(PARTS, heads)](keys, keys.stride(1), keys.stride(2), ranges, length, D=dim, PARTS=PARTS, **for_ranges)
    sorted_keys, sorted_values = room_for_sorted(keys, torch.int8), room_for_sorted(values, weighed_in(values.dtype, values.device))
    products = Quantized(
        integers(count), floats(1, heads),
        integers(extra_count), floats(1, heads, extra_count),
        integers(group_count), floats(1, heads, group_count),
        integers(query_count), floats(1, heads, query_count),
    )  # fmt: skip
    first_group = ceil_div(count, tiles["ROWS"])
    first_extra = first_group + ceil_div(group_count, tiles["ROWS"])
    first_token = first_extra + ceil_div(extra_count, tiles["ROWS"])
    _quantize[(first_token + ceil_div(max(length + ROWS_BEHIND, query_count), tiles["ROWS"] * tiles["STEPS"]), heads)](
        queries, queries.stride(1), queries.stride(2),
        keys, keys.stride(1), keys.stride(2),
        values, values.stride(1), values.stride(2),
        clusters.order, ranges,
        key_means, extra, extra.stride(1), extra.stride(2), mean_queries,
        sorted_keys, sorted_values,
        products.key_means, products.key_scales, products.extra, products.extra_scales,
        products.mean_queries, products.mean_query_scales, products.queries, products.query_scales,
        query_count, length, count, group_count, extra_count, first_group, first_extra, first_token,
        D=dim, PARTS=PARTS, **tiles,
    )  # fmt: skip
    return SortedKeys(sorted_keys, sorted_values, clusters, products)
