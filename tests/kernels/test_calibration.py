"""What a calibration finds, and how it is looked up."""

import math
from dataclasses import replace

import numpy
import pytest
import torch
from kernel_inputs import clustered
from live_memory import LiveMemory
from svg_ear.kernels import SequenceLayout
from svg_ear.kernels.block_shapes import SHAPES, block_orders, block_table
from svg_ear.kernels.blocks import ANCHOR_EVERY, BLOCK
from svg_ear.kernels.calibration import Calibration, ModelIdentity, Thresholds
from svg_ear.kernels.calibration.selection import densest_blocks
from torch.nn.functional import scaled_dot_product_attention
from triton_cases import DEVICE

TOKENS = 9 * BLOCK - 40
BLOCKS = 9
MODEL = ModelIdentity("WanModel", 2, 3, 64, (256, 16, 1, 2, 2))
GRID = (2, 4, 139)
SCHEDULE = (1.0, 0.8, 0.5, 0.2, 0.0)
LAYOUTS = [SequenceLayout(range(TOKENS))]


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


# As published: consecutive tokens, thresholds of energy, heads that repeat.
PUBLISHED = {"density": 0, "shapes": ("raster",), "repeating": True}


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_known_sparse_and_repeating_heads_are_found_exactly(implementation):
    """Head 0 sees two known blocks, head 1 the same and repeats, head 2 sees everything alike."""
    if implementation == "triton":
        pytest.importorskip("triton")
    calibration = Calibration(**PUBLISHED)
    for prompt in range(3 if implementation == "torch" else 1):
        run = calibration.start(SCHEDULE, GRID)
        heads = [made_up(prompt), made_up(prompt, repeating=True), [torch.zeros(TOKENS, 64), *made_up(prompt)[1:]]]
        q, k, v = (torch.stack(parts)[None].to(DEVICE) for parts in zip(*heads))
        v[:, 2] -= v[:, 2].mean(1, keepdim=True)
        v[:, 2, ::2] *= -1
        output = scaled_dot_product_attention(q, k, v)
        output[:, 2] = torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(prompt)).to(DEVICE)
        for layer in range(2 if implementation == "torch" else 1):
            for step in range(4 if implementation == "torch" else 1):
                run.observe((layer, 0), step, q, k, output, layouts=LAYOUTS, implementation=implementation)
        run.finish()
    profile = calibration.profile(MODEL)
    profile.check()
    for layer, ordinal in profile.sites:
        for sigma in profile.sigmas:
            routing = profile.routing((layer, ordinal), sigma, torch.device("cpu"))
            assert torch.equal(routing.exact[0], expected_mask()) and torch.equal(routing.exact[1], expected_mask())
            assert routing.exact[2].sum(-1).min() >= 0.7 * BLOCKS
            assert routing.repeating == (1,)
    assert profile.prompts == calibration.runs
    assert profile.budget == Thresholds.published(TOKENS, 4)


def gathered(runs, **options):
    """A calibration of random heads in all four steps, one batch item a run."""
    calibration = Calibration(**{"density": 0} | options)
    for seed in range(runs):
        run = calibration.start(SCHEDULE, GRID)
        q, k, v = clustered(TOKENS, heads=3, seed=seed, dtype=torch.float32)
        for step in filter(run.wants, range(4)):
            run.observe((0, 0), step, q, k, v, layouts=LAYOUTS)
        run.finish()
    return calibration


def test_the_mean_over_prompts_decides():
    """Prompts that look at one block each: two of four at block 1, one at 3, one at 5."""
    calibration = Calibration(density=2 / BLOCKS, shapes=("raster",))
    for seen in (1, 5, 1, 3):
        run = calibration.start(SCHEDULE, GRID)
        keys = torch.zeros(1, 1, TOKENS, 64)
        # The first half of a block, so that those of later blocks do not draw on equal terms.
        keys[..., seen * BLOCK : (seen + 1) * BLOCK, 0] = 30 - seen
        run.observe((0, 0), 0, torch.ones_like(keys), keys, torch.ones_like(keys), layouts=LAYOUTS, scale=0.2)
        run.finish()
    kept = calibration.profile(replace(MODEL, heads=1)).routing((0, 0), 1.0, torch.device("cpu")).exact[0]
    assert kept.sum(-1).tolist() == [2] * BLOCKS and kept[:, 1].all() and kept[:, 3].all()


def test_every_batch_item_counts():
    both = clustered(TOKENS, batch=2, heads=3, dtype=torch.float32)
    together, apart = Calibration(), Calibration()
    for calibration, calls in ((together, [slice(0, 2)]), (apart, [slice(0, 1), slice(1, 2)])):
        run = calibration.start(SCHEDULE, GRID)
        for items in calls:
            q, k, v = (x[items] for x in both)
            run.observe((0, 0), 0, q, k, v, layouts=LAYOUTS * len(q))
        run.finish()
    first, second = together.profile(MODEL), apart.profile(MODEL)
    assert numpy.array_equal(first.masks, second.masks) and numpy.array_equal(first.shapes, second.shapes)


def own_parts(seed):
    """q, k, v of two heads of 16 frames of 8 x 8 tokens: one attends to its own part of all frames, one to its own pair of frames."""
    generator = torch.Generator().manual_seed(seed)
    frame, row, column = torch.unravel_index(torch.arange(1024), (16, 8, 8))
    directions = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]
    keys = torch.stack([20 * directions[row // 2 * 2 + column // 4], 20 * directions[frame // 2]])[None]
    return keys, keys, torch.randn(1, 2, 1024, 64, generator=generator)


def test_every_head_gets_the_shape_of_blocks_that_suits_it():
    calibration = Calibration(density=0.25)
    for seed in range(2):
        run = calibration.start(SCHEDULE, (16, 8, 8))
        for step in range(2):
            run.observe((0, 0), step, *own_parts(seed), layouts=[SequenceLayout(range(1024))])
        run.finish()
    profile = calibration.profile(replace(MODEL, heads=2))
    profile.check()
    tubes, raster = list(SHAPES).index("tubes"), list(SHAPES).index("raster")
    assert profile.shapes.tolist() == [[tubes, raster]] and profile.shape_shares() == {"raster": 0.5, "tubes": 0.5}
    routing = profile.routing((0, 0), 1.0, torch.device("cpu"))
    assert torch.equal(routing.labels, block_table((16, 8, 8), BLOCK)[[tubes, raster]])
    assert torch.diagonal(routing.exact, dim1=1, dim2=2).all() and (routing.exact.sum(-1) == 2).all()
    allowed = Calibration(density=0.25, shapes=("raster",))
    run = allowed.start(SCHEDULE, (16, 8, 8))
    run.observe((0, 0), 0, *own_parts(0), layouts=[SequenceLayout(range(1024))])
    run.finish()
    assert allowed.profile(replace(MODEL, heads=2)).routing((0, 0), 1.0, torch.device("cpu")).labels is None


# Frames of more than a block, so that no two shapes are the same.
WIDE = (2, 12, 32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_what_is_kept_is_what_the_shape_sees(shape, implementation):
    """The kept blocks of two batch items with their text in other places, in the order of the shape, against all pairs."""
    if implementation == "triton":
        pytest.importorskip("triton")
    calibration = Calibration(density=1 / 3, shapes=(shape,))
    tokens = math.prod(WIDE)
    layouts = [
        SequenceLayout(range(30, 30 + tokens), (range(0, 30),)),
        SequenceLayout(range(5, 5 + tokens), (range(5 + tokens, 35 + tokens),)),
    ]
    q, k, v = (x.to(DEVICE) for x in clustered(tokens + 40, batch=2, heads=2, dtype=torch.float32))
    run = calibration.start(SCHEDULE, WIDE)
    run.observe((0, 0), 0, q, k, v, layouts=layouts, implementation=implementation)
    run.finish()

    table = block_table(WIDE, BLOCK)
    labels = table[list(SHAPES).index(shape)].to(DEVICE)
    assert sum(torch.equal(labels.cpu(), other) for other in table) == 1
    to_blocks = torch.nn.functional.one_hot(labels.long()).double()
    energies = 0
    for item, layout in enumerate(layouts):
        video, (text,) = slice(layout.video.start, layout.video.stop), layout.conditioning
        keys = torch.cat((k[item, :, video], k[item, :, text.start : text.stop]), dim=1).double()
        weights = (q[item, :, video].double() @ keys.mT * 64**-0.5).softmax(-1)[..., :tokens]
        energies = energies + to_blocks.mT @ weights @ to_blocks / BLOCK
    found = run.calibration.spots[(0, 0), 0].energies[0].to(DEVICE)
    torch.testing.assert_close(found.double(), energies, rtol=2e-3, atol=1e-4)
    routing = calibration.profile(replace(MODEL, heads=2)).routing((0, 0), 1.0, torch.device("cpu"))
    assert torch.equal(routing.exact, densest_blocks(found, 2).cpu())
    assert routing.labels is None if shape == "raster" else torch.equal(routing.labels, labels.cpu().expand(2, -1))


def test_the_shape_is_the_best_one_over_all_steps():
    """A head that prefers tubes in one step and, less, raster in another."""
    q, k, v = own_parts(0)
    calibration = Calibration(density=0.125)
    run = calibration.start(SCHEDULE, (16, 8, 8))
    for step, scale in ((0, None), (1, 0.002)):
        run.observe((0, 0), step, q, k, v, layouts=[SequenceLayout(range(1024))], scale=scale)
    # The second step prefers the other shape for both heads, by little.
    run.seen[(0, 0), 1].energies[:] = run.seen[(0, 0), 1].energies.flip(1)
    run.finish()
    assert calibration.profile(replace(MODEL, heads=2)).shapes.tolist() == [[list(SHAPES).index("tubes"), list(SHAPES).index("raster")]]


def test_energies_are_means_whatever_the_number_of_runs():
    """A threshold holds a share of the mean, so that equal runs change nothing."""
    once, thrice = Calibration(density=0, energy=0.7), Calibration(density=0, energy=0.7)
    for calibration, runs in ((once, 1), (thrice, 3)):
        for _ in range(runs):
            run = calibration.start(SCHEDULE, GRID)
            run.observe((0, 0), 0, *clustered(TOKENS, heads=3, dtype=torch.float32), layouts=LAYOUTS)
            run.finish()
    first, second = once.profile(MODEL), thrice.profile(MODEL)
    assert first.density == pytest.approx(second.density, abs=0.02) and 0.1 < first.density < 0.9


def test_repetition_is_that_of_the_shape():
    """A head whose output is the same in all tubes repeats in tubes only."""
    q, k, _ = own_parts(0)
    order = block_orders((16, 8, 8), BLOCK)[list(SHAPES).index("tubes")]
    output = torch.empty(1, 2, 1024, 64)
    output[:, :, order] = torch.randn(128, 64, generator=torch.Generator().manual_seed(1)).repeat(8, 1)
    calibration = Calibration(density=0.125, repeating=True)
    run = calibration.start(SCHEDULE, (16, 8, 8))
    run.observe((0, 0), 0, q, k, output, layouts=[SequenceLayout(range(1024))])
    run.finish()
    assert calibration.profile(replace(MODEL, heads=2)).repeats[0, 0].tolist() == [True, False]


def test_reference_frames_beside_the_grid_leave_raster_blocks():
    """More tokens than the grid has: no shape of blocks could be told."""
    calibration = Calibration()
    run = calibration.start(SCHEDULE, (16, 8, 8), tokens=1100)
    q, k, v = clustered(1100, heads=2, dtype=torch.float32)
    run.observe((0, 0), 2, q, k, v, layouts=[SequenceLayout(range(1100))])
    run.finish()
    profile = calibration.profile(replace(MODEL, heads=2))
    profile.check()
    assert not profile.shapes.any() and profile.tokens == 1100 and profile.grid == (16, 8, 8)
    assert profile.routing((0, 0), 0.5, torch.device("cpu")).exact.shape == (2, 9, 9)


def test_a_part_of_the_schedule_has_the_thresholds_of_the_whole():
    """Seven of 14 steps are no denoising of few steps."""
    run = (calibration := Calibration(density=0)).start(
        [1 - step / 14 for step in range(7, 15)], GRID, progress=[step / 14 for step in range(7, 14)]
    )
    run.observe((0, 0), 0, *clustered(TOKENS, heads=3, dtype=torch.float32), layouts=LAYOUTS)
    run.finish()
    assert calibration.profile(MODEL).budget == Thresholds.published(TOKENS, 14) != Thresholds.published(TOKENS, 7)


def test_runs_in_and_out_of_inference_mode_add_up():
    calibration = Calibration()
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            run = calibration.start(SCHEDULE, GRID)
            for _ in range(2):
                run.observe((0, 0), 0, *clustered(TOKENS, heads=3, dtype=torch.float32), layouts=LAYOUTS)
        run.finish()
    assert calibration.spots[(0, 0), 0].count == 6


def test_a_run_cut_short_leaves_no_trace():
    calibration = gathered(1)
    before = calibration.profile(MODEL)
    run = calibration.start(SCHEDULE, GRID)
    q, k, v = clustered(TOKENS, heads=3, seed=9, dtype=torch.float32)
    run.observe((0, 0), 0, q, k, v, layouts=LAYOUTS)
    after = calibration.profile(MODEL)
    assert numpy.array_equal(before.masks, after.masks) and after.prompts == 1


def test_steps_between_looks_take_the_nearest_noise_level():
    profile = gathered(1, looks=2).profile(MODEL)
    assert profile.sigmas == (0.8, 0.2) and profile.last_sigma == 0.0
    assert [profile.step(sigma) for sigma in (1.0, 0.8, 0.6, 0.4, 0.1)] == [0, 0, 0, 1, 1]
    assert profile.first_sigma == 1.0 and profile.step(1.5) == 0 and profile.step(1.7) is None
    assert profile.routing((1, 0), 1.0, torch.device("cpu")) is None
    assert profile.routing((0, 1), 1.0, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("looks", "steps", "looked_at"),
    [(5, 20, [2, 6, 10, 14, 18]), (1, 20, [10]), (5, 4, [0, 1, 2, 3]), (5, 5, [*range(5)]), (3, 8, [1, 4, 6]), (2, 50, [12, 37])],
)
def test_looks_are_spread_over_the_schedule(looks, steps, looked_at):
    run = Calibration(looks=looks).start([1 - step / steps for step in range(steps)] + [0.0], GRID)
    assert [step for step in range(steps) if run.wants(step)] == looked_at


def test_runs_that_do_not_belong_together_are_refused():
    calibration = gathered(1)
    with pytest.raises(ValueError, match="4 steps from 1 to 0, and this run 2 from 1 to 0"):
        calibration.start((1.0, 0.5, 0.0), GRID)
    with pytest.raises(ValueError, match="falling noise levels"):
        calibration.start((0.0, 1.0), GRID)
    with pytest.raises(
        ValueError, match=r"is of 1112 tokens in \(2, 4, 139\) \(frames, rows, columns\), and this run has 1112 in \(4, 2, 139\)"
    ):
        calibration.start(SCHEDULE, (4, 2, 139))
    q, k, v = clustered(512, heads=3, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"this run is of {TOKENS} video tokens and the call has 512"):
        calibration.start(SCHEDULE, GRID).observe((0, 0), 0, q, k, v, layouts=[SequenceLayout(range(512))])
    with pytest.raises(ValueError, match="finish at least one run"):
        Calibration().profile(MODEL)
    for wrong in ({"energy": 1.5}, {"energy": -0.1}, {"density": 1.1}, {"looks": 0}, {"shapes": ("disc",)}, {"shapes": ()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Calibration(**wrong)


def test_repeating_heads_can_be_left_as_they_are():
    run = (calibration := Calibration()).start(SCHEDULE, GRID)
    run.observe((0, 0), 0, *(part[None, None] for part in made_up(0)[:2]), torch.ones(1, 1, TOKENS, 64), layouts=LAYOUTS)
    run.finish()
    assert not calibration.profile(replace(MODEL, heads=1)).repeats.any()


def test_the_energy_of_the_last_steps_can_be_chosen():
    thin, thick = (gathered(1, energy=energy).profile(MODEL) for energy in (0.4, 0.95))
    assert thin.budget.last == 0.4 and thick.budget == Thresholds(0.95, 0.95, 5.64)
    last, first = (thin.routing((0, 0), sigma, torch.device("cpu")).exact.double().mean() for sigma in (0.2, 1.0))
    assert last < 0.6 < first < thick.density


def test_memory_decides_how_many_looks_there_are():
    """A look at 40 heads of 9 x 9 blocks: three shapes of two bytes each, twice."""
    look = 2 * 3 * 40 * 81 * 2
    for limit, looks in ((look, 1), (3 * look + 1, 3), (100 * look, 4)):
        run = Calibration(memory_limit=limit).start(SCHEDULE, GRID, heads=40)
        assert sum(map(run.wants, range(4))) == looks
    with pytest.raises(MemoryError, match="raise the limit, or take raster blocks only"):
        Calibration(memory_limit=look - 1).start(SCHEDULE, GRID, heads=40)
    assert Calibration(memory_limit=look - 1, shapes=("raster",)).start(SCHEDULE, GRID, heads=40).wants(3)


def test_differences_are_named():
    profile = gathered(1).profile(MODEL)
    assert profile.differences(MODEL, GRID, TOKENS) == []
    other = replace(MODEL, architecture="HunyuanVideo", heads=24)
    assert profile.differences(other) == ["architecture WanModel, not HunyuanVideo", "heads 3, not 24"]
    assert profile.differences(grid=(2, 8, 70)) == ["a token grid of 2 x 4 x 139 (frames x rows x columns), not 2 x 8 x 70"]
    assert profile.differences(tokens=5) == [f"{TOKENS} video tokens, not 5"]


def test_density_counts_what_is_computed():
    profile = gathered(2, looks=1, shapes=("raster",)).profile(MODEL)
    exact = profile.routing((0, 0), 1.0, torch.device("cpu")).exact
    assert profile.density == pytest.approx(exact.double().mean().item())
    repeats = numpy.ones_like(profile.repeats)
    assert replace(profile, repeats=repeats).density == pytest.approx(exact[:, ::ANCHOR_EVERY].sum().item() / exact.numel())


def test_memory_does_not_grow_with_the_square_of_the_sequence():
    q, k, v = clustered(8192, heads=2, dtype=torch.float32)
    run = Calibration().start(SCHEDULE, (8, 32, 32))
    with LiveMemory(q, k, v) as memory:
        run.observe((0, 0), 0, q, k, v, layouts=[SequenceLayout(range(8192))])
    assert memory.peak < q.nbytes + k.nbytes + v.nbytes
    assert memory.largest < 8192 * 8192 / 50
