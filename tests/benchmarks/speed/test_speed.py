"""The parts of the speed bench that need no GPU: inputs, counting, verdicts, files and the picture. Times need one."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from svg_ear import kernels
from svg_ear.kernels import ClusterState, RoutedHeads, Settings, sparse_attention, torch_stages
from svg_ear.kernels.calibration import Profile
from svg_ear.kernels.tuning import Tiles

from benchmarks import results
from benchmarks.speed import bench as speed
from benchmarks.speed import compilation, enqueue
from benchmarks.speed import methods as speed_methods
from benchmarks.speed import rows as speed_rows
from benchmarks.speed.bars import bars, break_even, overtaking
from benchmarks.speed.calibrated import (
    CALIBRATED,
    COMPENSATED,
    SIGMA,
    SITE,
    calibrated_methods,
    profile_of,
)
from benchmarks.speed.inputs import DRIFT, HEAD_DIM, KINDS, SHAPES, SWEEP, Shape, make_inputs
from benchmarks.speed.methods import BASELINE, OURS, Method, SparseCalls, sol_name
from benchmarks.speed.pairs import GRANULE, Pairs, routed_pairs, sol_attn_share
from benchmarks.speed.plot import draw

CPU = torch.device("cpu")
ONE_SHAPE = (Tiles(64, 128, 8, 3),)
TWO_SHAPES = (Tiles(64, 128, 8, 3), Tiles(16, 128, 4, 2))
SMALL = Shape("small", 2, (4, 9, 10), conditioning=7)
# Six blocks of 128 tokens.
BLOCKY = Shape("blocky", 2, (4, 12, 15), conditioning=7)
ORIGIN = {"hardware": "Some GPU", "torch": "2.0", "triton": "3.0", "commit": "abc", "date": "2026-01-01"}


def test_shapes_are_those_of_the_models():
    assert {name: (SHAPES[name].heads, SHAPES[name].tokens, SHAPES[name].conditioning) for name in list(SHAPES)[:4]} == {
        "wan-720p": (40, 75_600, 0),
        "hunyuan-720p": (24, 118_800, 256),
        "wan-480p": (40, 32_760, 0),
        "wan-5b-720p": (24, 27_280, 0),
    }
    assert [shape.tokens for shape in SWEEP] == [8192 << i for i in range(6)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads_first", [False, True])
def test_inputs_are_repeatable_and_move_a_little_between_steps(kind, heads_first):
    shape = replace(SMALL, heads_first=heads_first)
    inputs, again, other = (make_inputs(shape, kind, CPU, seed=seed) for seed in (0, 0, 1))
    q, k, v = inputs.step(0)
    assert q.shape == k.shape == v.shape == (1, 2, 367, HEAD_DIM) and q.dtype == torch.bfloat16
    assert q.is_contiguous() == heads_first and q.transpose(1, 2).is_contiguous() != heads_first
    assert all(torch.equal(a, b) for a, b in zip(inputs.step(1), again.step(1)))
    assert not torch.equal(q, other.step(0)[0])
    moved = (inputs.step(1)[0].float() - q.float()).norm() / q.float().norm()
    assert moved == pytest.approx(DRIFT, rel=0.1)
    assert inputs.step(2)[0] is q and inputs.step(1)[2] is v
    assert all(tensor.float().std() == pytest.approx(1, rel=0.1) for tensor in (q, k, v))


def test_structured_keys_are_easier_to_summarize_than_noise():
    """Routing must find something to choose: a tenth of the pairs leaves a smaller error than on noise."""
    shape, settings, errors = Shape("s", 1, (6, 16, 20)), Settings(density=0.1), {}
    for kind in KINDS:
        q, k, v = (tensor.float() for tensor in make_inputs(shape, kind, CPU).step(0))
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        errors[kind] = (sparse_attention(q, k, v, settings).output - dense).norm() / dense.norm()
    assert errors["structured"] < 0.5 * errors["gaussian"]


@pytest.mark.parametrize("method", ["svg-ear", "svg2"])
@pytest.mark.parametrize("shapes", [ONE_SHAPE, TWO_SHAPES], ids=len)
def test_pairs_are_counted_as_a_loop_over_blocks_counts_them(shapes, method):
    inputs = make_inputs(SMALL, "structured", CPU)
    seen: list[RoutedHeads] = []
    settings = Settings(method=method, density=0.3, query_clusters=5, key_clusters=23)
    sparse_attention(*inputs.step(0), settings, layouts=SMALL.layout, observe=seen.append)
    compensated = settings.compensates
    counted = sum((routed_pairs(routed, SMALL.conditioning, shapes, compensated) for routed in seen), Pairs())

    exact = tail = processed = 0
    for routed in seen:
        for head in range(len(routed.heads)):
            sizes = routed.key_clusters.sizes[0, head].tolist()
            for rows, kept in zip(routed.query_groups.sizes[0, head].tolist(), routed.routing.exact[0, head].tolist()):
                runs, run = [], 0
                for size, keep in zip(sizes, kept):
                    if keep or not size:
                        run += size
                    else:
                        runs, run = [*runs, run], 0
                runs.append(run)
                exact += rows * (sum(runs) + SMALL.conditioning)
                tail += rows * compensated * sum(size > 0 and not keep for size, keep in zip(sizes, kept))
                listed = sum(math.ceil(run / GRANULE) * GRANULE for run in runs)
                centroids = len(sizes) if compensated else 0
                keys = sum(math.ceil(count / shapes[0].keys) * shapes[0].keys for count in (listed, centroids, SMALL.conditioning))
                while rows > 0:
                    tile = next((shape.rows for shape in shapes[1:] if rows <= shape.rows), shapes[0].rows)
                    processed += tile * keys
                    rows -= tile
    assert (counted.exact, counted.tail, counted.processed) == (exact, tail, processed)
    assert 0 < counted.useful < counted.processed


def test_the_share_of_sol_attn_is_that_of_its_rule():
    """On noise the scores of block means are normal, so that the share is the normal tail beyond tau."""
    q, k, _ = make_inputs(Shape("noise", 2, (1, 200, 256)), "gaussian", CPU, steps=1).step(0)
    for tau in (1.0, 1.3):
        assert sol_attn_share(q, k, tau) == pytest.approx(0.5 * math.erfc(tau / math.sqrt(2)), abs=0.01)
    assert sol_attn_share(q, k, 100.0) == pytest.approx((3 * 800 - 2) / 800**2)
    assert sol_attn_share(q, k, 100.0, always=800) == 1


def test_our_calls_walk_the_steps_and_the_k_means_schedule():
    inputs = make_inputs(SMALL, "structured", CPU)
    calls = SparseCalls(inputs, SMALL, Settings(density=0.2, recluster_every=3))
    assert calls.calls == 3
    calls()
    assert calls.state.calls == 3
    state = ClusterState()
    for step in range(4):
        expected = sparse_attention(*inputs.step(step), calls.settings, layouts=SMALL.layout, state=state).output
    assert torch.equal(calls.once(), expected)
    assert calls.on_first_step() is not None and (calls.state.calls - 1) % 2 == 0
    assert {"cluster", "probe", "route", "attend", "conditioning"} <= set(calls.stage_milliseconds(1))


def test_calibrated_calls_look_up_and_compute_what_was_found_in_the_first_step(monkeypatch):
    looked_up, routing = [], Profile.routing
    monkeypatch.setattr(Profile, "routing", lambda profile, *where: looked_up.append(where) or routing(profile, *where))
    inputs = make_inputs(BLOCKY, "structured", CPU)
    methods = calibrated_methods(inputs, BLOCKY, Settings(density=0.5, method="svg2"), (0.1, 0.3))
    assert [(method.name, method.facts["density"]) for method in methods] == [
        (name, density) for density in (0.1, 0.3) for name in (CALIBRATED, COMPENSATED)
    ]
    for method in methods:
        profile = profile_of(inputs, BLOCKY, method.facts["density"])
        profile.check()
        blocks = routing(profile, SITE, SIGMA, CPU)
        assert (blocks.exact.sum(-1) == max(1, round(6 * method.facts["density"]))).all()
        settings = Settings(method="calibrated", compensate=method.name == COMPENSATED)
        for step in range(3):
            options = {"layouts": BLOCKY.layout, "blocks": blocks}
            assert torch.equal(method.run(), sparse_attention(*inputs.step(step), settings, **options).output)
        assert method.run.state.nbytes() == 0
    assert looked_up == [(SITE, SIGMA, CPU)] * 12


@pytest.mark.parametrize("brief, skip, named", [(False, (), True), (True, (), False), (False, (CALIBRATED,), False)])
def test_calibrated_calls_are_left_out_of_brief_runs_and_when_asked(monkeypatch, brief, skip, named):
    monkeypatch.setattr(speed_rows, "dense_methods", lambda *_: [])
    said, inputs = [], make_inputs(SMALL, "structured", CPU)
    plan = speed_rows.Plan(Settings(), (0.1, 0.3), ("full", "int8"), 1, 1.0, ("peers", "cluster", *skip), said.append)
    methods = [(method.name, method.facts["precision"]) for method in speed_rows.chosen_methods(inputs, SMALL, brief, plan)]
    ours = [(OURS, "full"), (OURS, "int8")] * (1 if brief else 2)
    assert methods == ours + [(CALIBRATED, "full"), (COMPENSATED, "full")] * (2 * named)
    assert any("calibrated calls are left out" in line for line in said) == bool(skip)


def sample_rows():
    """Rows as a run writes them: ours 4 times as fast as dense at the models' shapes, slower below 16k tokens; int8 faster from 64k on."""
    rows = []
    for name, shape in SHAPES.items():
        common = {"shape": name, "heads": shape.heads, "tokens": shape.tokens, "data": "structured", "part": "attention"}
        dense = 0.001 * (shape.tokens / 1024) ** 2 * shape.heads
        rows.append({**common, "method": BASELINE, "exact_share": 1.0, "ms": dense, "pairs": shape.heads * shape.tokens**2})
        rows.append({**common, "method": sol_name(1.3), "ms": dense / 3})
        for density in (0.1, 0.2):
            ms = dense / (shape.tokens / 16384) ** 2 if shape in SWEEP else dense / 4
            stages = {"cluster_ms": ms / 8, "permute_ms": ms / 40, "summarize_ms": ms / 40, "probe_ms": ms / 40, "route_ms": ms / 40}
            pairs = shape.heads * shape.tokens**2 // 10
            ours = {**common, **stages, "attend_ms": ms / 2, "pairs": pairs, "processed_pairs": 2 * pairs, "extra_over_inputs": 0.9}
            for precision, factor in (("full", 1.0), ("int8", (65536 / shape.tokens) ** 0.25 if shape in SWEEP else 1 / 1.5)):
                row = {
                    **ours,
                    "method": OURS,
                    "density": density,
                    "precision": precision,
                    "ms": ms * factor,
                    "host_synchronisation": "none",
                }
                rows.append(row | {"attend_ms": row["attend_ms"] * factor, "extra_mib": 100})
    cluster = {"shape": "wan-720p", "part": "cluster", "data": "structured"}
    for what, ms in (("keys, 1000 clusters", 8.0), ("queries, 300 clusters", 4.0)):
        rows += [{**cluster, "method": f"flash_kmeans {what}", "ms": ms}, {**cluster, "method": f"{OURS} {what}", "ms": ms / 2}]
    for name in SHAPES:
        speed_rows.add_ratios([row for row in rows if row["shape"] == name])
    return rows


def test_ratios_and_rates():
    row = next(row for row in sample_rows() if row["shape"] == "wan-720p" and row["method"] == OURS)
    assert float(row["speedup"]) == pytest.approx(4)
    rate = row["pairs"] * 4 * 128 / (row["attend_ms"] / 1000) / 1e12
    assert float(row["attend_useful_tflops"]) == pytest.approx(rate, rel=1e-3)
    assert float(row["attend_processed_tflops"]) == pytest.approx(2 * rate, rel=1e-3)


def test_bars_tell_met_missed_and_not_measured():
    rows = sample_rows()
    verdicts = {bar.what: bar.passed for bar in bars(rows, 16384, {0.1, 0.2})}
    assert verdicts["wan-720p at density 0.1: speed-up over SDPA cuDNN"] is True
    assert verdicts["wan-720p at density 0.05: speed-up over SDPA cuDNN"] is None
    assert verdicts["wan-720p at density 0.1: k-means of q and k over flash_kmeans"] is True
    assert verdicts["wan-720p at density 0.1: share of permute, summarize, probe, route"] is True
    assert verdicts["wan-720p at density 0.1: extra memory over q, k and v"] is True
    assert verdicts["wan-720p at density 0.1: extra memory in int8 over that in full"] is True
    assert verdicts["wan-720p at density 0.1, int8: speed-up over SDPA cuDNN"] is True
    assert verdicts["wan-5b-720p at density 0.1, int8: speed-up over SDPA cuDNN"] is True
    assert verdicts["wan-720p at density 0.1, structured data: time over that of sol_attn tau 1.3 aug 256"] is True
    assert verdicts["calls that make the host wait"] is True
    assert verdicts["lowest speed-up of a preset from min_tokens (16384) on"] is True
    assert bars(rows, 8192, {0.1})[-1].passed is False and bars(rows, 8192, {0.3})[-1].passed is None
    rows[2]["host_synchronisation"] = "route.py:1: x.item()"
    assert speed.report(bars(rows, 16384, {0.1})) == 1
    assert {bar.passed for bar in bars([], 4096, {0.1})} == {None}


def calibrated_rows(rows):
    """Those of calibrated calls beside ``rows``, which would miss every bar."""
    missed = {"ms": 1e6, "speedup": 1e-6, "host_synchronisation": "profile.py:1: x.item()"}
    return [{**row, **missed, "method": name} for row in rows if row["method"] == OURS for name in (CALIBRATED, COMPENSATED)]


def test_rows_of_calibrated_calls_change_neither_bars_nor_break_even():
    rows = sample_rows()
    with_them = calibrated_rows(rows) + rows
    assert bars(with_them, 16384, {0.1, 0.2}) == bars(rows, 16384, {0.1, 0.2})
    assert break_even(with_them, 0.1) == break_even(rows, 0.1)


def test_rows_of_int8_have_bars_of_their_own_and_those_without_a_precision_are_full():
    rows = sample_rows()
    for row in rows:
        if row.get("precision") == "int8":
            row |= {"extra_mib": 102, "speedup": "1.5"}
    missed = [bar.what for bar in bars(rows, 16384, {0.1, 0.2}) if bar.passed is False]
    int8 = [f"{name} at density 0.1, int8: speed-up over SDPA cuDNN" for name in ("wan-720p", "wan-480p", "wan-5b-720p", "32k")]
    assert missed == [*int8, "wan-720p at density 0.1: extra memory in int8 over that in full"]
    older = [{name: value for name, value in row.items() if name != "precision"} for row in rows if row.get("precision") != "int8"]
    assert break_even(older, 0.1) == break_even(rows, 0.1) and overtaking(older, 0.1) is None
    assert {bar.passed for bar in bars(older, 16384, {0.1, 0.2}) if "int8" in bar.what} == {None}
    assert overtaking(rows, 0.1) == pytest.approx(65536)


def test_the_bar_against_sol_attn_holds_for_every_kind_of_data():
    rows = sample_rows()
    other = [{**row, "data": "gaussian"} for row in rows if row["shape"] == "wan-720p"]
    next(row for row in other if row["method"] == sol_name(1.3))["ms"] = 0.1
    verdicts = {bar.what: bar.passed for bar in bars(rows + other, 16384, {0.1})}
    assert [passed for what, passed in verdicts.items() if "sol_attn" in what] == [True, False]
    assert sum(passed is False for passed in verdicts.values()) == 1


def test_break_even_is_interpolated():
    rows = sample_rows()
    assert break_even(rows, 0.1) == pytest.approx(16384, rel=1e-6)
    assert break_even([row for row in rows if row.get("tokens") != 16384], 0.1) == pytest.approx(16384, rel=0.01)
    assert break_even([row for row in rows if row.get("tokens", 0) > 20000], 0.1) == 32768
    assert break_even([row for row in rows if row.get("tokens", 0) < 10000], 0.1) == math.inf
    assert break_even(rows, 0.05) is None


def test_the_picture_is_drawn_from_the_csv(tmp_path):
    sample = sample_rows()
    results.write(tmp_path / "speed.csv", [{**row, **ORIGIN} for row in calibrated_rows(sample) + sample])
    assert speed.main(["--plot-only", str(tmp_path / "speed.csv"), "--docs", str(tmp_path)]) == 0
    picture = Image.open(tmp_path / "speed.png").convert("RGB")
    assert picture.width > 1500 and len(picture.getcolors(1 << 24)) > 100
    text = (tmp_path / "speed.svg").read_text()
    assert all(words in text for words in ("Some GPU", "SVG-EAR, 10 % exact", "SVG-EAR, 10 % exact, int8", "75,600 tokens", "256k"))
    rows = results.read(tmp_path / "speed.csv")
    one_model = [row for row in rows if row["shape"] == "wan-720p"]
    only_models = draw(one_model, tmp_path / "models")
    assert all(path.stat().st_size for path in only_models) and "256k" not in only_models[1].read_text()
    not_calibrated = [row for row in one_model if row["method"] not in (CALIBRATED, COMPENSATED)]
    assert draw(not_calibrated, tmp_path / "fewer")[1].read_text() == only_models[1].read_text()
    with pytest.raises(ValueError, match="run the bench first"):
        draw([], tmp_path / "none")


def test_rows_without_a_time_are_not_written(tmp_path):
    table = speed_rows.Table(tmp_path / "speed.csv", ORIGIN)
    table.rows += [{"method": "a", "ms": "1.5"}, {"method": "b"}, {"method": "c", "ms": "2", "late": "x"}]
    table.save()
    written = list(csv.DictReader(open(tmp_path / "speed.csv")))
    assert [row["method"] for row in written] == ["a", "c"] and written[0]["hardware"] == "Some GPU"
    assert list(written[0]) == ["method", "ms", "late", *ORIGIN]


def test_every_row_of_a_shape_is_measured(monkeypatch, tmp_path):
    """The whole of it on the CPU, with what only a GPU has taken out."""
    said = []
    monkeypatch.setattr(speed_rows, "interleaved", lambda runs, rounds, _: [[[float(i + 1)] * rounds for i in range(len(runs))]])
    monkeypatch.setattr(speed_rows, "extra_memory", lambda run, _: 3 * 2**20)
    monkeypatch.setattr(speed_rows, "host_synchronisation", lambda run: "")
    monkeypatch.setattr(speed_rows, "dense_methods", lambda inputs, *_: [Method(BASELINE, dense(inputs), facts={"exact_share": 1.0})])
    monkeypatch.setattr(speed_methods, "cluster_stage", lambda: torch_stages.cluster)
    monkeypatch.setattr(speed_methods, "import_module", missing)
    plan = speed_rows.Plan(Settings(recluster_every=2), (0.1, 0.3), ("full", "int8"), 2, 1.0, (), said.append)
    table = speed_rows.Table(tmp_path / "speed.csv", ORIGIN)
    speed_rows.measure(BLOCKY, "structured", False, plan, table, CPU)

    rows = results.read(tmp_path / "speed.csv")
    ours = [row for row in rows if row["method"] == OURS]
    kinds = [("0.1", "full"), ("0.1", "int8"), ("0.3", "full"), ("0.3", "int8")]
    assert [(row["density"], row["precision"]) for row in ours] == kinds
    for row, position in zip(ours, (2, 3, 4, 5)):
        # Two calls a run, because clusters serve two calls.
        assert float(row["ms"]) == position / 2 and float(row["speedup"]) == pytest.approx(2 / position, rel=1e-3)
        assert float(row["exact_share"]) == pytest.approx(float(row["density"]), abs=0.05)
        assert float(row["extra_mib"]) == 3 and float(row["state_mib"]) > 0 and row["host_synchronisation"] == "none"
        assert all(float(row[f"{stage}_ms"]) > 0 for stage in ("cluster", "permute", "summarize", "probe", "route", "attend"))
        assert float(row["attend_processed_tflops"]) > float(row["attend_useful_tflops"]) > 0
    errors = [float(row["relative_error"]) for row in ours]
    assert errors[2] < errors[0] < 1 and errors[3] < errors[1] < 1 and errors[0] != errors[1] == pytest.approx(errors[0], rel=0.1)
    given = {name: [row for row in rows if row["method"] == name] for name in (CALIBRATED, COMPENSATED)}
    assert all([row["density"] for row in found] == ["0.1", "0.3"] for found in given.values())
    for dropped, compensated, blocks in zip(*given.values(), (1, 2)):
        for row in (dropped, compensated):
            assert float(row["ms"]) > 0 and float(row["speedup"]) == pytest.approx(1 / float(row["ms"]), rel=1e-3)
            assert float(row["exact_share"]) == pytest.approx(blocks / 6, abs=0.03)
            assert float(row["extra_mib"]) == 3 and float(row["state_mib"]) == 0 and row["host_synchronisation"] == "none"
            assert all(float(row[f"{stage}_ms"]) > 0 for stage in ("cluster", "permute", "summarize", "probe", "route", "attend"))
            assert float(row["attend_processed_tflops"]) > float(row["attend_useful_tflops"]) > 0
        exact = float(dropped["exact_share"]) * BLOCKY.tokens + BLOCKY.conditioning
        assert int(dropped["pairs"]) == pytest.approx(BLOCKY.heads * BLOCKY.tokens * exact, rel=1e-3)
        assert int(compensated["pairs"]) - int(dropped["pairs"]) == BLOCKY.heads * BLOCKY.tokens * (6 - blocks)
        assert float(compensated["relative_error"]) < float(dropped["relative_error"]) < 1
    assert [row["part"] for row in rows] == ["attention"] * 9 + ["cluster"] * 2
    assert all(row["precision"] == "" for row in rows if row["method"] == BASELINE or row["part"] == "cluster")
    assert all(any(f"{package} IS LEFT OUT" in line for line in said) for package in ("comfy-kitchen", "flash-kmeans"))


def dense(inputs):
    """Dense attention of the first step."""
    return lambda: torch.nn.functional.scaled_dot_product_attention(*inputs.step(0))


def missing(name):
    """An import that fails."""
    raise ImportError(f"No module named {name!r}")


def test_the_first_call_and_other_lengths_are_timed(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(compilation, "OTHER_GRIDS", ((3, 5, 7),))
    rows = compilation.measure_compilation(SMALL, Settings(), "structured", CPU, lambda text: None)
    assert [row["tokens"] for row in rows] == [360, 105] and all(float(row["first_call_s"]) > 0 for row in rows)
    assert [bar.passed for bar in compilation.compilation_bars(rows)] == [True, True]
    rows[1]["kernels_specialised"] = 2
    assert compilation.compilation_bars(rows)[1].passed is False


def test_what_a_call_asks_of_the_host_is_measured(monkeypatch):
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(enqueue, "CASES", (((0,), SMALL), ((0, 0), SMALL)))
    monkeypatch.setattr(enqueue, "CALLS", 2)
    # Microseconds of each: torch without CUDA has no profiler for them.
    monkeypatch.setattr(enqueue, "_kernels", lambda call, device: [2.0, 3.0])
    both = {"new": kernels, "old": kernels}
    rows = enqueue.measure_enqueueing(both, {"kmeans_first": 1}, "structured", CPU, lambda text: None)
    assert [(row["batch"], row["clustered"], row["commit"]) for row in rows] == [(b, 1, name) for b in (1, 2) for name in both]
    assert all(float(row["host_ms"]) >= float(row["least_host_ms"]) > 0 for row in rows)
    assert [(row["kernels"], row["busy_ms"]) for row in rows] == [(2, "0.005")] * 4
    rows[0] |= {"host_ms": "3.01", "kernels": 91}
    rows[2] |= {"host_ms": "2.9"}
    assert [bar.passed for bar in enqueue.enqueueing_bars(rows)] == [False, False, True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_without_a_gpu_it_says_so_and_fails(capsys, tmp_path):
    assert speed.main(["--results", str(tmp_path), "--docs", str(tmp_path)]) == 2
    assert "needs a CUDA GPU" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_the_command_line_chooses_subsets():
    assert speed.parse([]).shapes == list(SHAPES)
    assert speed.parse(["--quick", "--densities", "0.3"]).densities == [0.3]
    quick = speed.parse(["--quick"])
    assert quick.shapes == ["wan-480p"] and quick.densities == [0.1] and quick.rounds == 1
    assert speed.parse(["--shapes", "8k", "sweep"]).shapes == [shape.name for shape in SWEEP]
    assert dict(speed.parse(["--set", "recluster_every=2", "weighted_centroids=False", "top_p=0.9"]).set) == {
        "recluster_every": 2,
        "weighted_centroids": False,
        "top_p": 0.9,
    }
    for wrong in (["--set", "nothing=1"], ["--set", "recluster_every=x"], ["--shapes", "moon"]):
        with pytest.raises(SystemExit):
            speed.parse(wrong)
