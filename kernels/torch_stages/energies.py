"""How much attention every block of queries pays to every block of keys."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import compute_dtype
from ..types import Conditioning
from .chunks import row_slices
from .probe import scaled_logits


def block_energies(queries: Tensor, keys: Tensor, conditioning: Conditioning, size: int, scale: float) -> Tensor:
    """``E_rc``, the mean over the queries of block r of their attention to the keys of block c (CalibAtt, arXiv 2603.05503).

    The last block may have fewer tokens. A row sums to one without conditioning keys, to less with them.

    Args:
        queries, keys: ``[B, H, N, D]`` in token order, any strides.
        conditioning: keys that every query sees beside them.
        size: tokens of a block.
        scale: factor of the logits.

    Returns:
        Float ``[B, H, n, n]``.
    """
    batch, heads, tokens, _ = queries.shape
    count, dtype = -(-tokens // size), compute_dtype(queries.dtype)
    energies = queries.new_zeros(batch, heads, count, count, dtype=dtype)
    blocks = torch.arange(tokens, device=queries.device) // size
    lengths = torch.bincount(blocks)
    for b, h in itertools.product(range(batch), range(heads)):
        where = (slice(b, b + 1), slice(h, h + 1))
        for rows in row_slices(tokens, tokens, queries.device):
            some = queries[where][:, :, rows].to(dtype)
            logits = torch.cat((scaled_logits(some, keys[where], scale), scaled_logits(some, conditioning.keys[where], scale)), dim=-1)
            masses = F.pad(logits.softmax(-1)[0, 0, :, :tokens], (0, count * size - tokens)).unflatten(-1, (count, size)).sum(-1)
            energies[b, h].index_add_(0, blocks[rows], masses)
    return energies / lengths[:, None]
