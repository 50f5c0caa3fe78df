"""Sparse attention over blocks of neighbouring positions with a pooled term for the rest: what needs no clustering.

The routing rule is that of Sol-Attn (arXiv 2607.24027), so the share of exact blocks of ``comfy_kitchen.sol_attn``, which does not
tell it, is counted here too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
# Elements of a chunk of the mask.
MASK_ELEMENTS = 1 << 28


def routed_blocks(queries: Tensor, keys: Tensor, tau: float) -> Tensor:
    """Bool ``[B, H, n, n]``: which blocks of 64 keys are exact for which blocks of 64 queries.

    Exact are scores of block means above ``tau`` standard deviations of such scores, and a block's neighbours.

    Args:
        queries, keys: ``[B, H, N, D]``.
        tau: higher is sparser.
    """
    scores = block_scores(queries, keys)
    return (scores > tau) | _near(scores, 1)


def best_blocks(queries: Tensor, keys: Tensor, shares: Tensor, size: int = BLOCK) -> Tensor:
    """Bool ``[B, H, n, n]``: the blocks of ``size`` tokens of highest score, neighbours first, up to a share of all pairs.

    The last block is taken when at least half of it fits; every block sees itself.

    Args:
        queries, keys: ``[B, H, N, D]``.
        shares: ``[H]``, the share of each head.
    """
    scores, tokens = block_scores(queries, keys, size), queries.shape[2]
    scores = scores.masked_fill(_near(scores, 1), torch.inf)
    sizes = block_sizes(tokens, keys.device, size)
    areas = (sizes[:, None] * sizes).expand_as(scores).flatten(2)
    order = scores.flatten(2).argsort(dim=-1, descending=True, stable=True)
    ordered = areas.gather(-1, order)
    fits = ordered.cumsum(-1) - ordered / 2 <= shares[:, None].to(keys.device).double() * tokens**2
    exact = torch.zeros_like(fits).scatter_(-1, order, fits).view_as(scores)
    return exact | _near(scores, 0)


def block_scores(queries: Tensor, keys: Tensor, size: int = BLOCK) -> Tensor:
    """Float ``[B, H, n, n]``: products of block means, in standard deviations of such products."""
    query_means, key_means = block_means(queries, size), block_means(keys, size)
    key_means = key_means - key_means.mean(2, keepdim=True)
    deviations = (query_means.square() @ key_means.square().mean(2)[..., None]).sqrt()
    return query_means @ key_means.mT / deviations.clamp(min=torch.finfo(torch.float32).tiny)


def _near(scores: Tensor, reach: int) -> Tensor:
    """Bool ``[n, n]``: blocks at most ``reach`` apart."""
    positions = torch.arange(scores.shape[-1], device=scores.device)
    return (positions[:, None] - positions).abs() <= reach


def exact_share(exact: Tensor, tokens: int) -> float:
    """Share of the query-key pairs in the exact blocks of ``[B, H, n, n]``."""
    sizes = block_sizes(tokens, exact.device)
    return ((exact * sizes).sum(-1) * sizes).double().sum(-1).mean().item() / tokens**2


def block_means(tokens: Tensor, size: int = BLOCK) -> Tensor:
    """Float ``[B, H, n, D]``: the means of consecutive blocks of ``[B, H, N, D]``."""
    padded = F.pad(tokens.float(), (0, 0, 0, -tokens.shape[2] % size)).unflatten(2, (-1, size))
    return padded.sum(3) / block_sizes(tokens.shape[2], tokens.device, size)[:, None]


def block_sizes(tokens: int, device: torch.device, size: int = BLOCK) -> Tensor:
    """int64 ``[n]``: ``size``, and what is left in the last block."""
    return (tokens - torch.arange(0, tokens, size, device=device)).clamp(max=size)


def attend_blocks(queries: Tensor, keys: Tensor, values: Tensor, exact: Tensor) -> Tensor:
    """Attention to the exact blocks, and to the mean key and value of every other block, weighted by its size.

    Args:
        queries, keys, values: ``[B, H, N, D]``.
        exact: bool ``[B, H, n, n]``.
    """
    tokens, count = queries.shape[2], exact.shape[-1]
    all_keys = torch.cat((keys, block_means(keys).to(keys.dtype)), dim=2)
    all_values = torch.cat((values, block_means(values).to(values.dtype)), dim=2)
    pooled = block_sizes(tokens, keys.device).log()
    output = torch.empty_like(queries)
    row_elements = queries.shape[0] * queries.shape[1] * (tokens + count)
    step = max(1, MASK_ELEMENTS // (BLOCK * row_elements))
    for block in range(0, count, step):
        rows = slice(block * BLOCK, min(tokens, (block + step) * BLOCK))
        seen = exact[:, :, block : block + step]
        to_tokens = torch.zeros_like(seen, dtype=keys.dtype).masked_fill(~seen, -torch.inf).repeat_interleave(BLOCK, dim=-1)
        to_blocks = pooled.to(keys.dtype).expand_as(seen).masked_fill(seen, -torch.inf)
        mask = torch.cat((to_tokens[..., :tokens], to_blocks), dim=-1).repeat_interleave(BLOCK, dim=2)
        mask = mask[:, :, : rows.stop - rows.start]
        output[:, :, rows] = F.scaled_dot_product_attention(queries[:, :, rows], all_keys, all_values, attn_mask=mask)
    return output


def morton_order(grid: tuple[int, int, int]) -> Tensor:
    """int64 ``[N]``: the tokens of a ``(t, h, w)`` grid along a Z-order curve, on which neighbours in space and time stay near."""
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(length) for length in grid), indexing="ij")).flatten(1)
    code = torch.zeros_like(coordinates[0])
    for bit in range(max(grid).bit_length()):
        for axis, coordinate in enumerate(coordinates):
            code |= (coordinate >> bit & 1) << (3 * bit + 2 - axis)
    return code.argsort()
