"""Blocks of tokens in the place of clusters, and heads that are computed for some of them only."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import ceil_div
from .settings import BlockRouting
from .types import Clusters

# Tokens of a block (CalibAtt, arXiv 2603.05503).
BLOCK = 128
# In a repeating head the first of so many consecutive blocks of queries is computed; it stands for the others.
ANCHOR_EVERY = 4


def block_count(tokens: int, size: int) -> int:
    """Blocks of ``size`` tokens, the last one with what is left."""
    return ceil_div(tokens, size)


def block_labels(tokens: Tensor, routing: BlockRouting) -> Tensor:
    """int32 ``[B, H, N]``: the block of each of the ``tokens`` ``[B, H, N, D]``."""
    labels = routing.labels
    if labels is None:
        labels = torch.arange(tokens.shape[2], device=tokens.device, dtype=torch.int32) // routing.size
    return labels.expand(*tokens.shape[:3]).contiguous()


def anchor_sources(tokens: int, size: int, device: torch.device) -> Tensor:
    """int64 ``[N]``: for each row in block order the one at its place in the anchor of its block; itself in an anchor."""
    row = torch.arange(tokens, device=device)
    return row - row // size % ANCHOR_EVERY * size


def exact_blocks(routing: BlockRouting, heads: range, compensated: bool) -> Tensor:
    """Bool ``[1, H, n, n]`` for some heads; a row without any block has its own where nothing else would be left to attend to."""
    exact = routing.exact[None, heads.start : heads.stop]
    if compensated:
        return exact
    own = torch.eye(exact.shape[-1], dtype=torch.bool, device=exact.device)
    return exact | (own & ~exact.any(-1, keepdim=True))


def anchored(groups: Clusters, routing: BlockRouting, heads: range) -> Clusters:
    """The groups of ``heads``, without members in the repeating ones wherever a group is no anchor.

    Their order has the members of the anchors first, so that nothing behind the offsets is ever visited.
    """
    repeating = _repeating(routing, heads)
    if not repeating:
        return groups
    spared = torch.arange(groups.sizes.shape[2], device=groups.sizes.device) % ANCHOR_EVERY != 0
    order, sizes, labels = groups.order.clone(), groups.sizes.clone(), groups.sorted_labels
    # One head at a time: a list of heads would be copied to the device, and the host would wait.
    for head in repeating:
        anchors_first = spared[labels[:, head]].to(torch.uint8).argsort(dim=-1, stable=True)
        order[:, head] = groups.order[:, head].gather(-1, anchors_first)
        sizes[:, head].masked_fill_(spared, 0)
    return Clusters(groups.labels, groups.centroids, sizes, order)


def copy_anchors(output: Tensor, groups: Clusters, routing: BlockRouting, heads: range) -> None:
    """Fill the rows of ``output`` ``[1, H, N, D]`` that :func:`anchored` left out of ``groups``."""
    sources = anchor_sources(output.shape[2], routing.size, output.device)
    for head in _repeating(routing, heads):
        order = groups.order[0, head].long()
        output[0, head, order] = output[0, head, order[sources]]


def _repeating(routing: BlockRouting, heads: range) -> list[int]:
    """Places within ``heads`` of the repeating heads."""
    return [head - heads.start for head in routing.repeating if head in heads]
