"""Tokens in the order of their labels, by counting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..numerics import ceil_div
from ..tuning import launched
from .launches import Kernel
from .tables import table_size

# Tokens that one program counts, and sorts for itself to put them in their places; tiles whose counts it adds up at once.
TOKENS = 2048
TILES_AT_ONCE = 8
# Triton's interpreter takes a step of Python for every element that a sort compares.
INTERPRETED_TOKENS = 64


@dataclass(frozen=True)
class Sorted:
    """Token positions by label, positions ascending within a label. All int32.

    Attributes:
        order: ``[B, H, N]``.
        offsets: ``[B, H, count + 1]``: the positions of label j are ``order[offsets[j]:offsets[j + 1]]``.
        sizes: ``[B, H, count]``.
    """

    order: Tensor
    offsets: Tensor
    sizes: Tensor


@Kernel
@triton.jit(do_not_specialize=["tokens", "tiles", "clusters"])
def _count(
    labels, counts,
    tokens, tiles, clusters,
    LOG_C: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """How many of TOKENS tokens of one head have each label."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n = i_tile * TOKENS + tl.arange(0, TOKENS)  # [N]
    o_c = tl.arange(0, 1 << LOG_C)  # [C]
    # The table has more places than there are labels: the last takes what is no token.
    b_label = tl.load(labels + i_h * tokens + o_n, o_n < tokens, other=(1 << LOG_C) - 1).to(tl.int32)  # [N]
    b_count = tl.histogram(b_label, 1 << LOG_C)  # [C]
    tl.store(counts + (i_h * tiles + i_tile) * clusters + o_c, b_count, o_c < clusters)


@Kernel
@triton.jit(do_not_specialize=["tokens", "tiles", "clusters"])
def _place(
    labels, counts, order, offsets, sizes,
    tokens, tiles, clusters,
    LOG_C: tl.constexpr, TOKENS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The places of TOKENS tokens of one head among those sorted by label."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_c = tl.arange(0, 1 << LOG_C)  # [C]
    m_c = o_c < clusters  # [C]
    p_counts = counts + i_h * tiles * clusters
    b_before = tl.zeros([1 << LOG_C], tl.int32)  # [C], of each label in the tiles before this one
    b_size = tl.zeros([1 << LOG_C], tl.int32)  # [C]
    for i_other in range(0, tiles, AT_ONCE):
        o_t = i_other + tl.arange(0, AT_ONCE)[:, None]  # [T, 1]
        b_count = tl.load(p_counts + o_t * clusters + o_c[None, :], (o_t < tiles) & m_c[None, :], other=0)  # [T, C]
        b_before += tl.sum(tl.where(o_t < i_tile, b_count, 0), 0)
        b_size += tl.sum(b_count, 0)
    b_start = tl.cumsum(b_size, 0) - b_size  # [C]
    if i_tile == 0:
        tl.store(sizes + i_h * clusters + o_c, b_size, m_c)
        # Behind the last label there are no more tokens, so its start is the end of all.
        tl.store(offsets + i_h * (clusters + 1) + o_c, b_start, o_c <= clusters)

    # Label and position in one number: sorted, the tokens of a label are a run, which begins at the label's next free place.
    o_n = tl.arange(0, TOKENS)  # [N]
    i_first = i_tile * TOKENS
    b_label = tl.load(labels + i_h * tokens + i_first + o_n, i_first + o_n < tokens, other=(1 << LOG_C) - 1).to(tl.int32)  # [N]
    b_sorted = tl.sort(b_label * TOKENS + o_n)  # [N]
    b_own = tl.load(p_counts + i_tile * clusters + o_c, m_c, other=0)  # [C]
    b_shift = b_start + b_before - (tl.cumsum(b_own, 0) - b_own)  # [C]
    b_place = tl.gather(b_shift, b_sorted // TOKENS, 0) + o_n  # [N]
    i_token = i_first + b_sorted % TOKENS  # [N]
    tl.store(order + i_h * tokens + b_place, i_token, i_token < tokens)


def sort_by_label(labels: Tensor, count: int) -> Sorted:
    """Sort tokens by their ``labels``, integer ``[B, H, N]`` below ``count``; stable.

    Two passes, because labels are few and known: count those of every tile of tokens, then sort each tile and put its runs in place.
    """
    batch, heads, tokens = labels.shape
    at_once = INTERPRETED_TOKENS if labels.device.type == "cpu" else TOKENS
    tiles, size = ceil_div(tokens, at_once), table_size(count + 1)
    labels = labels.contiguous()
    counts, order, offsets, sizes = (
        torch.empty(batch, heads, length, dtype=torch.int32, device=labels.device) for length in (tiles * count, tokens, count + 1, count)
    )
    grid = (tiles, batch * heads)
    _count[grid](labels, counts, tokens, tiles, count, LOG_C=size, TOKENS=at_once, **launched(num_warps=4))
    _place[grid](
        labels, counts, order, offsets, sizes,
        tokens, tiles, count,
        LOG_C=size, TOKENS=at_once, AT_ONCE=TILES_AT_ONCE, **launched(num_warps=8),
    )  # fmt: skip
    return Sorted(order, offsets, sizes)
