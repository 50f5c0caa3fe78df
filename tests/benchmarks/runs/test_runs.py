"""The bench of whole clips: what it reckons and shows, sol_attn's schedule, and tiny sampler runs in a real ComfyUI. Times need a GPU."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import pack, results
from benchmarks.checkout import find_checkout
from benchmarks.runs import bench
from benchmarks.runs.models import CLIPS, MODELS, Clip
from benchmarks.runs.plot import draw, series
from benchmarks.runs.rows import Sampled, Steps, dense_step_of, figures
from benchmarks.runs.sol import SolAttention
from benchmarks.runs.spec import Spec
from benchmarks.runs.table import markdown

ORIGIN = {"hardware": "Some GPU", "torch": "2.0", "triton": "3.0", "commit": "abc", "date": "2026-01-01"}
VERSIONS = {"comfyui": "0.33.0", "comfy_kitchen": "0.2.40"}


def test_clips_are_those_of_the_models():
    tokens = {str(clip): MODELS[clip.model].tokens(MODELS[clip.model].sizes[clip.size]) for clip in CLIPS}
    assert tokens == {
        "wan-14b/720p": 75_600,
        "hunyuan/720p": 118_800,
        "hunyuan-1.5/720p": 111_600,
        "wan-14b/480p": 32_760,
        "wan-14b/480p/cfg5": 32_760,
        "wan-14b/640": 33_600,
        "wan-5b/720p": 27_280,
        "wan-1.3b/480p": 32_760,
        "ltx-2/1080p": 32_640,
        "ltx-2/1080p-241": 63_240,
        "minimax-h3/704p": 32_560,
        "minimax-h3/704p-243": 63_360,
    }
    ltx = MODELS["ltx-2"]
    assert [ltx.audio_shape(size) for size in ltx.sizes.values()] == [(1, 8, 126, 16), (1, 8, 251, 16)]
    h3 = MODELS["minimax-h3"]
    assert [h3.latent_shape(size)[2] for size in h3.sizes.values()] == [37, 72] and h3.tiny().tokens(h3.tiny().sizes["704p"]) > 100
    assert [h3.audio_shape(size) for size in h3.sizes.values()] == [(1, 32, 2, 207), (1, 32, 2, 405)]
    assert ltx.tiny().text == (12, 384) and MODELS["wan-14b"].tiny().text == (12, 4096)
    assert [Clip.parse(str(clip)) for clip in CLIPS] == list(CLIPS)
    assert MODELS["hunyuan"].with_layers(15).depths == (5, 10) and MODELS["hunyuan-1.5"].with_layers(2).depths == (2, 0)
    for wrong in ("wan-14b", "wan-14b/1080p", "moon/720p", "wan-14b/480p/cfg5/x", "wan-14b/480p/cfgx"):
        with pytest.raises(ValueError):
            Clip.parse(wrong)


def test_methods_are_read_with_their_settings():
    spec = Spec.parse("against/balanced:density=0.15,dense_blocks=0+38-39")
    assert (spec.name, spec.against, spec.settings) == ("balanced", True, (("density", "0.15"), ("dense_blocks", "0,38-39")))
    schedules = {
        "balanced": (4, 0),
        "sol": (4, 0),
        "dense-cudnn": (20, 20),
        "fast:dense_first_steps=2": (2, 2),
        "few-step:dense_first_steps=1": (1, 1),
    }
    assert {text: tuple(Spec.parse(text).dense_steps(20, falls) for falls in (False, True)) for text in schedules} == schedules
    for wrong in ("sparse", "against/dense", "balanced:density"):
        with pytest.raises(ValueError):
            Spec.parse(wrong)


def test_the_command_line_chooses():
    options = bench.parse([])
    assert options.clips == list(CLIPS) and options.steps == bench.STEPS and not any(spec.against for spec in options.methods)
    assert [spec.text for spec in bench.parse(["--against", "x", "--methods", "dense"]).methods] == ["dense", "against/balanced"]
    assert bench.parse(["--tiny"]).steps == 3 and bench.parse(["--tiny", "--steps", "7"]).steps == 7
    for wrong in (["--clips", "moon/720p"], ["--methods", "sparse"], ["--methods", "against/fast"]):
        with pytest.raises(SystemExit):
            bench.parse(wrong)


def sampled(method, seconds, sparse_steps=(), shares=0.1, steps=None, layers=(4, 4), dense_layers=1.0):
    shares = dict.fromkeys(sparse_steps, shares) if isinstance(shares, float) else dict(zip(sparse_steps, shares))
    dense, sparse = Steps.sorted(seconds, shares)
    return Sampled(Spec.parse(method), steps or len(seconds), dense, sparse, *layers, dense_layers)


def test_a_clip_is_reckoned_from_fewer_steps():
    run = sampled("balanced", [9.0, 7.0, 30.0, 8.0, 2.0, 2.2, 2.1, 2.0, 2.1, 2.1], range(2, 10))
    assert run.clip(None) == pytest.approx((4 * 7.0, 16 * 2.1)) and run.known == "reckoned from 10 steps"
    assert (run.sparse.extra(0), run.sparse.extra(1)) == pytest.approx((27.9, 5.9))
    assert sampled("dense", [5.0, 4.0]).clip(None) == (80.0, 0.0)
    assert sampled("balanced", [5.0, 9.0, 2.0, 1.0, 1.0], range(1, 5)).clip(4.0) == pytest.approx((16.0, 16.0))


def test_steps_whose_share_falls_tell_what_the_first_took_on_top():
    shares = (0.4, 0.3, 0.2, 0.15, 0.1)
    steps = Steps((2 + 40 + 9, 2 + 30 + 1, *(2 + 100 * share for share in shares[2:])), shares)
    assert (steps.extra(0), steps.extra(1)) == pytest.approx((9, 1))
    assert steps.total == pytest.approx(sum(2 + 100 * share for share in shares)) and steps.mean == pytest.approx(steps.total / 5)
    few = Steps(steps.seconds[:3], shares[:3])
    assert few.extra(0) is None and few.mean == few.usual == 22


def test_a_clip_of_all_steps_is_measured_without_what_compiles():
    seconds = [9.0, *[7.0] * 3, 30.0, 8.0, *[2.0] * 14]
    run = sampled("balanced", seconds, range(4, 20))
    assert run.clip(None) == pytest.approx((28.0, 32.0)) and run.known == "measured"
    # Denser first steps are compared with their like; where there is none, they count as they were.
    shares = [0.3] * 4 + [0.1] * 16
    graded = sampled("balanced", [30.0, 9.0, 5.0, 5.0, *[2.0] * 16], range(20), shares)
    assert graded.clip(None) == pytest.approx((0.0, 20.0 + 32.0))
    graded = sampled("balanced", [6.0, 5.0, *[2.0] * 18], range(20), [0.3] * 2 + [0.1] * 18)
    assert graded.clip(None) == pytest.approx((0.0, 11.0 + 36.0))


@pytest.mark.parametrize("steps", [10, 20])
def test_fewer_layers_are_reckoned_block_by_block(steps):
    """A dense block takes 0.5 s and a sparse one 0.1 s; the first of every sparse step is dense."""
    sparse_steps = range(steps // 5, steps)
    seconds = {layers: [layers * 0.5] * (steps // 5) + [0.5 + (layers - 1) * 0.1] * len(sparse_steps) for layers in (4, 40)}
    whole = sampled("balanced", seconds[40], sparse_steps, layers=(40, 40)).clip(None)
    part = sampled("balanced", seconds[4], sparse_steps, layers=(4, 40))
    assert part.clip(None) == pytest.approx(whole) and "4 of 40 layers" in part.known


def test_dense_blocks_take_what_they_take_on_the_attention_that_they_used():
    """A dense layer on cuDNN is no dense layer on FlashAttention."""
    seconds = {"dense": 16.0, "dense-cudnn": 12.0}
    cudnn, flash = {"cuDNN (PyTorch SDPA)": 5}, {"ComfyUI's PyTorch attention": 5}
    found = [dense_step_of(SimpleNamespace(dense_attention=names), seconds) for names in (cudnn, flash, {}, cudnn | flash)]
    assert found == [12.0, 16.0, 16.0, None] and dense_step_of(None, seconds) == 16.0
    assert dense_step_of(SimpleNamespace(dense_attention=cudnn), {"dense": 16.0}) is None


def test_a_clip_is_not_reckoned_from_what_is_missing():
    assert sampled("balanced", [7.0, 7.0, 2.0, 2.0], [2, 3], steps=5).clip(None) is None  # one dense step was due
    assert sampled("balanced", [7.0, 2.0], [1], steps=5).clip(None) is None  # stopped while kernels were compiled
    assert sampled("dense", []).clip(None) is None
    assert sampled("few-step", [3.0, 2.0, 2.0], range(3), layers=(2, 4)).clip(None) is None  # how long is a dense block?
    assert sampled("few-step", [3.0, 2.0, 2.0], range(3), layers=(2, 4)).clip(1.0) is not None


def run_of(seconds):
    return SimpleNamespace(step_seconds=tuple(seconds), seconds=sum(seconds) + 1, evaluations=len(seconds), peak_bytes=2**31, finite=True)


def test_columns_of_a_row():
    calls = SimpleNamespace(sparse=9, dense={"warm-up-step": 4, "dense-block": 3}, sparse_steps=dict.fromkeys(range(1, 4), 0.1))
    calls.exact_share, calls.state_bytes, calls.dense_attention, calls.int8 = 0.1, 2**20, {"cuDNN (PyTorch SDPA)": 7}, 0
    row = figures(run_of([4.0, 5.0, 1.5, 1.0]), calls, Spec.parse("balanced"), 4, (4, 40), 4.0)
    assert row["dense_step_s"] == "4" and row["sparse_step_s"] == "1" and row["first_sparse_extra_s"] == "4"
    assert row["second_sparse_extra_s"] == "0.5" and row["run_s"] == "12.5" and row["peak_gib"] == "2" and row["state_mib"] == "1"
    assert row["sparse_calls"] == 9 and row["dense_calls"] == 7 and row["dense_reasons"] == "4 warm-up-step; 3 dense-block"
    assert row["dense_attention"] == "7 cuDNN (PyTorch SDPA)"
    assert (
        row["clip"] == "20 steps, reckoned from 4 steps of 4 of 40 layers" and row["clip_dense_s"] == "160" and row["clip_sparse_s"] == "16"
    )
    told = {0: "full", 9: "int8", 2: "2 of 9 in int8"}
    for calls.int8, words in told.items():
        assert figures(run_of([4.0, 5.0, 1.5, 1.0]), calls, Spec.parse("balanced"), 4, (4, 40), 4.0)["precision"] == words
    calls.int8 = 0
    assert figures(run_of([4.0, 5.0, 1.5, 1.0]), calls, Spec.parse("sol"), 4, (4, 40), 4.0)["precision"] == ""
    dense = figures(run_of([4.0, 4.0]), None, Spec.parse("dense"), 2, (4, 40), None)
    assert list(dense) == list(row) and dense["sparse_calls"] == "" and dense["clip_s"] == "800"


@pytest.mark.parametrize("heads_first", [False, True])
def test_sol_attn_follows_our_schedule(monkeypatch, heads_first):
    seen = []

    def sol_attn(q, k, v, **options):
        seen.append((tuple(q.shape), options))
        return v

    monkeypatch.setitem(sys.modules, "comfy_kitchen", SimpleNamespace(sol_attn=sol_attn))
    attend = SolAttention(Spec.parse("sol:tau=1.0,min_tokens=0"), 5, 6)
    v = torch.arange(2 * 6 * 256.0).reshape(2, 6, 256).bfloat16()
    given = v.unflatten(-1, (2, 128)).transpose(1, 2) if heads_first else v
    schedule = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.1, 0.0])

    def call(step, block, k=given, **options):
        known = {"sample_sigmas": schedule, "sigmas": schedule[step : step + 1], "block_index": block, "block_type": "double"}
        return attend(lambda *_, **__: "dense", given, k, k, heads=2, skip_reshape=heads_first, transformer_options=known, **options)

    assert torch.equal(call(1, 1), v) and torch.equal(call(4, 3, skip_output_reshape=True), v.unflatten(-1, (2, 128)).transpose(1, 2))
    assert call(0, 1) == call(1, 0) == call(1, 1, mask=torch.zeros(1)) == call(1, 1, k=given[..., :3, :]) == "dense"
    assert seen == [((2, 6, 2, 128), {"tau": 1.0, "scale": None, "token_aug": 256})] * 2
    assert attend.sparse_calls == 2 and attend.sparse_steps == {1, 4}
    assert dict(attend.dense_calls) == {"warm-up-step": 1, "dense-block": 1, "mask": 1, "cross-attention": 1}
    with pytest.raises(ValueError, match="sol has no density"):
        SolAttention(Spec.parse("sol:density=0.1"), 5, 6)


def sample_rows():
    rows = []
    for clip in CLIPS[:5]:
        for method, dense, sparse in (
            ("dense", 100, 0),
            ("dense-cudnn", 70, 0),
            ("sol", 20, 30),
            ("against/balanced", 20, 35),
            ("balanced", 10, 20),
            ("balanced:precision=int8", 9, 17),
        ):
            row = {"model": clip.model, "size": clip.size, "cfg": clip.cfg, "tokens": 1000, "method": method, "dense_step_s": "5"}
            row |= {"clip_dense_s": dense, "clip_sparse_s": sparse, "clip_s": dense + sparse, "clip": "20 steps, measured", "error": ""}
            rows.append({**row, **ORIGIN, **VERSIONS})
    rows.append({**rows[0], "method": "fast", "clip_s": "", "clip": "", "error": "OutOfMemoryError: no room"})
    return rows


def test_table_and_picture_are_made_from_the_csv(tmp_path, capsys):
    results.write(tmp_path / "runs.csv", sample_rows())
    assert bench.main(["--plot-only", str(tmp_path / "runs.csv"), "--docs", str(tmp_path)]) == 1  # a method failed
    table = (tmp_path / "runs_results.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert "| Wan 14B 480p, CFG 5, 1,000 | balanced | 5 |" in table and "| 3.33 |" in table and "failed: OutOfMemoryError: no room" in table
    assert table.count("Some GPU, torch 2.0") == 2  # with a whole clip and without
    picture = Image.open(tmp_path / "runs.png").convert("RGB")
    assert picture.width > 1000 and len(picture.getcolors(1 << 24)) > 100
    text = (tmp_path / "runs.svg").read_text()
    assert all(
        words in text for words in ("Some GPU", "HunyuanVideo 1.5", "720p", "CFG 5", "balanced, before", "dense, cuDNN", "balanced, int8")
    )
    assert "few-step" not in text and "balanced, full" not in text
    without_dense = [row for row in sample_rows() if row["method"] != "dense"]
    assert "| 3.33 |" not in markdown(without_dense)
    with pytest.raises(ValueError, match="run the bench first"):
        draw(without_dense, tmp_path / "none")


def test_a_bar_tells_the_precision_that_ran_and_not_how_it_was_asked_for():
    bars = {
        ("balanced", ""): "balanced",
        ("balanced", "full"): "balanced",
        ("balanced", "int8"): "balanced, int8",
        ("balanced:precision=full", "full"): "balanced",
        ("fast:precision=int8", "int8"): "fast, int8",
        ("dense-int8", ""): "dense-int8",
        ("balanced:density=0.2", "int8"): "balanced:density=0.2, int8",
    }
    assert {pair: series(dict(zip(("method", "precision"), pair))) for pair in bars} == bars


def test_without_a_comfyui_it_says_so_and_fails(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert bench.main(["--tiny", "--results", str(tmp_path)]) == 2
    assert "needs a ComfyUI" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.skipif(find_checkout() is None, reason="no ComfyUI checkout found")
def test_tiny_models_are_sampled_in_comfyui(tmp_path):
    """In a process of its own, since ComfyUI wants to be imported before torch; the pack against itself."""
    command = [sys.executable, "-m", "benchmarks.runs", "--tiny", "--results", str(tmp_path), "--docs", str(tmp_path), "--commit", "new"]
    command += [
        "--clips",
        "wan-14b/480p/cfg5",
        "hunyuan/720p",
        "ltx-2/1080p",
        "minimax-h3/704p",
        "--against",
        str(pack.ROOT),
        "--against-commit",
        "old",
    ]
    methods = ["balanced:density=0.3,precision=int8", "balanced:density=0.3,precision=full", "against/few-step"]
    command += ["--methods", "dense", "dense-cudnn", *methods]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=pack.ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert "dense-cudnn IS LEFT OUT: cuDNN needs a CUDA GPU" in finished.stdout

    (path,) = tmp_path.glob("runs_cpu-*.csv")
    rows = results.read(path)
    assert [(row["model"], row["method"]) for row in rows] == [
        (model, method) for model in ("wan-14b", "hunyuan", "ltx-2", "minimax-h3") for method in ("dense", *methods)
    ]
    for row in rows:
        ours, steps = row["method"] != "dense", row["step_seconds"].split()
        assert row["finite"] == "True" and not row.get("error") and float(row["clip_s"]) > 0
        assert row["comfyui"] == find_checkout().version and row["commit"] == ("old" if row["method"].startswith("against/") else "new")
        assert len(steps) == int(row["steps"]) == int(row["dense_steps"]) + int(row["sparse_steps"]) == (3 if ours else 2)
        if not ours:
            assert row["sparse_calls"] == row["precision"] == "" and row["sparse_steps"] == "0"
            continue
        assert row["precision"] == ("int8" if "int8" in row["method"] else "full")
        # All self-attention of the sparse steps but the first layer's.
        layers = int(row["layers"])
        assert int(row["sparse_calls"]) == int(row["sparse_steps"]) * (layers - 1)
        assert re.fullmatch(r"\d+ ComfyUI's PyTorch attention", row["dense_attention"])
        assert f"{row['sparse_steps']} dense-block" in row["dense_reasons"] and float(row["exact_share"]) == pytest.approx(0.3, abs=0.03)
    assert (tmp_path / "runs.svg").is_file() and "HunyuanVideo 720p" in (tmp_path / "runs_results.md").read_text()
