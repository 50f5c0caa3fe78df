"""Ragged clusters cut into tiles of one height."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import Tiles, launched
from ..types import Clusters, parts
from .launches import Kernel

# Clusters, and tiles of a cluster, that one program looks at together.
TILES_AT_ONCE = 128


@dataclass(frozen=True)
class RaggedTiles:
    """The members of every cluster, in cluster order, in tiles that do not cross from one cluster to the next.

    All int32. How many tiles there are room for follows from the token count, so that nothing waits for the GPU.

    Attributes:
        table: ``[B, H, tiles, 3]``: owner, start and stop of each tile.
        bounds: ``[B, H, C + 1]``, tiles ``bounds[j]`` to ``bounds[j + 1]`` are those of cluster j; None for tiles of rests, of which
            there is one place for each cluster.
    """

    table: Tensor
    bounds: Tensor | None = None

    @property
    def count(self) -> int:
        """Tiles of a head, needed or not."""
        return self.table.shape[2]

    @property
    def owners(self) -> Tensor:
        """``[B, H, tiles]``: the cluster of each tile; C for those not needed, which come last (rests: in their cluster's place)."""
        return self.table[..., 0]

    @property
    def starts(self) -> Tensor:
        """``[B, H, tiles]``: its first row in cluster order."""
        return self.table[..., 1]

    @property
    def stops(self) -> Tensor:
        """``[B, H, tiles]``: the end of its cluster: further tiles of the cluster may lie before it."""
        return self.table[..., 2]

    def parts(self, heads: int) -> list[RaggedTiles]:
        """The tiles of so many heads at a time."""
        tables = parts(self.table, heads)
        return list(map(RaggedTiles, tables, [None] * len(tables) if self.bounds is None else parts(self.bounds, heads)))


@triton.jit
def load_tile(table, i_tile):
    """Owner, start and stop of one tile of the head whose ``table`` it is."""
    p_tile = table + i_tile * 3
    return tl.load(p_tile), tl.load(p_tile + 1), tl.load(p_tile + 2)


@triton.jit
def _store_tiles(table, i_tile, b_owner, b_start, b_stop, m):
    """Write some tiles."""
    p_tile = table + i_tile * 3
    tl.store(p_tile, b_owner, m)
    tl.store(p_tile + 1, b_start, m)
    tl.store(p_tile + 2, b_stop, m)


@Kernel
@triton.jit(do_not_specialize=["clusters", "tiles", "fewest"], do_not_specialize_on_alignment=["offsets"])
def _cut(
    offsets, table, bounds, rest_table,
    clusters, tiles, fewest,
    HEIGHT: tl.constexpr, REST: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The tiles of one cluster of one head and what is left of it, or behind the last cluster the tiles that are not needed."""
    i_c, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p_offset = offsets + i_h * (clusters + 1)
    o = tl.arange(0, AT_ONCE)  # [A]
    n_before = 0
    for i_other in range(0, i_c, AT_ONCE):
        m = i_other + o < i_c  # [A]
        b_size = tl.load(p_offset + i_other + o + 1, m, other=0) - tl.load(p_offset + i_other + o, m, other=0)  # [A]
        b_count = tl.maximum((b_size + HEIGHT - 1 - REST) // HEIGHT, fewest)  # [A]
        n_before += tl.sum(tl.where(m, b_count, 0).to(tl.int32), 0)
    tl.store(bounds + i_h * (clusters + 1) + i_c, n_before)
    i_start = tl.load(p_offset + i_c).to(tl.int32)
    i_stop = tl.load(p_offset + tl.minimum(i_c + 1, clusters)).to(tl.int32)
    n_tiles = tl.maximum((i_stop - i_start + HEIGHT - 1 - REST) // HEIGHT, fewest)
    if REST > 0:
        if i_c < clusters:
            i_rest = i_start + n_tiles * HEIGHT
            _store_tiles(rest_table, i_h * clusters + i_c, tl.where(i_rest < i_stop, i_c, clusters), i_rest, i_stop, None)
    n_tiles = tl.where(i_c < clusters, n_tiles, tiles - n_before)
    for i_tile in range(0, n_tiles, AT_ONCE):
        o_tile = i_tile + o  # [A]
        _store_tiles(table, i_h * tiles + n_before + o_tile, i_c, i_start + o_tile * HEIGHT, i_stop, o_tile < n_tiles)


def cut(clusters: Clusters, height: int, fewest: int = 0) -> RaggedTiles:
    """Tiles of at most ``height`` rows; an empty cluster has ``fewest`` tiles, 0 or 1."""
    return _cut_once(clusters, height, 0, fewest)[0]


def cut_in_two(clusters: Clusters, height: int, rest: int) -> tuple[RaggedTiles, RaggedTiles]:
    """Tiles of at most ``height`` rows, and a tile for what is left of each cluster where it is no more than ``rest`` rows."""
    return _cut_once(clusters, height, rest, 0)


def cut_for(clusters: Clusters, shapes: tuple[Tiles, ...]) -> tuple[RaggedTiles, ...]:
    """Tiles of the one or two ``shapes`` of the attention kernel, the taller one first."""
    return (cut(clusters, shapes[0].rows),) if len(shapes) == 1 else cut_in_two(clusters, *(tiles.rows for tiles in shapes))


def _cut_once(clusters: Clusters, height: int, rest: int, fewest: int) -> tuple[RaggedTiles, ...]:
    """Tiles, and rests where ``rest`` is not 0, of all heads at the first request and remembered with them."""
    part = clusters.part
    if part is None:
        return _launch(clusters, height, rest, fewest)
    key = (_launch, height, rest, fewest)
    if key not in part.whole.derived:
        cuts = _launch(part.whole, height, rest, fewest)
        part.whole.derived[key] = list(zip(*(tiles.parts(part.heads) for tiles in cuts)))
    return part.whole.derived[key][part.number]


def _launch(clusters: Clusters, height: int, rest: int, fewest: int) -> tuple[RaggedTiles, ...]:
    batch, heads, tokens = clusters.labels.shape
    offsets = clusters.offsets.contiguous()
    count = offsets.shape[-1] - 1

    def empty(*size: int) -> Tensor:
        return torch.empty(batch, heads, *size, dtype=torch.int32, device=offsets.device)

    # Never more: each cluster has at most one tile that is not full, and an empty one has at most that.
    tiles = RaggedTiles(empty(tokens // height + count, 3), empty(count + 1))
    rests = RaggedTiles(empty(count, 3)) if rest else None
    _cut[(count + 1, batch * heads)](
        offsets, tiles.table, tiles.bounds, rests.table if rests else None,
        count, tiles.count, fewest,
        HEIGHT=height, REST=rest, AT_ONCE=TILES_AT_ONCE, **launched(num_warps=4),
    )  # fmt: skip
    return (tiles, rests) if rests else (tiles,)
