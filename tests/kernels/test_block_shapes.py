"""Which tokens make a block."""

import pytest
import torch
from svg_ear.kernels.block_shapes import SHAPES, block_orders, block_table


@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 5, 7), (4, 8, 8), (5, 14, 24), (21, 30, 52)])
@pytest.mark.parametrize("size", [16, 128])
def test_every_block_is_full_but_the_last(grid, size):
    tokens = torch.tensor(grid).prod().item()
    table = block_table(grid, size)
    assert table.shape == (len(SHAPES), tokens) and table.dtype == torch.int32
    for labels in table:
        sizes = labels.bincount()
        assert (sizes[:-1] == size).all() and 1 <= sizes[-1] <= size
    assert torch.equal(table[list(SHAPES).index("raster")], torch.arange(tokens, dtype=torch.int32) // size)
    orders = block_orders(grid, size)
    assert torch.equal(orders.sort(-1).values, torch.arange(tokens).expand_as(orders))
    assert (table.gather(-1, orders).diff(dim=-1) >= 0).all()


def sides(grid, shape):
    """Median sides of the blocks of 128, in frames, rows and columns."""
    labels = block_table(grid, 128)[list(SHAPES).index(shape)]
    places = torch.cartesian_prod(*map(torch.arange, grid))
    blocks = [places[labels == block] for block in range(labels.max() + 1)]
    return torch.stack([block.amax(0) - block.amin(0) + 1 for block in blocks]).double().median(0).values


@pytest.mark.parametrize("grid", [(21, 30, 52), (21, 45, 80), (33, 45, 80)])
def test_tiles_lie_in_a_frame_and_tubes_go_through_all(grid):
    frames, rows, columns = sides(grid, "tiles")
    assert frames == 1 and 8 <= rows <= 16 and 8 <= columns <= 16
    frames, rows, columns = sides(grid, "tubes")
    assert frames == grid[0] and rows < 5 and columns < 5
