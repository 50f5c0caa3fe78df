"""What a calibration finds, and how it is looked up."""

from dataclasses import replace

import numpy
import pytest
import torch
from kernel_inputs import clustered
from live_memory import LiveMemory
from svg_ear.kernels import SequenceLayout
from svg_ear.kernels.blocks import ANCHOR_EVERY, BLOCK
from svg_ear.kernels.calibration import Calibration, ModelIdentity, Thresholds
from svg_ear.kernels.calibration.bits import VoteCounts, jaccard, pack, unpack
from svg_ear.kernels.calibration.selection import repetition, select_blocks
from svg_ear.kernels.calibration.sharing import merge_masks, share_masks
from torch.nn.functional import scaled_dot_product_attention

TOKENS = 9 * BLOCK - 40
BLOCKS = 9
MODEL = ModelIdentity("WanModel", 2, 3, 64, (256, 16, 1, 2, 2))
GRID = (2, 8, 69)
SCHEDULE = (1.0, 0.8, 0.5, 0.2, 0.0)
LAYOUTS = [SequenceLayout(range(TOKENS))]


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
        kept = select_blocks(energies, threshold)
        sets = torch.cartesian_prod(*[torch.tensor([False, True])] * 6)
        masses = energies.flatten(0, 1) @ sets.double().T
        fewest = torch.where(masses >= threshold - 1e-12, sets.sum(-1), 99).amin(-1)
        assert torch.equal(kept.sum(-1).flatten(), fewest)
        assert ((energies * kept).sum(-1) >= threshold - 1e-12).all()


def test_energy_of_conditioning_keys_counts_as_kept():
    energies = torch.tensor([[[0.3, 0.1, 0.05], [0.0, 0.0, 0.0], [0.2, 0.2, 0.2]]])
    assert select_blocks(energies, 0.81)[0].tolist() == [[True, False, False], [True, False, False], [True, True, True]]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_packing_keeps_every_bit(count):
    bits = torch.rand(3, 5, count, generator=torch.Generator().manual_seed(count)) < 0.5
    packed = pack(bits)
    assert packed.shape == (3, 5, -(-count // 8)) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, count), bits)
    assert numpy.array_equal(packed.numpy(), numpy.packbits(bits.numpy(), axis=-1, bitorder="little"))


@pytest.mark.parametrize("votes", [1, 2, 3, 16, 17])
def test_votes_are_counted(votes):
    bits = torch.rand(votes, 4, 6, 13, generator=torch.Generator().manual_seed(votes)) < 0.4
    counts = VoteCounts()
    for table in bits:
        counts.add(pack(table).numpy())
    sums = bits.sum(0)
    for least in range(1, votes + 1):
        assert torch.equal(unpack(torch.from_numpy(counts.at_least(least)), 13), sums >= least)
    kept = sums * 2 >= votes
    bare = ~kept.any(-1, keepdim=True)
    kept |= bare & (sums == sums.amax(-1, keepdim=True)) & (sums > 0)
    assert torch.equal(unpack(torch.from_numpy(counts.majority()), 13), kept)
    assert len(counts.planes) == votes.bit_length()


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


def made_up(seed, repeating=False):
    """q, k, v of one head whose block r looks at blocks r and 2r mod n only; its output repeats or not."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]
    block = torch.arange(TOKENS) // BLOCK
    keys = 20 * directions[block]
    queries = 20 * (directions[block] + directions[2 * block % BLOCKS])
    values = torch.randn(TOKENS, 64, generator=generator)
    if repeating:
        # What every block reads is the same, whichever block it looks at.
        values = directions[torch.arange(TOKENS) % BLOCK % 64] + 5 * directions[0]
    return queries, keys, values


def expected_mask():
    rows = torch.arange(BLOCKS)
    mask = torch.eye(BLOCKS, dtype=bool)
    mask[rows, 2 * rows % BLOCKS] = True
    return mask


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_known_sparse_and_repeating_heads_are_found_exactly(implementation):
    """Head 0 sees two known blocks, head 1 the same and repeats, head 2 sees everything alike."""
    if implementation == "triton":
        pytest.importorskip("triton")
    calibration = Calibration()
    for prompt in range(3 if implementation == "torch" else 1):
        run = calibration.start(SCHEDULE)
        heads = [made_up(prompt), made_up(prompt, repeating=True), [torch.zeros(TOKENS, 64), *made_up(prompt)[1:]]]
        q, k, v = (torch.stack(parts)[None] for parts in zip(*heads))
        v[:, 2] -= v[:, 2].mean(1, keepdim=True)
        v[:, 2, ::2] *= -1
        output = scaled_dot_product_attention(q, k, v)
        output[:, 2] = torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(prompt))
        for layer in range(2 if implementation == "torch" else 1):
            for step in range(4 if implementation == "torch" else 1):
                run.observe((layer, 0), step, q, k, output, layouts=LAYOUTS, implementation=implementation)
        run.finish()
    profile = calibration.profile(MODEL, GRID)
    profile.check()
    for layer, ordinal in profile.sites:
        for sigma in profile.sigmas:
            routing = profile.routing((layer, ordinal), sigma, torch.device("cpu"))
            assert torch.equal(routing.exact[0], expected_mask()) and torch.equal(routing.exact[1], expected_mask())
            assert routing.exact[2].sum(-1).min() >= 0.7 * BLOCKS
            assert routing.repeating == (1,)
    assert profile.prompts == calibration.runs
    assert profile.thresholds == Thresholds.published(TOKENS, 4)


def gathered(votes, steps=2, **options):
    """A calibration of random heads, one vote a run."""
    calibration = Calibration(**options)
    for vote in range(votes):
        run = calibration.start(SCHEDULE)
        q, k, v = clustered(TOKENS, heads=3, seed=vote, dtype=torch.float32)
        for step in range(steps):
            if run.wants(step):
                run.observe((0, 0), step, q, k, v, layouts=LAYOUTS)
        run.finish()
    return calibration


def test_half_of_the_prompts_decide():
    """Prompts that look at one block each: a block is kept from two of four votes on."""
    calibration = Calibration()
    for vote, seen in enumerate((1, 1, 3, 5)):
        run = calibration.start(SCHEDULE)
        keys = torch.zeros(1, 1, TOKENS, 64)
        keys[..., seen * BLOCK : (seen + 1) * BLOCK, 0] = 30
        run.observe((0, 0), 0, torch.ones_like(keys), keys, torch.ones_like(keys), layouts=LAYOUTS, scale=1.0)
        run.finish()
    profile = calibration.profile(replace(MODEL, heads=1), GRID)
    kept = profile.routing((0, 0), 1.0, torch.device("cpu")).exact[0]
    assert kept.sum(-1).tolist() == [1] * BLOCKS and kept[:, 1].all()


def test_every_batch_item_votes():
    both = clustered(TOKENS, batch=2, heads=3, dtype=torch.float32)
    together, apart = Calibration(), Calibration()
    for calibration, calls in ((together, [slice(0, 2)]), (apart, [slice(0, 1), slice(1, 2)])):
        run = calibration.start(SCHEDULE)
        for items in calls:
            q, k, v = (x[items] for x in both)
            run.observe((0, 0), 0, q, k, v, layouts=LAYOUTS * len(q))
        run.finish()
    assert numpy.array_equal(together.profile(MODEL, GRID).masks, apart.profile(MODEL, GRID).masks)


def test_a_run_cut_short_leaves_no_trace():
    calibration = gathered(1)
    before = calibration.profile(MODEL, GRID)
    run = calibration.start(SCHEDULE)
    q, k, v = clustered(TOKENS, heads=3, seed=9, dtype=torch.float32)
    run.observe((0, 0), 0, q, k, v, layouts=LAYOUTS)
    after = calibration.profile(MODEL, GRID)
    assert numpy.array_equal(before.masks, after.masks) and after.prompts == 1


def test_every_second_step_and_the_nearest_noise_level():
    profile = gathered(1, steps=4, every=2).profile(MODEL, GRID)
    assert profile.sigmas == (1.0, 0.5) and profile.last_sigma == 0.0
    assert [profile.step(sigma) for sigma in (1.2, 0.8, 0.7, 0.5, 0.1)] == [0, 0, 1, 1, 1]
    assert profile.step(1.6) is None
    assert profile.routing((1, 0), 1.0, torch.device("cpu")) is None
    assert profile.routing((0, 1), 1.0, torch.device("cpu")) is None


def test_runs_that_do_not_belong_together_are_refused():
    calibration = gathered(1)
    with pytest.raises(ValueError, match="4 steps from 1 to 0, and this run 2 from 1 to 0"):
        calibration.start((1.0, 0.5, 0.0))
    with pytest.raises(ValueError, match="falling noise levels"):
        calibration.start((0.0, 1.0))
    q, k, v = clustered(512, heads=3, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"is of {TOKENS} video tokens and the call has 512"):
        calibration.start(SCHEDULE).observe((0, 0), 0, q, k, v, layouts=[SequenceLayout(range(512))])
    with pytest.raises(ValueError, match="finish at least one run"):
        Calibration().profile(MODEL, GRID)
    for wrong in ({"energy": 1.5}, {"energy": -0.1}, {"every": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Calibration(**wrong)


def test_repeating_heads_can_be_left_as_they_are():
    run = (calibration := Calibration(repeating=False)).start(SCHEDULE)
    run.observe((0, 0), 0, *(part[None, None] for part in made_up(0)[:2]), torch.ones(1, 1, TOKENS, 64), layouts=LAYOUTS)
    run.finish()
    assert not calibration.profile(replace(MODEL, heads=1), GRID).repeats.any()


def test_the_energy_of_the_last_steps_can_be_chosen():
    thin, thick = (gathered(1, steps=4, energy=energy).profile(MODEL, GRID) for energy in (0.4, 0.95))
    assert thin.thresholds.last == 0.4 and thick.thresholds == Thresholds(0.95, 0.95, 5.64)
    last, first = (thin.routing((0, 0), sigma, torch.device("cpu")).exact.double().mean() for sigma in (0.2, 1.0))
    assert last < 0.6 < first < thick.density


def test_too_much_memory_is_refused_before_it_is_taken():
    run = Calibration(memory_limit=1000).start(SCHEDULE)
    q, k, v = clustered(TOKENS, heads=3, dtype=torch.float32)
    with pytest.raises(MemoryError, match="raise every, or the limit"):
        run.observe((0, 0), 0, q, k, v, layouts=LAYOUTS, sites=40)


def test_differences_are_named():
    profile = gathered(1).profile(MODEL, GRID)
    assert profile.differences(MODEL, GRID, TOKENS) == []
    other = replace(MODEL, architecture="HunyuanVideo", heads=24)
    assert profile.differences(other) == ["architecture WanModel, not HunyuanVideo", "heads 3, not 24"]
    assert profile.differences(grid=(2, 8, 70)) == ["a token grid of 2 x 8 x 69 (frames x rows x columns), not 2 x 8 x 70"]
    assert profile.differences(tokens=5) == [f"{TOKENS} video tokens, not 5"]


def test_density_counts_what_is_computed():
    profile = gathered(2, steps=1).profile(MODEL, GRID)
    exact = profile.routing((0, 0), 1.0, torch.device("cpu")).exact
    assert profile.density == pytest.approx(exact.double().mean().item())
    repeats = numpy.ones_like(profile.repeats)
    assert replace(profile, repeats=repeats).density == pytest.approx(exact[:, ::ANCHOR_EVERY].sum().item() / exact.numel())


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


def test_memory_does_not_grow_with_the_square_of_the_sequence():
    q, k, v = clustered(8192, heads=2, dtype=torch.float32)
    run = Calibration().start(SCHEDULE)
    with LiveMemory(q, k, v) as memory:
        run.observe((0, 0), 0, q, k, v, layouts=[SequenceLayout(range(8192))])
    assert memory.peak < q.nbytes + k.nbytes + v.nbytes
    assert memory.largest < 8192 * 8192 / 50
