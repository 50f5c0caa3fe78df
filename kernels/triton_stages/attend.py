"""Exact rows and compensated centroids in one softmax."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..numerics import LOG2_E
from ..settings import Settings
from ..strides import head_stride
from ..tuning import attend_tiles
from ..types import Clusters, Conditioning, Probe, Routing, SortedKeys, Summaries
from .attend_int8 import attend_int8
from .launches import Kernel
from .route import GRANULE, entry_rows
from .softmax import TO_BASE_2, softmax_step
from .tail import copies, load_by_all, stand_ins
from .tiles import cut_for


@Kernel
@triton.jit(
    do_not_specialize=["scale", "queries", "keys", "clusters", "groups", "extra", "capacity", "own_row", "tail_row", "biases_head"],
    do_not_specialize_on_alignment=["biases", "tail", "order", "tiles"],
)
def _attend(
    tiles,
    q, q_head, q_row,
    k, v,
    extra_k, extra_k_head, extra_k_row, extra_v, extra_v_head, extra_v_row, biases, biases_head,
    key_means, values, own_row, tail, tail_row,
    entries, counts,
    order,
    out, out_head, out_row,
    scale, queries, keys, clusters, groups, extra, capacity,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, GRANULE: tl.constexpr, COMPENSATE: tl.constexpr, STAGES: tl.constexpr,
    COPIES: tl.constexpr,
):  # fmt: skip
    """ROWS queries of one group of one head.

    ``own_row`` is 1 when every group has its own centroid values and weights, 0 when those of a head serve all its groups.
    """
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_tile = tiles + (i_h * tl.num_programs(0) + i_tile) * 3
    i_group = tl.load(p_tile)
    if i_group >= groups:
        return
    o_row = tl.load(p_tile + 1) + tl.arange(0, ROWS)  # [R], place in the order
    m_row = o_row < tl.load(p_tile + 2)  # [R]
    o_d = tl.arange(0, D)  # [D]
    o_key = tl.arange(0, KEYS)  # [K]
    i_token = tl.load(order + i_h * queries + o_row, m_row, other=0).to(tl.int64)  # [R]
    b_q = tl.load(q + i_h * q_head + i_token[:, None] * q_row + o_d, m_row[:, None], other=0.0)  # [R, D]

    # Finite, so that a tile without any visible key does not turn into inf - inf.
    b_peak = tl.full([ROWS], -1.0e30, tl.float32)  # [R]
    b_sum = tl.zeros([ROWS], tl.float32)  # [R]
    b_acc = tl.zeros([ROWS, D], tl.float32)  # [R, D]

    if COMPENSATE:
        # The blocks of a group are addressed by 32 bits from here: wider indices cost registers.
        i_own = (i_h * ((groups - 1) * own_row + 1) + i_group * own_row) * clusters
        p_tail = tail + (i_h * groups + i_group) * tail_row
        p_mean, p_value = key_means + i_h * clusters * D, values + i_own * D
        for i_c in tl.range(0, clusters, KEYS, num_stages=STAGES):
            b_bias = load_by_all(p_tail + i_c + o_key, COPIES)  # [K]
            i_k = tl.minimum(i_c + o_key, clusters - 1)  # [K]
            b_k = tl.load(p_mean + i_k[:, None] * D + o_d)  # [K, D]
            b_v = tl.load(p_value + i_k[:, None] * D + o_d)  # [K, D]
            b_acc, b_peak, b_sum = softmax_step(b_q, b_k, b_v, b_bias, scale, b_acc, b_peak, b_sum)

    for i_t in tl.range(0, extra, KEYS, num_stages=1):
        o_t = i_t + o_key  # [K]
        m_t = o_t < extra  # [K]
        i_t_row = tl.where(m_t, o_t, 0).to(tl.int64)[:, None]  # [K, 1]
        b_k = tl.load(extra_k + i_h * extra_k_head + i_t_row * extra_k_row + o_d)  # [K, D]
        b_v = tl.load(extra_v + i_h * extra_v_head + i_t_row * extra_v_row + o_d)  # [K, D]
        b_bias = tl.where(m_t, 0.0, float("-inf"))  # [K]
        if biases is not None:
            b_bias += tl.load(biases + i_h * biases_head + o_t, m_t, other=0.0) * TO_BASE_2
        b_acc, b_peak, b_sum = softmax_step(b_q, b_k, b_v, b_bias, scale, b_acc, b_peak, b_sum)

    p_k = k + i_h * keys * D
    p_v = v + i_h * keys * D
    p_entries = entries + (i_h * groups + i_group) * capacity
    n_entries = tl.load(counts + i_h * groups + i_group)
    for i_e in tl.range(0, n_entries, KEYS // GRANULE, num_stages=STAGES):
        i_row, b_bias = entry_rows(p_entries, i_e, 0.0, float("-inf"), D, KEYS, GRANULE)  # [K, 1], [K]
        b_k = tl.load(p_k + i_row + o_d)  # [K, D]
        b_v = tl.load(p_v + i_row + o_d)  # [K, D]
        b_acc, b_peak, b_sum = softmax_step(b_q, b_k, b_v, b_bias, scale, b_acc, b_peak, b_sum)

    # Once more, volatile so that nothing of it stays in registers through the loops.
    o_row = tl.load(p_tile + 1, volatile=True) + tl.arange(0, ROWS)  # [R]
    m_row = o_row < tl.load(p_tile + 2, volatile=True)  # [R]
    i_token = tl.load(order + i_h * queries + o_row, m_row, other=0, volatile=True).to(tl.int64)  # [R]
    b_out = (b_acc / b_sum[:, None]).to(out.dtype.element_ty)  # [R, D]
    tl.store(out + i_h * out_head + i_token[:, None] * out_row + o_d, b_out, m_row[:, None])


def attend(
    queries: Tensor,
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
    """Attention of the video queries of one batch item; every row of ``output`` is written.

    Products in the input dtype (tf32 for float32), sums and exponentials in float32. Query rows are gathered and output
    rows scattered by the kernel itself, so neither is ever permuted in memory.

    Args:
        queries: ``[1, H, N, D]``, token order, last stride 1; as many as the keys, or fewer or more. Where keys are int8, those beside
            them are taken in their place.
        groups, sorted_keys, conditioning, summaries, probe, routing: results of the stages before.
        settings: whether and how skipped blocks are compensated.
        scale: factor of the logits.
        output: as the queries, token order, last stride 1.
    """
    if sorted_keys.quantized is not None:
        attend_int8(groups, sorted_keys, conditioning, summaries, probe, routing, settings, scale, output)
        return
    _, heads, count, dim = queries.shape
    clusters, group_count = summaries.log_sizes.shape[2], routing.exact.shape[2]
    shapes = attend_tiles(queries.device, queries.itemsize)
    key_means = sorted_keys.clusters.rounded_to(queries.dtype)
    arguments = (
        queries, queries.stride(1), queries.stride(2),
        sorted_keys.keys, sorted_keys.values,
        conditioning.keys, conditioning.keys.stride(1), conditioning.keys.stride(2),
        conditioning.values, conditioning.values.stride(1), conditioning.values.stride(2),
        conditioning.biases, head_stride(conditioning.biases),
        key_means, *stand_ins(probe, summaries, routing, settings, queries.dtype, shapes),
        routing.rows.entries, routing.rows.counts,
        groups.order,
        output, output.stride(1), output.stride(2),
        scale * LOG2_E, count, sorted_keys.keys.shape[2], clusters, group_count, conditioning.keys.shape[2], routing.rows.entries.shape[-1],
    )  # fmt: skip
    for tiles, rows in zip(shapes, cut_for(groups, shapes)):
        _attend[(rows.count, heads)](
            rows.table, *arguments,
            D=dim, ROWS=tiles.rows, KEYS=tiles.keys, GRANULE=GRANULE, COMPENSATE=settings.compensates, STAGES=tiles.stages,
            COPIES=copies(tiles.keys, tiles.warps), **tiles.launch,
        )  # fmt: skip
