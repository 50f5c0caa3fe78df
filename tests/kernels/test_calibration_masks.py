"""How blocks are chosen, packed and shared, and which heads repeat."""

import numpy
import pytest
import torch
from svg_ear.kernels.blocks import ANCHOR_EVERY, BLOCK
from svg_ear.kernels.calibration import Density, Thresholds
from svg_ear.kernels.calibration.bits import jaccard, pack, unpack
from svg_ear.kernels.calibration.selection import densest_blocks, repetition, sufficient_blocks
from svg_ear.kernels.calibration.sharing import merge_masks, share_masks

TOKENS = 9 * BLOCK - 40


@pytest.mark.parametrize(
    ("tokens", "steps", "start", "end"), [(75600, 50, 0.99, 0.9026), (32760, 50, 0.99, 0.8422), (75600, 4, 0.863, 0.763)]
)
def test_published_thresholds(tokens, steps, start, end):
    thresholds = Thresholds.published(tokens, steps)
    assert thresholds.at(0) == pytest.approx(start)
    assert thresholds.at(10) == pytest.approx(end, abs=1e-4)
    falling = [thresholds.at(step / steps) for step in range(steps)]
    assert falling == sorted(falling, reverse=True)


def test_a_threshold_after_a_fifth_of_the_steps():
    assert Thresholds(0.8, 0.99, 16.0).at(0.2) == pytest.approx(0.8 + 0.19 * 0.0407622)
    with pytest.raises(ValueError, match="last not above first"):
        Thresholds(0.9, 0.8, 1.0)


def test_the_smallest_sufficient_set_is_kept():
    """Against trying all sets."""
    generator = torch.Generator().manual_seed(0)
    energies = torch.rand(3, 6, 6, generator=generator).pow(3).double()
    energies /= energies.sum(-1, keepdim=True)
    for threshold in (0.3, 0.7, 0.9, 0.999):
        kept = sufficient_blocks(energies, threshold)
        sets = torch.cartesian_prod(*[torch.tensor([False, True])] * 6)
        masses = energies.flatten(0, 1) @ sets.double().T
        fewest = torch.where(masses >= threshold - 1e-12, sets.sum(-1), 99).amin(-1)
        assert torch.equal(kept.sum(-1).flatten(), fewest)
        assert ((energies * kept).sum(-1) >= threshold - 1e-12).all()


def test_energy_of_conditioning_keys_counts_as_kept():
    energies = torch.tensor([[[0.3, 0.1, 0.05], [0.0, 0.0, 0.0], [0.2, 0.2, 0.2]]])
    assert sufficient_blocks(energies, 0.81)[0].tolist() == [[True, False, False], [True, False, False], [True, True, True]]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_packing_keeps_every_bit(count):
    bits = torch.rand(3, 5, count, generator=torch.Generator().manual_seed(count)) < 0.5
    packed = pack(bits)
    assert packed.shape == (3, 5, -(-count // 8)) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, count), bits)
    assert numpy.array_equal(packed.numpy(), numpy.packbits(bits.numpy(), axis=-1, bitorder="little"))


def test_the_densest_blocks_are_kept():
    energies = torch.tensor([[0.1, 0.4, 0.4, 0.1], [0.0, 0.0, 0.0, 1.0]])
    assert densest_blocks(energies, 1).tolist() == [[False, True, False, False], [False, False, False, True]]
    assert densest_blocks(energies, 3).sum(-1).tolist() == [3, 3]
    budget = Density(0.5)
    kept = budget.select(energies, 0.3)
    assert kept.tolist() == [[False, True, True, False], [True, False, False, True]]
    assert budget.cost(energies, kept).item() == pytest.approx(0.1)
    assert Density(0.01).select(energies, 0.0).sum(-1).tolist() == [1, 1]
    with pytest.raises(ValueError, match="share is 0"):
        Density(0.0)


def test_steps_that_agree_share_the_blocks_of_all():
    masks = torch.zeros(4, 10, 10, dtype=bool)
    masks[0, :, :5] = masks[1, :, :5] = masks[2, :, :3] = masks[3, :, :3] = True
    masks[1, 0, 9] = True
    packed = pack(masks).numpy()
    shared, members = share_masks(packed, 0.97)
    assert members.tolist() == [0, 0, 1, 1]
    assert numpy.array_equal(shared[0], packed[0] | packed[1]) and numpy.array_equal(shared[1], packed[2])
    assert jaccard(packed[0], packed[1]) == pytest.approx(50 / 51)
    assert share_masks(packed, 0.99)[1].tolist() == [0, 1, 2, 2]


def test_masks_are_merged_where_it_costs_least():
    masks = torch.zeros(3, 10, 10, dtype=bool)
    masks[0, :, :2] = masks[1, :, :5] = masks[2, :, :6] = True
    packed = list(pack(masks).numpy())
    merged, members = merge_masks(packed, numpy.array([0, 0, 1, 2], dtype=numpy.int32), 2)
    assert members.tolist() == [0, 0, 1, 1] and numpy.array_equal(merged[0], packed[0]) and numpy.array_equal(merged[1], packed[2])
    assert merge_masks(packed, numpy.array([0, 0, 1, 2], dtype=numpy.int32), 3)[1].tolist() == [0, 0, 1, 2]
    merged, members = merge_masks(packed, numpy.array([0, 0, 1, 2], dtype=numpy.int32), 1)
    assert members.tolist() == [0] * 4 and numpy.array_equal(merged[0], packed[2])


def test_repetition_is_the_median_cosine_with_the_anchor():
    generator = torch.Generator().manual_seed(3)
    output = torch.randn(2, TOKENS, 64, generator=generator, dtype=torch.float64)
    blocks = [output[:, start : start + BLOCK].flatten(1) for start in range(0, TOKENS, BLOCK)]
    cosines = []
    for place, own in enumerate(blocks):
        anchor = blocks[place - place % ANCHOR_EVERY][:, : own.shape[1]]
        if place % ANCHOR_EVERY:
            cosines.append(torch.cosine_similarity(own, anchor, dim=1))
    torch.testing.assert_close(repetition(output, BLOCK), torch.stack(cosines).median(0).values)
    assert (repetition(output[:, :BLOCK], BLOCK) == 0).all()
