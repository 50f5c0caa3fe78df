"""Which blocks of a dense call matter, and which heads repeat."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import ANCHOR_EVERY, anchor_sources, block_count
from ..numerics import compute_dtype

# A head repeats where the output of its blocks is this close to that of their anchors.
REPEATING_COSINE = 0.87


def sufficient_blocks(energies: Tensor, threshold: float) -> Tensor:
    """Bool ``[..., n, n]``: in every row the smallest set of blocks that leaves at most ``1 - threshold`` of the attention out.

    At least one. What a row of ``energies`` (float ``[..., n, n]``) lacks to one went to keys that are always exact. Ties go to
    the earlier block.
    """
    smallest_first, order = energies.flip(-1).sort(dim=-1, stable=True)
    left_out = smallest_first.cumsum(-1) <= 1 - threshold
    left_out[..., -1] = False
    return torch.zeros_like(left_out).scatter_(-1, order, ~left_out).flip(-1)


def densest_blocks(energies: Tensor, count: int) -> Tensor:
    """Bool ``[..., n, n]``: in every row the ``count`` blocks of highest energy. Ties go to the earlier block."""
    order = energies.sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(energies, dtype=torch.bool).scatter_(-1, order[..., :count], True)


def repetition(output: Tensor, size: int) -> Tensor:
    """How alike a head's output is from block to block: median cosine of the blocks with their anchors, float ``[H]``.

    Zero where every block is an anchor.

    Args:
        output: dense attention of one batch item, ``[H, N, D]`` in the order of the blocks, any strides.
        size: tokens of a block.
    """
    heads, tokens, _ = output.shape
    count, dtype = block_count(tokens, size), compute_dtype(output.dtype)
    others = torch.arange(count, device=output.device) % ANCHOR_EVERY != 0
    if count < 2:
        return output.new_zeros(heads, dtype=dtype)
    sources = anchor_sources(tokens, size, output.device)
    blocks = torch.arange(tokens, device=output.device) // size
    cosines = output.new_empty(heads, dtype=dtype)
    for head in range(heads):
        own = output[head].to(dtype)
        anchors = own[sources]
        products = torch.stack(((own * anchors).sum(-1), own.square().sum(-1), anchors.square().sum(-1)))
        both, norm, anchor_norm = products.new_zeros(3, count).index_add_(1, blocks, products)
        cosines[head] = (both / (norm * anchor_norm).sqrt().clamp(min=torch.finfo(dtype).tiny))[others].median()
    return cosines
