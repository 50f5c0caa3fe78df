"""The quality bench: its distances, its peers, its counting and a whole run on a tiny clip."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from kernel_inputs import clustered, relative_error
from svg_ear.kernels import Settings, sparse_attention
from svg_ear.nodes.patch.options import Options
from svg_ear.nodes.patch.schedule import Schedule

from benchmarks import results
from benchmarks.position_blocks import attend_blocks, exact_share, morton_order, routed_blocks
from benchmarks.quality import bench as quality
from benchmarks.quality.bound import sides
from benchmarks.quality.cost import effective_density, with_effective_density
from benchmarks.quality.front import points
from benchmarks.quality.front import table as schedule_table
from benchmarks.quality.methods import (
    FULL_SIZE,
    OURS,
    PUBLISHED,
    SOL,
    CountedBlocks,
    Scale,
    scheduled_methods,
    sol_setting,
    standard_methods,
)
from benchmarks.quality.metrics import flicker_psnr, gradient_deviation, psnr, ssim
from benchmarks.quality.rows import bars, summarize
from benchmarks.quality.schedules import CUDNN, FLASH, Plan, call_time, clip_time, plans_to_compare

TOKENS = 32_760


@pytest.fixture
def clip():
    """Smooth uint8 frames."""
    coarse = torch.rand(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    frames = F.interpolate(coarse, size=(48, 64), mode="bicubic").clamp(0, 1) * 255
    return frames.byte().permute(0, 2, 3, 1)


def test_a_clip_is_no_distance_from_itself(clip):
    assert psnr(clip, clip) == flicker_psnr(clip, clip) == math.inf
    assert ssim(clip, clip) == pytest.approx(1) and gradient_deviation(clip, clip) == 0


def test_psnr_is_that_of_the_error(clip):
    wrong = (clip.int() + torch.where(clip > 127, -5, 5)).byte()
    assert psnr(wrong, clip) == pytest.approx(10 * math.log10(255**2 / 25))


def test_only_flicker_counts_as_flicker(clip):
    dimmed = clip // 2
    still = dimmed + 20
    flickering = dimmed + torch.tensor([0, 40, 0, 40], dtype=torch.uint8)[:, None, None, None]
    assert flicker_psnr(still, dimmed) == math.inf
    assert flicker_psnr(flickering, dimmed) == pytest.approx(10 * math.log10(255**2 / 40**2))


def test_blurring_harms_structure_more_than_brightening(clip):
    frames = clip.float().permute(0, 3, 1, 2) / 2
    brighter, blurred = frames + 8, F.avg_pool2d(frames, 7, 1, 3, count_include_pad=False)
    original, brighter, blurred = (part.byte().permute(0, 2, 3, 1) for part in (frames, brighter, blurred))
    assert psnr(brighter, original) < psnr(blurred, original)
    assert ssim(brighter, original) > ssim(blurred, original)
    assert gradient_deviation(brighter, original) < 1e-3 < gradient_deviation(blurred, original)


def test_position_blocks_pool_what_they_skip():
    q, k, v = clustered(150, dim=16)
    exact = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.5
    logits = q @ k.mT / 4
    expected = torch.empty_like(q)
    for head in range(2):
        for row in range(150):
            keys, values, weights = [], [], []
            for block in range(3):
                members = slice(64 * block, min(150, 64 * block + 64))
                if exact[0, head, row // 64, block]:
                    keys += [logits[0, head, row, members]]
                    values += [v[0, head, members]]
                else:
                    size = members.stop - members.start
                    keys += [(q[0, head, row] @ k[0, head, members].mean(0) / 4 + math.log(size))[None]]
                    values += [v[0, head, members].mean(0, keepdim=True)]
            weights = torch.cat(keys).softmax(0)
            expected[0, head, row] = weights @ torch.cat(values)
    assert relative_error(attend_blocks(q, k, v, exact), expected) < 1e-6
    everything = torch.ones_like(exact)
    assert exact_share(everything, 150) == 1
    assert relative_error(attend_blocks(q, k, v, everything), F.scaled_dot_product_attention(q, k, v)) < 1e-6


def test_higher_thresholds_route_fewer_blocks_but_never_lose_neighbours():
    q, k, _ = clustered(1000)
    shares = [exact_share(routed_blocks(q, k, tau), 1000) for tau in (0.5, 1.0, 2.0, 1e9)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[2]
    blocks = torch.arange(16)
    assert torch.equal(routed_blocks(q, k, 1e9)[0, 0], (blocks[:, None] - blocks).abs() <= 1)


def test_morton_order_keeps_cubes_together():
    order = morton_order((4, 6, 10))
    assert torch.equal(order.sort().values, torch.arange(240))
    assert sorted(order[:8].tolist()) == [t * 60 + h * 10 + w for t in (0, 1) for h in (0, 1) for w in (0, 1)]


def test_blocks_in_another_order_come_back_in_place():
    q, k, v = clustered(240, dim=16, dtype=torch.float32)
    everything = CountedBlocks(-1e9, morton_order((4, 6, 10)))
    assert relative_error(everything(0, 0, q, k, v), F.scaled_dot_product_attention(q, k, v)) < 1e-5
    assert everything.spent[0][0] == 1


def test_density_is_met_with_everything_counted():
    for settings in (Settings(), Settings(weighted_centroids=False), Settings(method="svg2"), Settings(recluster_every=3)):
        solved = with_effective_density(settings, TOKENS, 0.13, 16)
        spent = [effective_density(solved, TOKENS, solved.density, call) for call in range(16)]
        assert sum(spent) / 16 == pytest.approx(0.13)
        assert solved.density < 0.13
    with pytest.raises(ValueError, match="cannot be met"):
        with_effective_density(Settings(), 1000, 0.05, 16)


def test_what_is_not_done_is_not_counted():
    first, later = (effective_density(Settings(kmeans_first=5, kmeans_next=1, recluster_every=1), TOKENS, 0.1, call) for call in (0, 1))
    assert first > later
    assert effective_density(Settings(recluster_every=2, kmeans_next=1), TOKENS, 0.1, 1) < later
    assert later < effective_density(Settings(kmeans_candidates=0, kmeans_next=1, recluster_every=1), TOKENS, 0.1, 1)
    plain = replace(Settings(kmeans_next=1, recluster_every=1), weighted_centroids=False)
    assert effective_density(plain, TOKENS, 0.1, 1) < later
    assert effective_density(replace(plain, method="svg2"), TOKENS, 0.1, 1) < effective_density(plain, TOKENS, 0.1, 1)


@pytest.mark.parametrize("weighted", [True, False])
def test_the_bound_holds_and_counts_what_is_exact(weighted):
    q, k, v = clustered(300, heads=1, dtype=torch.float32)
    for density in (0.1, 1.0):
        settings = Settings(density=density, query_clusters=6, key_clusters=12, weighted_centroids=weighted)
        seen = []
        sparse_attention(q, k, v, settings, observe=seen.append)
        found = sides(q[0, 0], k[0, 0], seen[0], 0, settings)
        assert found["map_error"] <= min(found["bound_centred_keys"], found["bound"])
        if weighted:
            assert found["routed_residual"] < found["map_error"] or density == 1
    assert found["map_error"] == found["routed_residual"] == 0


def test_a_run_writes_rows_of_every_method_and_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality, "QUICK_SCALE", Scale((3, 8, 12), 3, 1.0, 1))
    arguments = ["--device", "cpu", "--quick", "--results", str(tmp_path), "--docs", str(tmp_path), "--commit", "abc"]
    quality.main([*arguments, "--parts", "standard", "--methods", "ours, preset quality|raster"])
    (path,) = tmp_path.glob("quality_cpu*.csv")
    rows = results.read(path)
    assert [row["method"] for row in rows] == ["dense", OURS, OURS, "position blocks, raster"]
    dense, ours, int8, blocks = rows
    assert [row["setting"] for row in (ours, int8)] == ["preset quality", "preset quality, int8"]
    assert ours["psnr_db"] != int8["psnr_db"] and float(int8["psnr_db"]) == pytest.approx(float(ours["psnr_db"]), abs=1)
    assert float(int8["exact_share"]) == pytest.approx(float(ours["exact_share"]), abs=0.01)
    assert float(ours["clip_time"]) > 0 and int8["clip_time"] == ""
    assert dense["psnr_db"] == "" and float(dense["attention_cost"]) == 1
    assert float(ours["psnr_db"]) > 20 and float(ours["exact_share"]) == pytest.approx(fmean((0.6, 0.06**0.5, 0.1)), abs=0.03)
    assert float(ours["exact_share"]) < float(ours["effective_density"]) < float(ours["attention_cost"]) < 1
    assert all(row["commit"] == "abc" and row["hardware"].startswith("CPU") and row["seed"] == "1" for row in rows)
    (layers,) = tmp_path.glob("quality_layers_cpu*.csv")
    found = results.read(layers)
    assert [row["layer"] for row in found] == [str(layer) for layer in range(1, 8)] * 3
    errors = [float(row[column]) for row in found if row["setting"] == "preset quality" for column in ("step 0", "step 1", "step 2")]
    assert sum(errors) / len(errors) == pytest.approx(float(ours["attention_error"]), abs=1e-4)
    assert (tmp_path / "quality.svg").stat().st_size and (tmp_path / "quality.png").stat().st_size
    told = capsys.readouterr().out
    assert f"{float(ours['psnr_db']):.2f}" in told and "all: presets lose at most 0.2 dB in int8, in the mean; " in told

    quality.main([*arguments, "--parts", "standard", "--methods", "raster", "--seeds", "2", "--append"])
    rows = results.read(path)
    assert rows[:4] == [dense, ours, int8, blocks]
    assert [(row["method"], row["seed"]) for row in rows[4:]] == [("dense", "2"), ("position blocks, raster", "2")]


def test_schedules_are_told_apart():
    names = [str(plan) for steps in (8, 20) for plan in plans_to_compare(steps)]
    assert len(set(names)) == len(names)
    assert {"4 dense, 16 x 0.1", "0.35 falling to 0.06", "8 x 0.3"} < set(names)
    assert str(Plan((1, *Plan.falling(0.3, 0.06, 20).shares[1:]))) == "1 dense, 0.276 falling to 0.06"
    assert str(Plan((0.3, 0.1), first_layer=0.5)) == "1 x 0.3, 1 x 0.1, layer 0 at least 0.5"


def test_with_guidance_schedules_share_clusters_as_the_node_does():
    guided = [method for method in scheduled_methods(Scale((3, 8, 12), 20, 3.0, 0)) if method.plan is not None]
    names = [method.setting for method in guided]
    assert {"0.35 falling to 0.06", "0.35 falling to 0.06, clusters of cond"} < set(names)
    assert {method.setting: method.shares_clusters for method in guided} == {name: name.endswith("clusters of cond") for name in names}
    assert not any(method.shares_clusters for method in scheduled_methods(Scale((3, 8, 12), 20, 1.0, 0)))
    plan = Plan.of_preset("balanced", 20)
    assert 0.98 < clip_time(plan, branches_sharing=0.5) / clip_time(plan) < 1
    first, shared = (effective_density(Settings(), TOKENS, 0.1, 0, part) for part in (1.0, 0.5))
    assert 0.1 < shared < first


def test_a_preset_is_measured_as_the_node_runs_it():
    sigmas = [1 - step / 20 for step in range(21)]
    node = Schedule(sigmas, lambda percent: 1 - percent, Options(preset="fast"))
    assert Plan.of_preset("fast", 20).shares == pytest.approx([node.density(sigma) for sigma in sigmas[:-1]], abs=1e-6)
    assert Plan.of_preset("few-step", 8).shares == pytest.approx([0.3] * 8)


def test_the_time_of_a_clip_is_that_of_its_calls_and_of_the_rest():
    dense = Plan((1,) * 20)
    assert clip_time(dense) == pytest.approx(1) and clip_time(dense, FLASH) > 1.3
    assert call_time(0.1) == pytest.approx(40.49 / 211.3, abs=1e-3) and call_time(1, FLASH) == pytest.approx(331 / 211.3, abs=1e-3)
    assert call_time(0.1) < call_time(0.15) < call_time(0.2)
    sparse = Plan((0.1,) * 20)
    rest = 1 - clip_time(Plan((0.1,) * 20, first_layer=0.1))
    assert clip_time(sparse) == pytest.approx(1 - rest * 39 / 40)
    assert clip_time(Plan.after((1,) * 4, 0.1, 20), CUDNN) == pytest.approx(0.548, abs=1e-3)


def test_schedules_have_a_table_and_a_picture_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "QUICK_SCALE", Scale((3, 8, 12), 10, 1.0, 1))
    arguments = ["--device", "cpu", "--quick", "--results", str(tmp_path), "--docs", str(tmp_path), "--parts", "schedules"]
    quality.main([*arguments, "--methods", "0.25 falling|2 dense, 8 x 0.05"])
    (path,) = tmp_path.glob("quality_cpu*.csv")
    rows = results.read(path)
    assert [row["setting"] for row in rows if row["steps"] == "10"] == ["", "0.25 falling to 0.06", "2 dense, 8 x 0.05"]
    assert [row["dense_steps"] for row in rows if row["steps"] == "10"][1:] == ["0", "2"]
    found = points(rows)
    assert [(point.now, point.before) for point in found] == [("fast", None), (None, "fast")]
    assert found[0].time < found[1].time < found[1].flash_time and found[0].psnr > found[1].psnr
    assert schedule_table(found) in capsys.readouterr().out
    assert (tmp_path / "quality.svg").stat().st_size and (tmp_path / "quality_results.md").stat().st_size

    quality.main([*arguments, "--seconds", "0"])
    assert "TIME IS UP" in capsys.readouterr().out and results.read(path) == rows


def test_every_density_of_the_bench_can_be_met_at_full_size():
    scale = Scale((21, 30, 52), 20, 1.0, 4)
    assert scale.tokens >= FULL_SIZE
    settings = [method.setting for method in standard_methods(scale, torch.device("cpu"), lambda text: None) if method.name == OURS]
    assert {"effective density 0.1", "effective density 0.13", "effective density 0.2"} < set(settings)


def _row(method, setting, exact, effective, decibels, part="standard", cost=0.4):
    origin = {"hardware": "Some GPU", "torch": "2.0", "triton": "3.0", "commit": "abc", "date": "2026-01-01"}
    schedule = {"part": part, "grid": "21x30x52", "steps": 20, "guidance": 1.0, "method": method, "setting": setting, "seed": 1}
    costs = {"exact_share": exact, "effective_density": effective, "attention_cost": cost, "attention_seconds": 1}
    distances = {"psnr_db": decibels, "ssim": 0.9, "gradient_deviation": 0.1, "flicker_psnr_db": 30, "attention_error": 0.1}
    return {**schedule, **costs, **distances, **origin}


def test_bars_compare_what_costs_the_same():
    rows = [
        _row(OURS, "effective density 0.13", 0.09, 0.13, 36),
        _row(OURS, "effective density 0.1", 0.06, 0.10, 33),
        _row(PUBLISHED, "63 queries a group, effective density 0.13", 0.09, 0.13, 31),
        _row(PUBLISHED, "252 queries a group, effective density 0.13", 0.09, 0.13, 29),
        _row(PUBLISHED, "top-p 0.85", 0.1, 0.131, 35),
        _row(PUBLISHED, "42 queries a group, our k-means, effective density 0.13", 0.1, 0.13, 32),
        _row(SOL, sol_setting(1.3, 256), 0.1, 0.13, 26),
    ]
    assert [bar.passed for bar in bars(summarize(rows))] == [True, True, True, True, True]
    better = _row(PUBLISHED, "42 queries a group, effective density 0.13", 0.09, 0.13, 34)
    assert [bar.passed for bar in bars(summarize([*rows, better]))] == [False, False, True, True, True]
    better = _row(PUBLISHED, "42 queries a group, our k-means, effective density 0.13", 0.1, 0.13, 34)
    assert [bar.passed for bar in bars(summarize([*rows[:5], better, rows[-1]]))] == [True, True, False, False, True]
    assert [bar.passed for bar in bars(summarize(rows[:2]))] == [None] * 5


def test_sol_attn_is_compared_with_the_automatic_counts_only():
    rows = [
        _row(OURS, "effective density 0.13", 0.09, 0.13, 36),
        _row(OURS, "effective density 0.2", 0.16, 0.2, 40),
        _row(OURS, "63 queries a group, effective density 0.13", 0.09, 0.13, 39),
        _row(SOL, sol_setting(1.3, 256), 0.1, 0.13, 27),
    ]
    assert bars(summarize(rows))[-1].passed is False


def test_few_steps_are_compared_with_what_costs_more():
    rows = [
        _row(OURS, "preset few-step", 0.2, 0.24, 35, "few-step", cost=0.3),
        _row(PUBLISHED, "2 dense steps, effective density 0.13", 0.09, 0.13, 30, "few-step", cost=0.42),
    ]
    assert [bar.passed for bar in bars(summarize(rows))] == [True]
    dearer = _row(PUBLISHED, "2 dense steps, effective density 0.2", 0.15, 0.2, 36, "few-step", cost=0.47)
    assert [bar.passed for bar in bars(summarize([*rows, dearer]))] == [False]


def test_the_loss_of_int8_is_the_mean_over_presets_and_clips():
    presets = {"preset quality": (40, 39.9), "preset balanced": (34, 33.9), "preset fast": (30, 29.8)}
    rows = [
        _row(OURS, setting, 0.1, 0.13, decibels - guidance) | {"seed": seed, "guidance": guidance}
        for name, pair in presets.items()
        for setting, decibels in zip((name, f"{name}, int8"), pair)
        for seed in (1, 2)
        for guidance in (1.0, 3.0)
    ]

    def verdicts(rows):
        return {bar.what.split(":")[0]: (bar.passed, bar.detail) for bar in bars(summarize(rows)) if "int8" in bar.what}

    assert verdicts(rows)["all"] == (True, "0.133 of 0.10, 0.10, 0.20, 0.10, 0.10, 0.20")
    assert verdicts(rows)["standard, guidance 3"] == (True, "0.133 of 0.10, 0.10, 0.20")
    worse = [row | {"psnr_db": row["psnr_db"] - 0.3 * (row["setting"] == "preset fast, int8" and row["guidance"] == 3)} for row in rows]
    assert [passed for passed, _ in verdicts(worse).values()] == [True, False, True]
    # The last clip was not made in int8.
    assert verdicts(rows[:-1])["all"][1] == "0.120 of 0.10, 0.10, 0.20, 0.10, 0.10"
    assert verdicts([row for row in rows if "int8" not in row["setting"]]) == {}


def test_int8_is_not_what_others_are_compared_with():
    rows = [
        _row(OURS, "effective density 0.13", 0.09, 0.13, 36),
        _row(OURS, "preset balanced, int8", 0.09, 0.13, 60),
        _row(PUBLISHED, "42 queries a group, effective density 0.13", 0.09, 0.13, 34),
    ]
    assert bars(summarize(rows))[0].passed is False


def test_clips_are_averaged():
    rows = [_row(OURS, "a", 0.1, 0.13, decibels) | {"seed": seed} for seed, decibels in enumerate((30, 33))]
    (summary,) = summarize(rows)
    assert summary.clips == 2 and summary.psnr == 31.5
