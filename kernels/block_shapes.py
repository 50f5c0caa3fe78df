"""Shapes of blocks: which tokens of a video make one, when consecutive ones are not the best choice."""

from __future__ import annotations

from functools import lru_cache

import numpy
import torch
from torch import Tensor

from .blocks import block_count
from .numerics import ceil_div

# How much a step along frames, rows and columns counts where a piece of the video is halved along its longest side; None
# takes consecutive tokens. Blocks of 128 of 21 x 30 x 52 tokens are then about 1 x 10 x 13 and 21 x 3 x 4.
# Their numbers are written to files: append only, raster stays the first, and other weights need a new version of the file.
SHAPES: dict[str, tuple[float, float, float] | None] = {
    "raster": None,
    "tiles": (100.0, 1.0, 1.0),
    "tubes": (0.05, 1.0, 1.0),
}


@lru_cache(maxsize=8)
def block_table(grid: tuple[int, int, int], size: int) -> Tensor:
    """The block of every token of a ``grid`` of frames, rows and columns, for each of :data:`SHAPES` in turn.

    Every block has ``size`` tokens but the last one, which has what is left; neighbours in number are mostly neighbours in the
    video.

    Returns:
        int32 ``[shapes, N]`` on the CPU, tokens in raster order.
    """
    tables = [_raster(grid, size) if weights is None else _halved(grid, weights, size) for weights in SHAPES.values()]
    return torch.from_numpy(numpy.stack(tables))


@lru_cache(maxsize=8)
def block_orders(grid: tuple[int, int, int], size: int) -> Tensor:
    """int64 ``[shapes, N]`` on the CPU: the tokens of every shape in the order of their blocks, ascending within a block."""
    return block_table(grid, size).argsort(dim=-1, stable=True)


def _raster(grid: tuple[int, int, int], size: int) -> numpy.ndarray:
    return (numpy.arange(numpy.prod(grid)) // size).astype(numpy.int32)


def _halved(grid: tuple[int, int, int], weights: tuple[float, float, float], size: int) -> numpy.ndarray:
    """Pieces halved along their longest side, weighted, where a multiple of ``size`` tokens lies before the cut."""
    places = numpy.indices(grid).reshape(3, -1)
    labels = numpy.empty(places.shape[1], dtype=numpy.int32)
    # Pieces that are still to be halved, the first one last: tokens in raster order, and the number of the first block.
    pieces = [(numpy.arange(places.shape[1]), 0)]
    while pieces:
        tokens, first = pieces.pop()
        blocks = block_count(len(tokens), size)
        if blocks == 1:
            labels[tokens] = first
            continue
        sides = numpy.ptp(places[:, tokens], axis=1)
        axis = numpy.where(sides > 0, (sides + 1) * weights, 0).argmax()
        along = tokens[places[axis, tokens].argsort(kind="stable")]
        before = ceil_div(blocks, 2)
        halves = along[: before * size], along[before * size :]
        pieces += [(numpy.sort(halves[1]), first + before), (numpy.sort(halves[0]), first)]
    return labels
