"""Giant clusters cut into pieces, so that no block is much larger than what a group may spend."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..counts import label_dtype
from ..strides import readable
from ..tuning import launched
from ..types import Clusters
from .launches import Kernel

# Rows of one step, and clusters that a program looks at together.
SPLIT = launched(ROWS=16, AT_ONCE=128, STAGES=3, num_warps=2)


@Kernel
@triton.jit(do_not_specialize=["heads", "tokens", "clusters", "count", "largest"], do_not_specialize_on_alignment=["offsets"])
def _split(
    x, x_batch, x_head, x_row,
    order, offsets, centroids,
    new_offsets, sizes, labels, means, rounded,
    heads, tokens, clusters, count, largest,
    D: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One piece of one head: where it lies in the order, its label for its tokens, and their mean.

    The mean of a cluster that is not cut is taken as it is, which reads no token.
    """
    i_piece, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_offset = offsets + i_h * (clusters + 1)
    o = tl.arange(0, AT_ONCE)  # [A]
    # Clusters whose pieces all come before this one, and the number of those pieces.
    i_c, n_before, n_all = 0, 0, 0
    for i_other in range(0, clusters, AT_ONCE):
        m = i_other + o < clusters  # [A]
        b_size = tl.load(p_offset + i_other + o + 1, m, other=0) - tl.load(p_offset + i_other + o, m, other=0)  # [A]
        b_end = n_all + tl.cumsum(((b_size + largest - 1) // largest).to(tl.int32), 0)  # [A]
        m_before = m & (b_end <= i_piece)  # [A]
        i_c += tl.sum(m_before.to(tl.int32), 0)
        n_before = tl.maximum(n_before, tl.max(tl.where(m_before, b_end, 0), 0))
        n_all = tl.max(b_end, 0)
    i_from, i_to = tl.load(p_offset + i_c), tl.load(p_offset + tl.minimum(i_c + 1, clusters))
    i_start = tl.minimum(i_from + (i_piece - n_before) * largest, i_to)
    i_stop = tl.minimum(i_start + largest, i_to)
    tl.store(new_offsets + i_h * (count + 1) + i_piece, i_start)
    tl.store(new_offsets + i_h * (count + 1) + count, tokens, i_piece == count - 1)
    tl.store(sizes + i_h * count + i_piece, i_stop - i_start)

    o_d = tl.arange(0, D)  # [D]
    p_x = x + i_h // heads * x_batch + i_h % heads * x_head
    is_cut = i_to - i_from > largest
    i_summed = tl.where(is_cut, i_stop, i_start)
    b_sum = tl.zeros([ROWS, D], tl.float32)  # [R, D]
    for i_r in tl.range(i_start, i_stop, ROWS, num_stages=STAGES):
        o_r = i_r + tl.arange(0, ROWS)  # [R]
        m_r = o_r < i_stop  # [R]
        i_token = tl.load(order + i_h * tokens + o_r, m_r, other=0).to(tl.int64)  # [R]
        tl.store(labels + i_h * tokens + i_token, i_piece + tl.zeros([ROWS], tl.int32), m_r)
        b_sum += tl.load(p_x + i_token[:, None] * x_row + o_d, (o_r < i_summed)[:, None], other=0.0).to(tl.float32)
    b_mean = tl.sum(b_sum, 0) / tl.maximum(i_stop - i_start, 1).to(tl.float32)  # [D]
    b_whole = tl.load(centroids + (i_h * clusters + tl.minimum(i_c, clusters - 1)) * D + o_d)  # [D]
    b_mean = tl.where(tl.abs(b_mean) < float("inf"), b_mean, b_whole)  # [D]
    b_mean = tl.where(is_cut, b_mean, b_whole)  # [D]
    p_mean = (i_h * count + i_piece) * D + o_d  # [D]
    tl.store(means + p_mean, b_mean)
    tl.store(rounded + p_mean, b_mean.to(rounded.dtype.element_ty))


def split(clusters: Clusters, tokens: Tensor, largest: int, count: int) -> Clusters:
    """The same clusters with those of more than ``largest`` tokens cut into pieces. See the torch stage for the arguments."""
    tokens, offsets = readable(tokens), clusters.offsets.contiguous()
    batch, heads, length, dim = tokens.shape
    new_offsets, sizes = (torch.empty(batch, heads, entries, dtype=torch.int32, device=tokens.device) for entries in (count + 1, count))
    labels = torch.empty(batch, heads, length, dtype=label_dtype(count), device=tokens.device)
    means, rounded = (torch.empty(batch, heads, count, dim, dtype=kind, device=tokens.device) for kind in (torch.float32, tokens.dtype))
    _split[(count, batch * heads)](
        tokens, *tokens.stride()[:3],
        clusters.order, offsets, clusters.centroids,
        new_offsets, sizes, labels, means, rounded,
        heads, length, clusters.sizes.shape[2], count, largest,
        D=dim, **SPLIT,
    )  # fmt: skip
    return Clusters(labels, means, sizes, clusters.order, rounded).with_offsets(new_offsets)
