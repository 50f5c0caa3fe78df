"""Keys and values into cluster order. Queries and the output are never permuted."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..behind import ROWS_BEHIND, room_for_sorted
from ..numerics import ceil_div
from ..strides import readable
from ..tuning import launched
from ..types import Clusters, SortedKeys
from .launches import Kernel

PERMUTE = launched(ROWS=32, num_warps=4)
BEHIND = tl.constexpr(ROWS_BEHIND)


@triton.jit
def rows_of(i_h, tokens):
    """Rows of one head to write, ``i_h`` the program's number on axis 1: those of zeros belong to the last."""
    return tokens + tl.where(i_h == tl.num_programs(1) - 1, BEHIND, 0)


@Kernel
@triton.jit(do_not_specialize=["heads", "tokens"], do_not_specialize_on_alignment=["order"])
def _permute(
    k, k_batch, k_head, k_row,
    v, v_batch, v_head, v_row,
    order, sorted_k, sorted_v,
    heads, tokens,
    D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of the sorted keys and values of one head."""
    i_n, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_batch, i_head = i_h // heads, i_h % heads
    o_n = i_n * ROWS + tl.arange(0, ROWS)  # [R]
    o_d = tl.arange(0, D)  # [D]
    m_n = o_n < tokens  # [R]
    m_out = o_n < rows_of(i_h, tokens)  # [R]
    i_token = tl.load(order + i_h * tokens + o_n, m_n, other=0).to(tl.int64)[:, None]  # [R, 1]
    b_k = tl.load(k + i_batch * k_batch + i_head * k_head + i_token * k_row + o_d, m_n[:, None], other=0)  # [R, D]
    b_v = tl.load(v + i_batch * v_batch + i_head * v_head + i_token * v_row + o_d, m_n[:, None], other=0)  # [R, D]
    p_out = (i_h * tokens + o_n)[:, None] * D + o_d  # [R, D]
    tl.store(sorted_k + p_out, b_k, m_out[:, None])
    tl.store(sorted_v + p_out, b_v, m_out[:, None])


def permute(keys: Tensor, values: Tensor, clusters: Clusters) -> SortedKeys:
    """Sort keys and values ``[B, H, N, D]`` (any strides) by cluster; the values inherit the keys' labels."""
    keys, values = readable(keys), readable(values)
    batch, heads, length, dim = keys.shape
    sorted_keys, sorted_values = room_for_sorted(keys, keys.dtype), room_for_sorted(values, values.dtype)
    _permute[(ceil_div(length + ROWS_BEHIND, PERMUTE["ROWS"]), batch * heads)](
        keys, *keys.stride()[:3],
        values, *values.stride()[:3],
        clusters.order, sorted_keys, sorted_values,
        heads, length,
        D=dim, **PERMUTE,
    )  # fmt: skip
    return SortedKeys(sorted_keys, sorted_values, clusters)
