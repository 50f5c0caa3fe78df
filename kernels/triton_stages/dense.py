"""Dense attention of a few queries over all keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..numerics import LOG2_E, ceil_div
from ..strides import head_stride
from ..tuning import attend_tiles, launched
from .launches import Kernel
from .softmax import TO_BASE_2, softmax_step

# Keys that one program sees: few queries alone would leave most of the GPU idle.
KEYS_AT_ONCE = 4096
JOIN = launched(ROWS=16, num_warps=4)


@Kernel
@triton.jit(do_not_specialize=["scale", "queries", "keys", "parts", "biases_head"], do_not_specialize_on_alignment=["biases"])
def _dense(
    q, q_head, q_row, k, k_head, k_row, v, v_head, v_row, biases, biases_head,
    part_outputs, part_peaks, part_sums,
    scale, queries, keys, parts,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, AT_ONCE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ROWS queries of one head over AT_ONCE of its keys."""
    i_tile, i_part, i_h = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_row = i_tile * ROWS + tl.arange(0, ROWS)  # [R]
    m_row = o_row < queries  # [R]
    o_d = tl.arange(0, D)  # [D]
    b_q = tl.load(q + i_h * q_head + o_row.to(tl.int64)[:, None] * q_row + o_d, m_row[:, None], other=0.0)  # [R, D]
    b_peak = tl.full([ROWS], -1.0e30, tl.float32)  # [R]
    b_sum = tl.zeros([ROWS], tl.float32)  # [R]
    b_acc = tl.zeros([ROWS, D], tl.float32)  # [R, D]
    i_stop = tl.minimum((i_part + 1) * AT_ONCE, keys)
    for i_k in tl.range(i_part * AT_ONCE, i_stop, KEYS, num_stages=STAGES):
        o_k = i_k + tl.arange(0, KEYS)  # [K]
        m_k = o_k < i_stop  # [K]
        i_row = tl.where(m_k, o_k, 0).to(tl.int64)[:, None]  # [K, 1]
        b_k = tl.load(k + i_h * k_head + i_row * k_row + o_d)  # [K, D]
        b_v = tl.load(v + i_h * v_head + i_row * v_row + o_d)  # [K, D]
        if biases is None:
            b_bias = tl.where(m_k, 0.0, float("-inf"))  # [K]
        else:
            b_bias = tl.load(biases + i_h * biases_head + o_k, m_k, other=float("-inf")) * TO_BASE_2  # [K]
        b_acc, b_peak, b_sum = softmax_step(b_q, b_k, b_v, b_bias, scale, b_acc, b_peak, b_sum)
    p_row = (i_h * parts + i_part) * queries + o_row  # [R]
    tl.store(part_peaks + p_row, b_peak, m_row)
    tl.store(part_sums + p_row, b_sum, m_row)
    tl.store(part_outputs + p_row[:, None] * D + o_d, b_acc, m_row[:, None])


@Kernel
@triton.jit(do_not_specialize=["queries", "parts"])
def _join(
    part_outputs, part_peaks, part_sums, out, out_head, out_row,
    queries, parts,
    D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS queries of one head from what they saw of all parts of the keys."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_row = i_tile * ROWS + tl.arange(0, ROWS)  # [R]
    m_row = o_row < queries  # [R]
    o_d = tl.arange(0, D)  # [D]
    b_peak = tl.full([ROWS], -1.0e30, tl.float32)  # [R]
    b_sum = tl.zeros([ROWS], tl.float32)  # [R]
    b_acc = tl.zeros([ROWS, D], tl.float32)  # [R, D]
    for i_part in range(0, parts):
        p_row = (i_h * parts + i_part) * queries + o_row  # [R]
        b_new = tl.maximum(b_peak, tl.load(part_peaks + p_row, m_row, other=-1.0e30))  # [R]
        b_shrink = tl.exp2(b_peak - b_new)  # [R]
        b_weight = tl.exp2(tl.load(part_peaks + p_row, m_row, other=-1.0e30) - b_new)  # [R]
        b_part = tl.load(part_outputs + p_row[:, None] * D + o_d, m_row[:, None], other=0.0)  # [R, D]
        b_acc = b_acc * b_shrink[:, None] + b_part * b_weight[:, None]
        b_sum = b_sum * b_shrink + tl.load(part_sums + p_row, m_row, other=0.0) * b_weight
        b_peak = b_new
    b_out = (b_acc / b_sum[:, None]).to(out.dtype.element_ty)  # [R, D]
    tl.store(out + i_h * out_head + o_row.to(tl.int64)[:, None] * out_row + o_d, b_out, m_row[:, None])


def attend_dense(queries: Tensor, keys: Tensor, values: Tensor, biases: Tensor | None, scale: float, output: Tensor) -> None:
    """Dense attention of ``[1, H, T, D]`` over ``[1, H, M, D]``, the keys split over many programs; writes ``output`` ``[1, H, T, D]``.

    ``biases`` ``[1, H, M]`` are added to the logits. All last strides are 1. The parts are joined in a fixed order. Products in the
    input dtype (tf32 for float32), the rest in float32.
    """
    _, heads, count, dim = queries.shape
    length, tiles = keys.shape[2], attend_tiles(queries.device, queries.itemsize)[-1]
    parts = ceil_div(length, KEYS_AT_ONCE)
    outputs = torch.empty(heads, parts, count, dim, dtype=torch.float32, device=queries.device)
    peaks, sums = (outputs.new_empty(heads, parts, count) for _ in range(2))
    _dense[(ceil_div(count, tiles.rows), parts, heads)](
        queries, queries.stride(1), queries.stride(2),
        keys, keys.stride(1), keys.stride(2),
        values, values.stride(1), values.stride(2),
        biases, head_stride(biases),
        outputs, peaks, sums,
        scale * LOG2_E, count, length, parts,
        D=dim, ROWS=tiles.rows, KEYS=tiles.keys, AT_ONCE=KEYS_AT_ONCE, STAGES=tiles.stages,
        **tiles.launch,
    )  # fmt: skip
    _join[(ceil_div(count, JOIN["ROWS"]), heads)](
        outputs, peaks, sums, output, output.stride(1), output.stride(2), count, parts, D=dim, **JOIN
    )
