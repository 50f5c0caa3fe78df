"""Ragged clusters cut into tiles of one height."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Clusters


@dataclass(frozen=True)
class RaggedTiles:
    """The members of every cluster, in cluster order, in tiles that do not cross from one cluster to the next.

    All int32. How many tiles there are room for follows from the token count, so that nothing waits for the GPU.

    Attributes:
        owners: ``[B, H, tiles]``, the cluster of each tile; C for tiles that are not needed, which come last.
        starts: ``[B, H, tiles]``, its first row in cluster order.
        stops: ``[B, H, tiles]``, the end of its cluster: further tiles of the cluster may lie before it.
        bounds: ``[B, H, C + 1]``, tiles ``bounds[j]`` to ``bounds[j + 1]`` are those of cluster j.
    """

    owners: Tensor
    starts: Tensor
    stops: Tensor
    bounds: Tensor


def cut(clusters: Clusters, height: int, fewest: int = 0) -> RaggedTiles:
    """Tiles of at most ``height`` rows; an empty cluster has ``fewest`` tiles, 0 or 1."""
    tokens, count = clusters.labels.shape[2], clusters.sizes.shape[2]
    needed = ((clusters.sizes + height - 1) // height).clamp(min=fewest)
    bounds = F.pad(needed.cumsum(-1), (1, 0))
    tile = torch.arange(tokens // height + count, device=bounds.device).expand(*bounds.shape[:2], -1).contiguous()
    owners = torch.searchsorted(bounds[..., 1:].contiguous(), tile, right=True)
    known = owners.clamp(max=count - 1)
    starts = clusters.offsets.gather(-1, known) + (tile - bounds.gather(-1, known)) * height
    stops = clusters.offsets.gather(-1, known + 1)
    return RaggedTiles(*(tensor.to(torch.int32) for tensor in (owners, starts, stops, bounds)))
