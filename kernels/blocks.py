"""Blocks of consecutive tokens in the place of clusters, and heads that are computed for some of them only."""

from __future__ import annotations

import torch
from torch import Tensor

from .types import BlockRouting, Clusters

# Tokens of a block (CalibAtt, arXiv 2603.05503).
BLOCK = 128
# In a repeating head the first of so many consecutive blocks of queries is computed; it stands for the others.
ANCHOR_EVERY = 4


def block_count(tokens: int, size: int) -> int:
    """Blocks of ``size`` tokens, the last one with what is left."""
    return -(-tokens // size)


def block_labels(tokens: Tensor, size: int) -> Tensor:
    """int32 ``[B, H, N]``: the block of each of the ``tokens`` ``[B, H, N, D]``."""
    labels = torch.arange(tokens.shape[2], device=tokens.device, dtype=torch.int32) // size
    return labels.expand(*tokens.shape[:2], -1).contiguous()


def anchor_sources(tokens: int, size: int, device: torch.device) -> Tensor:
    """int64 ``[N]``: for each token the one at its place in the anchor of its block; itself in an anchor."""
    position = torch.arange(tokens, device=device)
    return position - position // size % ANCHOR_EVERY * size


def exact_blocks(routing: BlockRouting, heads: slice, compensated: bool) -> Tensor:
    """Bool ``[1, H, n, n]`` for some heads; a row without any block has its own where nothing else would be left to attend to."""
    exact = routing.exact[None, heads]
    if compensated:
        return exact
    own = torch.eye(exact.shape[-1], dtype=torch.bool, device=exact.device)
    return exact | (own & ~exact.any(-1, keepdim=True))


def anchored(groups: Clusters, routing: BlockRouting, heads: slice) -> Clusters:
    """The groups of ``heads``, without members in the repeating ones wherever a group is no anchor.

    Their order has the members of the anchors first, so that nothing behind the offsets is ever visited.
    """
    repeating = _repeating(routing, heads)
    if not repeating:
        return groups
    spared = torch.arange(groups.sizes.shape[2], device=groups.sizes.device) % ANCHOR_EVERY != 0
    order, sizes = groups.order.clone(), groups.sizes.clone()
    # One head at a time: a list of heads would be copied to the device, and the host would wait.
    for head in repeating:
        is_spared = spared[groups.labels[:, head].long()]
        order[:, head] = is_spared.to(torch.uint8).argsort(dim=-1, stable=True).to(order.dtype)
        sizes[:, head].masked_fill_(spared, 0)
    return Clusters(groups.labels, groups.centroids, sizes, order)


def copy_anchors(output: Tensor, routing: BlockRouting, heads: slice) -> None:
    """Fill the rows of ``output`` ``[1, H, N, D]`` that :func:`anchored` left out."""
    sources = anchor_sources(output.shape[2], routing.size, output.device)
    for head in _repeating(routing, heads):
        output[:, head] = output[:, head, sources]


def _repeating(routing: BlockRouting, heads: slice) -> list[int]:
    """Places within ``heads`` of the repeating heads."""
    return [head - heads.start for head in routing.repeating if heads.start <= head < heads.stop]
