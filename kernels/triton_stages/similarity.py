"""Numbers for clusters so that similar ones are neighbours. Called once per generation, so plain torch will do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

POWER_ITERATIONS = 4


def number_by_similarity(centroids: Tensor) -> Tensor:
    """Order ``[B, H, C, D]`` so that rows near each other are alike, by halving along the principal direction again and again.

    Neighbouring clusters that are both selected become one run of rows; the result of attention does not depend on the numbers.
    """
    batch, heads, count, dim = centroids.shape
    length = 1 << (count - 1).bit_length()
    order = torch.arange(length, device=centroids.device).expand(batch, heads, 1, -1)
    rows = F.pad(centroids.float(), (0, 0, 0, length - count)).unsqueeze(2)
    while length > 1:
        order, rows = _sort_segments(order, rows, count)
        length //= 2
        order, rows = order.unflatten(-1, (2, length)).flatten(2, 3), rows.unflatten(-2, (2, length)).flatten(2, 3)
    return centroids.gather(2, order.flatten(2)[..., :count, None].expand(-1, -1, -1, dim))


def _sort_segments(order: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sort every segment, ``order`` ``[B, H, S, M]`` and ``rows`` ``[B, H, S, M, D]``, along its principal direction.

    Entries of ``order`` from ``count`` on are padding and stay last.
    """
    valid = (order < count)[..., None]
    means = (rows * valid).sum(-2) / valid.sum(-2).clamp(min=1)
    spread = torch.where(valid, rows - means[..., None, :], 0)
    farthest = spread.square().sum(-1).argmax(-1)[..., None, None]
    direction = spread.gather(-2, farthest.expand(*farthest.shape[:-1], rows.shape[-1]))
    for _ in range(POWER_ITERATIONS):
        direction = F.normalize(((spread @ direction.mT) * spread).sum(-2, keepdim=True), dim=-1)
    # Every segment begins at the side of the one before it and ends at the side of the next.
    before = torch.cat((means[:, :, :1], means[:, :, :-1]), dim=2)
    after = torch.cat((means[:, :, 1:], means[:, :, -1:]), dim=2)
    along = ((after - before)[..., None, :] * direction).sum(-1, keepdim=True)
    direction = torch.where(along < 0, -direction, direction)
    # Products that overflow must not rank behind the padding.
    along = (spread * direction).sum(-1).nan_to_num()
    place = along.masked_fill(~valid.squeeze(-1), torch.inf).argsort(dim=-1, stable=True)
    return order.gather(-1, place), rows.gather(-2, place[..., None].expand(rows.shape))
