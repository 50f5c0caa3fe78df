"""The command that calibrates the demo model, on a clip of a few tokens, and the blocks it compares with."""

import math

import pytest
import torch
from svg_ear.kernels import BlockRouting
from svg_ear.kernels.calibration import read_profile

from benchmarks import results
from benchmarks.calibration import bench as calibrate
from benchmarks.calibration.methods import computed_shares
from benchmarks.position_blocks import best_blocks
from benchmarks.quality import bench as quality
from benchmarks.quality.calibrated import blocks_cost
from benchmarks.quality.methods import Scale


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Rows and profile of a small run."""
    folder = tmp_path_factory.mktemp("calibrate")
    patch = pytest.MonkeyPatch()
    patch.setitem(calibrate.SCALES, "cpu", Scale((3, 10, 16), 3, 1.0, 1))
    arguments = ["--device", "cpu", "--clips", "2", "--seeds", "1", "--results", str(folder), "--profile", str(folder / "p.safetensors")]
    assert calibrate.main(arguments) == 0
    patch.undo()
    return results.read(next(folder.glob("*.csv"))), folder / "p.safetensors"


def test_every_row_says_what_it_is_of(bench):
    rows, profile = bench[0], read_profile(bench[1])
    assert {row["clips"] for row in rows} == {"2"} and profile.prompts == 2 and profile.grid == (3, 10, 16)
    assert all(row["hardware"] and row["torch"] and float(row["calibrating_over_dense"]) > 0.5 for row in rows)
    assert rows[0]["method"] == "dense" and rows[0]["psnr_db"] == ""
    assert all(math.isfinite(float(row["psnr_db"])) for row in rows[1:])


def test_all_spend_what_the_calibration_spends(bench):
    """Blocks of 128 of 480 tokens are coarse, so within half a block row."""
    rows, _ = bench
    spent = {(row["method"], row["setting"]): float(row["exact_share"]) for row in rows}
    calibrated = spent["calibrated", ""]
    assert 0.2 < calibrated < 1
    for (method, _), share in spent.items():
        if method == "position blocks, raster":
            assert share == pytest.approx(calibrated, abs=0.15)
    assert spent["calibrated, compensated", ""] == calibrated


def test_the_quality_bench_follows_a_profile(bench, tmp_path, monkeypatch):
    rows, path = bench
    monkeypatch.setattr(quality, "QUICK_SCALE", Scale((3, 10, 16), 3, 1.0, 1))
    options = ["--device", "cpu", "--quick", "--parts", "standard", "--methods", "^calibrated", "--calibration", str(path)]
    quality.main([*options, "--results", str(tmp_path), "--docs", str(tmp_path)])
    found = {row["method"]: row for row in results.read(next(tmp_path.glob("quality_cpu*.csv")))}
    assert set(found) == {"dense", "calibrated", "calibrated, compensated"}
    same = next(row for row in rows if (row["method"], row["setting"]) == ("calibrated", ""))
    assert found["calibrated"]["psnr_db"] == same["psnr_db"]
    monkeypatch.setattr(quality, "QUICK_SCALE", Scale((3, 10, 14), 3, 1.0, 1))
    with pytest.raises(ValueError, match=r"calibrated for \(3, 10, 16\) tokens, and clips have \(3, 10, 14\)"):
        quality.main([*options, "--results", str(tmp_path), "--docs", str(tmp_path)])


def test_clips_are_not_compared_on_what_they_were_calibrated_on(capsys):
    with pytest.raises(SystemExit):
        calibrate.parse(["--seeds", "3", "1005"])
    assert "[1005] are calibrated on" in capsys.readouterr().err


def test_best_blocks_spend_their_share():
    q, k = torch.randn(2, 1, 3, 1000, 16, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.3, 0.5, 1.0])
    exact = best_blocks(q, k, shares, 64)
    assert (torch.diagonal(exact, dim1=-2, dim2=-1)).all() and exact[0, 2].all()
    spent = computed_shares(BlockRouting(exact[0], 64), 1000)
    torch.testing.assert_close(spent, shares.double(), atol=64**2 / 1000**2, rtol=0)


def test_costs_beside_the_exact_pairs():
    assert blocks_cost(calibrate.CALIBRATED) == 0
    assert blocks_cost(calibrate.COMPENSATED) == 2 / 128 and blocks_cost(calibrate.PLAIN_MEANS) == 1.5 / 128
