"""Tokens in the order of their labels, by counting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tables import table_size

# Tokens that one program counts and puts in their places, in chunks that are compared with the chunks before.
TOKENS = 1024
CHUNK = 64


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


@triton.jit(do_not_specialize=["tokens", "tiles", "clusters"])
def _place(
    labels, counts, order, offsets, sizes,
    tokens, tiles, clusters,
    LOG_C: tl.constexpr, TOKENS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The places of TOKENS tokens of one head among those sorted by label."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_c = tl.arange(0, 1 << LOG_C)  # [C]
    m_c = o_c < clusters  # [C]
    b_before = tl.zeros([1 << LOG_C], tl.int32)  # [C], of each label in the tiles before this one
    b_size = tl.zeros([1 << LOG_C], tl.int32)  # [C]
    for i_other in range(0, tiles):
        b_count = tl.load(counts + (i_h * tiles + i_other) * clusters + o_c, m_c, other=0)  # [C]
        b_before += tl.where(i_other < i_tile, b_count, 0)
        b_size += b_count
    b_start = tl.cumsum(b_size, 0) - b_size  # [C]
    if i_tile == 0:
        tl.store(sizes + i_h * clusters + o_c, b_size, m_c)
        # Behind the last label there are no more tokens, so its start is the end of all.
        tl.store(offsets + i_h * (clusters + 1) + o_c, b_start, o_c <= clusters)

    b_first = b_start + b_before  # [C], the place of the first token of each label in this tile
    o_s = tl.arange(0, CHUNK)  # [S]
    i_first = i_tile * TOKENS
    for i_n in range(i_first, tl.minimum(i_first + TOKENS, tokens), CHUNK):
        m_n = i_n + o_s < tokens  # [S]
        b_label = tl.load(labels + i_h * tokens + i_n + o_s, m_n, other=(1 << LOG_C) - 1).to(tl.int32)  # [S]
        b_place = tl.gather(b_first, b_label, 0)  # [S]
        for i_m in range(i_first, i_n + 1, CHUNK):
            o_m = i_m + o_s  # [S]
            b_other = tl.load(labels + i_h * tokens + o_m, o_m < tokens, other=(1 << LOG_C) - 1).to(tl.int32)  # [S]
            m_earlier = (b_label[:, None] == b_other[None, :]) & (o_m[None, :] < (i_n + o_s)[:, None])  # [S, S]
            b_place += tl.sum(m_earlier.to(tl.int32), 1)
        tl.store(order + i_h * tokens + b_place, i_n + o_s, m_n)


def sort_by_label(labels: Tensor, count: int) -> Sorted:
    """Sort tokens by their ``labels``, integer ``[B, H, N]`` below ``count``; stable.

    Two passes, because labels are few and known: count those of every tile of tokens, then give each token its place.
    """
    batch, heads, tokens = labels.shape
    tiles, size = triton.cdiv(tokens, TOKENS), table_size(count + 1)
    labels = labels.contiguous()
    lengths = (tiles * count, tokens, count + 1, count)
    memory = torch.empty(batch * heads * sum(lengths), dtype=torch.int32, device=labels.device)
    parts = memory.split([batch * heads * length for length in lengths])
    counts, order, offsets, sizes = (part.view(batch, heads, length) for part, length in zip(parts, lengths))
    grid = (tiles, batch * heads)
    _count[grid](labels, counts, tokens, tiles, count, LOG_C=size, TOKENS=TOKENS, num_warps=4)
    _place[grid](labels, counts, order, offsets, sizes, tokens, tiles, count, LOG_C=size, TOKENS=TOKENS, CHUNK=CHUNK, num_warps=4)
    return Sorted(order, offsets, sizes)
