"""Exact rows and compensated centroids in one softmax, with products of queries and keys in int8.

Weights are relative to what the probe expects of a group, not to a running maximum: nothing then depends on the tiles before, and no
accumulator is ever scaled. Groups with a row whose sum is so far off that float32 might not hold it are computed again, relative to
the largest logit of each row, which takes the products twice.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..numerics import LOG2_E
from ..settings import Settings
from ..strides import head_stride
from ..tuning import Tiles, attend_again_tiles, attend_tiles
from ..types import Clusters, Conditioning, Probe, Routing, SortedKeys, Summaries
from .int8 import START, UNSEEN, ZERO, factor_of, multiply
from .launches import Kernel
from .route import GRANULE, entry_rows
from .softmax import TO_BASE_2, awaited
from .tail import copies, load_by_all, stand_ins
from .tiles import cut_for

# Sums of weights that are right, and far from what float32 and bfloat16 hold.
LEAST_SUM, LARGEST_SUM = tl.constexpr(2.0**-100), tl.constexpr(2.0**100)
# Programs that look for groups to compute again, and how many each looks at together.
SEARCH = {"PROGRAMS": 256, "AT_ONCE": 64}


@triton.jit
def _largest_logits(
    b_q, b_scale, b_factor, p_mean, p_tail, p_extra_k, p_extra_scale, p_biases, p_k, p_entries, clusters, extra, n_entries,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, GRANULE: tl.constexpr, COMPENSATE: tl.constexpr,
):  # fmt: skip
    """The largest logit of each row [R], in base 2."""
    o_d, o_key = tl.arange(0, D), tl.arange(0, KEYS)  # [D], [K]
    b_start = tl.full([KEYS], START, tl.int32)  # [K]
    b_peak = tl.full([ROWS], -1.0e30, tl.float32)  # [R]
    if COMPENSATE:
        for i_c in tl.range(0, clusters, KEYS, num_stages=1):
            b_bias = tl.load(p_tail + i_c + o_key)  # [K]
            i_k = tl.minimum(i_c + o_key, clusters - 1)  # [K]
            b_x = multiply(b_q, tl.load(p_mean + i_k[:, None] * D + o_d), b_start) - ZERO  # [R, K]
            b_peak = tl.maximum(b_peak, tl.max(b_x * b_factor[:, None] + b_bias[None, :], 1))
    for i_t in tl.range(0, extra, KEYS, num_stages=1):
        i_row = tl.minimum(i_t + o_key, extra - 1)  # [K]
        b_x = multiply(b_q, tl.load(p_extra_k + i_row[:, None] * D + o_d), b_start) - ZERO  # [R, K]
        b_x = b_x * tl.load(p_extra_scale + i_row)[None, :] * b_scale[:, None]  # [R, K]
        if p_biases is not None:
            b_x += (tl.load(p_biases + i_row) * TO_BASE_2)[None, :]
        b_peak = tl.maximum(b_peak, tl.max(b_x, 1))
    for i_e in tl.range(0, n_entries, KEYS // GRANULE, num_stages=1):
        i_row, b_begin = entry_rows(p_entries, i_e, START, UNSEEN, D, KEYS, GRANULE)  # [K, 1], [K]
        b_x = multiply(b_q, tl.load(p_k + i_row + o_d), b_begin)  # [R, K]
        b_peak = tl.maximum(b_peak, (tl.max(b_x, 1) - ZERO) * b_factor)
    return b_peak


@triton.jit
def _add(b_logits, b_v, b_acc, b_sum, WAIT: tl.constexpr):
    """The weights of logits [R, K] in base 2 added to acc [R, D] and sum [R]."""
    b_p = tl.exp2(b_logits)  # [R, K]
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc)  # [R, D]
    if WAIT:
        b_acc = awaited(b_acc)
    return b_acc, b_sum + tl.sum(b_p, 1)


@triton.jit
def _attention(
    b_q, b_scale, b_factor, b_peak,
    p_mean, p_value, p_tail, p_extra_k, p_extra_scale, p_extra_v, extra_v_row, p_biases, p_k, p_v, p_entries,
    clusters, extra, n_entries,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, GRANULE: tl.constexpr, COMPENSATE: tl.constexpr, STAGES: tl.constexpr,
    WAIT: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """Sums of the weights [R], and of the values by them [R, D], relative to ``b_peak`` [R]."""
    o_d, o_key = tl.arange(0, D), tl.arange(0, KEYS)  # [D], [K]
    b_start = tl.full([KEYS], START, tl.int32)  # [K]
    b_sum = tl.zeros([ROWS], tl.float32)  # [R]
    b_acc = tl.zeros([ROWS, D], tl.float32)  # [R, D]
    # What a product begins with is taken off together with the peak: what is rounded of it is the same for all keys.
    b_shift = b_peak + ZERO * b_factor  # [R]
    if COMPENSATE:
        for i_c in tl.range(0, clusters, KEYS, num_stages=STAGES):
            b_bias = load_by_all(p_tail + i_c + o_key, COPIES)  # [K]
            i_k = tl.minimum(i_c + o_key, clusters - 1)  # [K]
            b_k = tl.load(p_mean + i_k[:, None] * D + o_d)  # [K, D]
            b_v = tl.load(p_value + i_k[:, None] * D + o_d)  # [K, D]
            b_x = multiply(b_q, b_k, b_start)  # [R, K]
            b_acc, b_sum = _add(b_x * b_factor[:, None] + (b_bias[None, :] - b_shift[:, None]), b_v, b_acc, b_sum, WAIT)
    for i_t in tl.range(0, extra, KEYS, num_stages=1):
        m_t = i_t + o_key < extra  # [K]
        i_row = tl.where(m_t, i_t + o_key, 0)  # [K]
        b_k = tl.load(p_extra_k + i_row[:, None] * D + o_d)  # [K, D]
        b_v = tl.load(p_extra_v + i_row.to(tl.int64)[:, None] * extra_v_row + o_d).to(p_v.dtype.element_ty)  # [K, D]
        b_x = multiply(b_q, b_k, b_start) - ZERO  # [R, K]
        b_x = b_x * tl.load(p_extra_scale + i_row)[None, :] * b_scale[:, None] - b_peak[:, None]  # [R, K]
        if p_biases is not None:
            b_x += (tl.load(p_biases + i_row) * TO_BASE_2)[None, :]
        b_acc, b_sum = _add(tl.where(m_t[None, :], b_x, float("-inf")), b_v, b_acc, b_sum, WAIT)
    for i_e in tl.range(0, n_entries, KEYS // GRANULE, num_stages=STAGES):
        i_row, b_begin = entry_rows(p_entries, i_e, START, UNSEEN, D, KEYS, GRANULE)  # [K, 1], [K]
        b_k = tl.load(p_k + i_row + o_d)  # [K, D]
        b_v = tl.load(p_v + i_row + o_d)  # [K, D]
        b_acc, b_sum = _add(multiply(b_q, b_k, b_begin) * b_factor[:, None] - b_shift[:, None], b_v, b_acc, b_sum, WAIT)
    return b_acc, b_sum


@triton.jit
def _rows(
    i_h, i_group, i_from, i_stop, references,
    q, query_scales, k, key_scales, v,
    extra_k, extra_scales, extra_v, extra_v_head, extra_v_row, biases, biases_head,
    key_means, values, own_row, tail, tail_row,
    entries, counts,
    order,
    out, out_head, out_row,
    scale, queries, keys, clusters, groups, extra, capacity,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, GRANULE: tl.constexpr, COMPENSATE: tl.constexpr, REFER: tl.constexpr,
    STAGES: tl.constexpr, WAIT: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """The queries of a group from ``i_from`` on in the order, at most ROWS; their output is written."""
    o_row = i_from + tl.arange(0, ROWS)  # [R]
    m_row = o_row < i_stop  # [R]
    i_token = tl.load(order + i_h * queries + o_row, m_row, other=0).to(tl.int64)  # [R]
    b_q = tl.load(q + (i_h * queries + i_token[:, None]) * D + tl.arange(0, D))  # [R, D]
    b_scale = tl.load(query_scales + i_h * queries + i_token) * scale  # [R]
    b_factor = factor_of(b_scale * tl.load(key_scales + i_h))  # [R]
    # The blocks of a group are addressed by 32 bits from here: wider indices cost registers.
    i_own = (i_h * ((groups - 1) * own_row + 1) + i_group * own_row) * clusters
    p_tail = None
    if COMPENSATE:
        p_tail = tail + (i_h * groups + i_group) * tail_row
    p_mean, p_value = key_means + i_h * clusters * D, values + i_own * D
    p_k, p_v = k + i_h * keys * D, v + i_h * keys * D
    p_extra_k, p_extra_scale, p_extra_v = extra_k + i_h * extra * D, extra_scales + i_h * extra, extra_v + i_h * extra_v_head
    p_biases = None
    if biases is not None:
        p_biases = biases + i_h * biases_head
    p_entries = entries + (i_h * groups + i_group) * capacity
    n_entries = tl.load(counts + i_h * groups + i_group)
    if REFER:
        b_peak = tl.zeros([ROWS], tl.float32) + tl.load(references + i_h * groups + i_group)  # [R]
    else:
        b_peak = _largest_logits(
            b_q, b_scale, b_factor,
            p_mean, p_tail, p_extra_k, p_extra_scale, p_biases, p_k, p_entries, clusters, extra, n_entries,
            D, ROWS, KEYS, GRANULE, COMPENSATE,
        )  # fmt: skip
    b_acc, b_sum = _attention(
        b_q, b_scale, b_factor, b_peak,
        p_mean, p_value, p_tail, p_extra_k, p_extra_scale, p_extra_v, extra_v_row, p_biases, p_k, p_v, p_entries,
        clusters, extra, n_entries,
        D, ROWS, KEYS, GRANULE, COMPENSATE, STAGES, WAIT, COPIES,
    )  # fmt: skip
    # Once more, so that nothing of it stays in registers through the loops.
    o_row = i_from + tl.arange(0, ROWS)  # [R]
    m_row = o_row < i_stop  # [R]
    i_token = tl.load(order + i_h * queries + o_row, m_row, other=0, volatile=True).to(tl.int64)  # [R]
    b_out = (b_acc / b_sum[:, None]).to(out.dtype.element_ty)  # [R, D]
    tl.store(out + i_h * out_head + i_token[:, None] * out_row + tl.arange(0, D), b_out, m_row[:, None])
    if REFER:
        # Whoever reads it before it is marked finds out for himself, or has a right sum, and is computed again all the same.
        m_wrong = m_row & ~((b_sum > LEAST_SUM) & (b_sum < LARGEST_SUM))  # [R]
        tl.store(references + i_h * groups + i_group, float("inf"), tl.max(m_wrong.to(tl.int32), 0) > 0)


@Kernel
@triton.jit(
    do_not_specialize=["scale", "queries", "keys", "clusters", "groups", "extra", "capacity", "own_row", "tail_row", "biases_head"],
    do_not_specialize_on_alignment=["biases", "tail", "order", "tiles", "query_scales", "key_scales", "extra_scales", "references"],
)
def _attend_int8(
    tiles, references,
    q, query_scales, k, key_scales, v,
    extra_k, extra_scales, extra_v, extra_v_head, extra_v_row, biases, biases_head,
    key_means, values, own_row, tail, tail_row,
    entries, counts,
    order,
    out, out_head, out_row,
    scale, queries, keys, clusters, groups, extra, capacity,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, GRANULE: tl.constexpr, COMPENSATE: tl.constexpr, REFER: tl.constexpr,
    STAGES: tl.constexpr, WAIT: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """ROWS queries of one group of one head.

    ``own_row`` is 1 when every group has its own centroid values and weights, 0 when those of a head serve all its groups. With REFER
    ``references`` [H, G] are the logarithms that weights are relative to, and infinite afterwards for a group to compute again;
    without, weights are relative to the largest logit of each row.
    """
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_tile = tiles + (i_h * tl.num_programs(0) + i_tile) * 3
    i_group = tl.load(p_tile)
    if i_group >= groups:
        return
    _rows(
        i_h, i_group, tl.load(p_tile + 1), tl.load(p_tile + 2), references,
        q, query_scales, k, key_scales, v,
        extra_k, extra_scales, extra_v, extra_v_head, extra_v_row, biases, biases_head,
        key_means, values, own_row, tail, tail_row,
        entries, counts,
        order,
        out, out_head, out_row,
        scale, queries, keys, clusters, groups, extra, capacity,
        D, ROWS, KEYS, GRANULE, COMPENSATE, REFER, STAGES, WAIT, COPIES,
    )  # fmt: skip


@Kernel
@triton.jit(
    do_not_specialize=[
        *("scale", "queries", "keys", "clusters", "groups", "extra", "capacity"),
        *("own_row", "tail_row", "biases_head", "all_groups"),
    ],
    do_not_specialize_on_alignment=["biases", "tail", "order", "offsets", "query_scales", "key_scales", "extra_scales", "references"],
)
def _attend_again(
    offsets, references,
    q, query_scales, k, key_scales, v,
    extra_k, extra_scales, extra_v, extra_v_head, extra_v_row, biases, biases_head,
    key_means, values, own_row, tail, tail_row,
    entries, counts,
    order,
    out, out_head, out_row,
    scale, queries, keys, clusters, groups, extra, capacity, all_groups,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, GRANULE: tl.constexpr, COMPENSATE: tl.constexpr, STAGES: tl.constexpr,
    PROGRAMS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The groups of all heads whose reference is infinite, or no number: hardly ever any."""
    o_at = tl.arange(0, AT_ONCE)  # [A]
    for i_first in tl.range(tl.program_id(0) * AT_ONCE, all_groups, PROGRAMS * AT_ONCE, num_stages=1):
        b_reference = tl.load(references + i_first + o_at, i_first + o_at < all_groups, other=0.0)  # [A]
        if tl.max((~(tl.abs(b_reference) < float("inf"))).to(tl.int32), 0) > 0:
            for i_any in tl.range(i_first, tl.minimum(i_first + AT_ONCE, all_groups), num_stages=1):
                if not tl.abs(tl.load(references + i_any)) < float("inf"):
                    i_h, i_group = (i_any // groups).to(tl.int64), i_any % groups
                    p_offset = offsets + i_h * (groups + 1) + i_group
                    i_stop = tl.load(p_offset + 1)
                    for i_from in tl.range(tl.load(p_offset), i_stop, ROWS, num_stages=1):
                        _rows(
                            i_h, i_group, i_from, i_stop, references,
                            q, query_scales, k, key_scales, v,
                            extra_k, extra_scales, extra_v, extra_v_head, extra_v_row, biases, biases_head,
                            key_means, values, own_row, tail, tail_row,
                            entries, counts,
                            order,
                            out, out_head, out_row,
                            scale, queries, keys, clusters, groups, extra, capacity,
                            D, ROWS, KEYS, GRANULE, COMPENSATE, False, STAGES, False, 1,
                        )  # fmt: skip


def waits(tiles: Tiles) -> bool:
    """Whether products of weights and values are to be waited for: where four warps have more rows than the 64 of one wgmma."""
    return tiles.rows > 16 * tiles.warps


def attend_int8(
    groups: Clusters,
    sorted_keys: SortedKeys,
    conditioning: Conditioning,
    summaries: Summaries,
    probe: Probe,
    routing: Routing,
    settings: Settings,
    scale: float,
    output: Tensor,
) -> None:
    """Attention of the queries that ``sorted_keys`` have in int8: see ``attend`` for the arguments.

    Products of weights and values in the dtype of the sorted values (tf32 for float32), sums and exponentials in float32.
    """
    products, dim = sorted_keys.quantized, output.shape[3]
    _, heads, count, _ = output.shape
    clusters, group_count = summaries.log_sizes.shape[2], routing.exact.shape[2]
    shapes = attend_tiles(output.device, output.itemsize, int8=True)
    references = probe.log_denominators
    arguments = (
        products.queries, products.query_scales, sorted_keys.keys, products.key_scales, sorted_keys.values,
        products.extra, products.extra_scales, conditioning.values, conditioning.values.stride(1), conditioning.values.stride(2),
        conditioning.biases, head_stride(conditioning.biases),
        products.key_means, *stand_ins(probe, summaries, routing, settings, sorted_keys.values.dtype, shapes),
        routing.rows.entries, routing.rows.counts,
        groups.order,
        output, output.stride(1), output.stride(2),
        scale * LOG2_E, count, sorted_keys.keys.shape[2], clusters, group_count, products.extra.shape[2], routing.rows.entries.shape[-1],
    )  # fmt: skip
    for tiles, rows in zip(shapes, cut_for(groups, shapes)):
        _attend_int8[(rows.count, heads)](
            rows.table, references, *arguments,
            D=dim, ROWS=tiles.rows, KEYS=tiles.keys, GRANULE=GRANULE, COMPENSATE=settings.compensates, REFER=references is not None,
            STAGES=tiles.stages, WAIT=waits(tiles), COPIES=copies(tiles.keys, tiles.warps), **tiles.launch,
        )  # fmt: skip
    if references is not None:
        tiles = attend_again_tiles(output.device)
        _attend_again[(SEARCH["PROGRAMS"],)](
            groups.offsets, references, *arguments, heads * group_count,
            D=dim, ROWS=tiles.rows, KEYS=tiles.keys, GRANULE=GRANULE, COMPENSATE=settings.compensates, STAGES=tiles.stages,
            **SEARCH, **tiles.launch,
        )  # fmt: skip
