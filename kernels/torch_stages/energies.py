"""How much attention every block of queries pays to every block of keys."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import ceil_div, compute_dtype
from ..types import Conditioning
from .chunks import row_slices
from .probe import scaled_logits


def log_denominators(queries: Tensor, keys: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
    """Float ``[B, H, N]``: the logarithm of the sum of every query's exponentials over all keys.

    Args:
        queries, keys: ``[B, H, N, D]``, any strides.
        conditioning: keys that every query sees beside them.
        scale: factor of the logits.
    """
    batch, heads, tokens, _ = queries.shape
    found = queries.new_empty(batch, heads, tokens, dtype=compute_dtype(queries.dtype))
    for b, h in itertools.product(range(batch), range(heads)):
        where = (slice(b, b + 1), slice(h, h + 1))
        for rows in row_slices(tokens, tokens, queries.device):
            some = queries[where][:, :, rows].to(found.dtype)
            parts = [scaled_logits(some, part[where], scale).logsumexp(-1) for part in (keys, conditioning.keys)]
            found[where][:, :, rows] = torch.logaddexp(*parts)
    return found


def block_energies(queries: Tensor, keys: Tensor, denominators: Tensor, size: int, scale: float) -> Tensor:
    """``E_rc``, the mean over the queries of block r of their attention to the keys of block c (CalibAtt, arXiv 2603.05503).

    Blocks are consecutive rows; the last one may have fewer. A row of the result sums to one without conditioning keys, to less
    with them.

    Args:
        queries, keys: ``[B, H, N, D]``, any strides.
        denominators: ``[B, H, N]`` of the queries, see :func:`log_denominators`.
        size: tokens of a block.
        scale: factor of the logits.

    Returns:
        Float ``[B, H, n, n]``.
    """
    batch, heads, tokens, _ = queries.shape
    count = ceil_div(tokens, size)
    energies = denominators.new_zeros(batch, heads, count, count)
    blocks = torch.arange(tokens, device=queries.device) // size
    for b, h in itertools.product(range(batch), range(heads)):
        where = (slice(b, b + 1), slice(h, h + 1))
        for rows in row_slices(tokens, tokens, queries.device):
            logits = scaled_logits(queries[where][:, :, rows].to(energies.dtype), keys[where], scale)
            weights = (logits - denominators[where][:, :, rows, None]).exp_()[0, 0]
            masses = F.pad(weights, (0, count * size - tokens)).unflatten(-1, (count, size)).sum(-1)
            energies[b, h].index_add_(0, blocks[rows], masses)
    return energies / torch.bincount(blocks)[:, None]
