"""Ragged clusters cut into tiles of one height."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..types import Clusters

# Clusters, and tiles of a cluster, that one program looks at together.
TILES_AT_ONCE = 128


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


@triton.jit(do_not_specialize=["clusters", "tiles", "fewest"])
def _cut(
    offsets, owners, starts, stops, bounds,
    clusters, tiles, fewest,
    HEIGHT: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The tiles of one cluster of one head, or behind the last cluster those that are not needed."""
    i_c, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_offset = offsets + i_h * (clusters + 1)
    o = tl.arange(0, AT_ONCE)  # [A]
    n_before = 0
    for i_other in range(0, i_c, AT_ONCE):
        m = i_other + o < i_c  # [A]
        b_size = tl.load(p_offset + i_other + o + 1, m, other=0) - tl.load(p_offset + i_other + o, m, other=0)  # [A]
        b_count = tl.maximum((b_size + HEIGHT - 1) // HEIGHT, fewest)  # [A]
        n_before += tl.sum(tl.where(m, b_count, 0).to(tl.int32), 0)
    tl.store(bounds + i_h * (clusters + 1) + i_c, n_before)
    i_start = tl.load(p_offset + i_c).to(tl.int32)
    i_stop = tl.load(p_offset + tl.minimum(i_c + 1, clusters)).to(tl.int32)
    n_tiles = tl.maximum((i_stop - i_start + HEIGHT - 1) // HEIGHT, fewest)
    n_tiles = tl.where(i_c < clusters, n_tiles, tiles - n_before)
    for i_tile in range(0, n_tiles, AT_ONCE):
        m = i_tile + o < n_tiles  # [A]
        p_tile = i_h * tiles + n_before + i_tile + o  # [A]
        tl.store(owners + p_tile, i_c + tl.zeros([AT_ONCE], tl.int32), m)
        tl.store(starts + p_tile, i_start + (i_tile + o) * HEIGHT, m)
        tl.store(stops + p_tile, i_stop + tl.zeros([AT_ONCE], tl.int32), m)


def cut(clusters: Clusters, height: int, fewest: int = 0) -> RaggedTiles:
    """Tiles of at most ``height`` rows; an empty cluster has ``fewest`` tiles, 0 or 1."""
    *shape, tokens = clusters.labels.shape
    count = clusters.sizes.shape[2]
    offsets = clusters.offsets.contiguous()
    # Never more: each cluster has at most one tile that is not full, and an empty one has at most that.
    tiles = tokens // height + count
    owners, starts, stops = torch.empty(3, *shape, tiles, dtype=torch.int32, device=offsets.device)
    bounds = torch.empty(offsets.shape, dtype=torch.int32, device=offsets.device)
    _cut[(count + 1, shape[0] * shape[1])](
        offsets, owners, starts, stops, bounds,
        count, tiles, fewest,
        HEIGHT=height, AT_ONCE=TILES_AT_ONCE, num_warps=4,
    )  # fmt: skip
    return RaggedTiles(owners, starts, stops, bounds)
