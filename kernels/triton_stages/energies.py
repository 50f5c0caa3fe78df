"""How much attention every block of queries pays to every block of keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..numerics import LOG2_E, ceil_div
from ..strides import readable
from ..tuning import launched
from ..types import Conditioning
from .launches import Kernel
from .softmax import TO_BASE_2

# Query rows of a program of the denominators; those of the energies have a block.
ROWS = 128
# Keys of a tile, which must divide a block, and the launch.
TILES = launched(KEYS=64, STAGES=3, num_warps=8)
# Products of float32 take twice the shared memory.
TILES_FLOAT32 = launched(KEYS=32, STAGES=1, num_warps=8)


@triton.jit
def _log_sums(
    b_q, k, k_row, scale, keys, b_peak, b_sum,
    D: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The running maximum and sum [R] of the exponentials, in base 2, with those of all keys of one head added."""
    o_d = tl.arange(0, D)  # [D]
    for i_k in tl.range(0, keys, KEYS, num_stages=STAGES):
        o_k = i_k + tl.arange(0, KEYS)  # [K]
        m_k = o_k < keys  # [K]
        i_row = tl.where(m_k, o_k, 0).to(tl.int64)[:, None]  # [K, 1]
        b_s = tl.dot(b_q, tl.trans(tl.load(k + i_row * k_row + o_d))) * scale  # [R, K]
        b_s += tl.where(m_k, 0.0, float("-inf"))[None, :]
        b_new = tl.maximum(b_peak, tl.max(b_s, 1))  # [R]
        b_sum = b_sum * tl.exp2(b_peak - b_new) + tl.sum(tl.exp2(b_s - b_new[:, None]), 1)
        b_peak = b_new
    return b_peak, b_sum


@Kernel
@triton.jit(do_not_specialize=["scale", "heads", "tokens", "extra"])
def _denominators(
    q, q_batch, q_head, q_row,
    k, k_batch, k_head, k_row,
    extra_k, extra_k_batch, extra_k_head, extra_k_row,
    denominators,
    scale, heads, tokens, extra,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ROWS queries of one head over all its keys."""
    i_r, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_batch, i_head = i_h // heads, i_h % heads
    o_row = i_r * ROWS + tl.arange(0, ROWS)  # [R]
    m_row = o_row < tokens  # [R]
    p_q = q + i_batch * q_batch + i_head * q_head
    b_q = tl.load(p_q + o_row.to(tl.int64)[:, None] * q_row + tl.arange(0, D), m_row[:, None], other=0.0)  # [R, D]
    b_peak = tl.full([ROWS], -1.0e30, tl.float32)  # [R]
    b_sum = tl.zeros([ROWS], tl.float32)  # [R]
    p_k = k + i_batch * k_batch + i_head * k_head
    b_peak, b_sum = _log_sums(b_q, p_k, k_row, scale, tokens, b_peak, b_sum, D, KEYS, STAGES)
    p_extra = extra_k + i_batch * extra_k_batch + i_head * extra_k_head
    b_peak, b_sum = _log_sums(b_q, p_extra, extra_k_row, scale, extra, b_peak, b_sum, D, KEYS, 1)
    tl.store(denominators + i_h * tokens + o_row, (b_peak + tl.log2(b_sum)) / TO_BASE_2, m_row)


@Kernel
@triton.jit(do_not_specialize=["scale", "heads", "tokens", "blocks"])
def _energies(
    q, q_batch, q_head, q_row,
    k, k_batch, k_head, k_row,
    denominators, energies,
    scale, heads, tokens, blocks,
    D: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What each block of keys has in one block of queries of one head."""
    i_r, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_batch, i_head = i_h // heads, i_h % heads
    o_row = i_r * SIZE + tl.arange(0, SIZE)  # [R]
    m_row = o_row < tokens  # [R]
    o_d, o_key = tl.arange(0, D), tl.arange(0, KEYS)  # [D], [K]
    p_q = q + i_batch * q_batch + i_head * q_head
    p_k = k + i_batch * k_batch + i_head * k_head
    b_q = tl.load(p_q + o_row.to(tl.int64)[:, None] * q_row + o_d, m_row[:, None], other=0.0)  # [R, D]
    # Rows behind the last have an infinite denominator, and so no attention.
    b_total = tl.load(denominators + i_h * tokens + o_row, m_row, other=float("inf")) * TO_BASE_2  # [R]
    n_rows = tl.minimum(tokens - i_r * SIZE, SIZE).to(tl.float32)
    b_mass = tl.zeros([SIZE, KEYS], tl.float32)  # [R, K]
    for i_k in tl.range(0, tokens, KEYS, num_stages=STAGES):
        o_k = i_k + o_key  # [K]
        m_k = o_k < tokens  # [K]
        i_row = tl.where(m_k, o_k, 0).to(tl.int64)[:, None]  # [K, 1]
        b_s = tl.dot(b_q, tl.trans(tl.load(p_k + i_row * k_row + o_d))) * scale  # [R, K]
        b_p = tl.where(m_k[None, :], tl.exp2(b_s - b_total[:, None]), 0.0)  # [R, K]
        b_mass = tl.where(i_k % SIZE == 0, 0.0, b_mass) + b_p
        if (i_k + KEYS) % SIZE == 0 or i_k + KEYS >= tokens:
            tl.store(energies + (i_h * blocks + i_r) * blocks + i_k // SIZE, tl.sum(b_mass) / n_rows)


def log_denominators(queries: Tensor, keys: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
    """What the torch stage computes: products in the dtype of the inputs (tf32 for float32), sums and exponentials in float32."""
    queries, keys, extra = (readable(x) for x in (queries, keys, conditioning.keys))
    batch, heads, tokens, dim = queries.shape
    found = torch.empty(batch, heads, tokens, dtype=torch.float32, device=queries.device)
    _denominators[(ceil_div(tokens, ROWS), batch * heads)](
        queries, *queries.stride()[:3],
        keys, *keys.stride()[:3],
        extra, *extra.stride()[:3],
        found,
        scale * LOG2_E, heads, tokens, extra.shape[2],
        D=dim, ROWS=ROWS, **_tiles(queries),
    )  # fmt: skip
    return found


def block_energies(queries: Tensor, keys: Tensor, denominators: Tensor, size: int, scale: float) -> Tensor:
    """What the torch stage computes, in about half the time of dense attention and without a matrix of pairs.

    Products in the dtype of the inputs (tf32 for float32), sums and exponentials in float32. ``size`` is a power of two, at
    least 64. See the torch stage for the other arguments.
    """
    queries, keys = readable(queries), readable(keys)
    batch, heads, tokens, dim = queries.shape
    count = ceil_div(tokens, size)
    energies = torch.empty(batch, heads, count, count, dtype=torch.float32, device=queries.device)
    _energies[(count, batch * heads)](
        queries, *queries.stride()[:3],
        keys, *keys.stride()[:3],
        denominators.contiguous(), energies,
        scale * LOG2_E, heads, tokens, count,
        D=dim, SIZE=size, **_tiles(queries),
    )  # fmt: skip
    return energies


def _tiles(queries: Tensor) -> dict[str, int]:
    return TILES_FLOAT32 if queries.dtype == torch.float32 else TILES
