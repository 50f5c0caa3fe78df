import sys
from pathlib import Path

import pytest
import torch

from benchmarks import pack, results
from benchmarks.gpu_check import bench
from benchmarks.gpu_check.attentions import CUDNN, SDPA, attentions
from benchmarks.gpu_check.verify import verify

pack.load()
sys.path.append(str(Path(__file__).resolve().parents[2] / "nodes"))
from findings_made import dense_time, findings, sparse_time  # noqa: E402
from svg_ear.kernels import tuning  # noqa: E402
from svg_ear.nodes.checking.check import Checked  # noqa: E402
from svg_ear.nodes.patch.findings_file import read  # noqa: E402

GPU = torch.device("cuda", 0)


def test_without_a_gpu_there_is_nothing_to_check(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().out == "Nothing to check: torch finds no GPU.\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def hopper(monkeypatch):
    """A GPU on which nothing runs."""
    monkeypatch.setattr(tuning, "_IN_USE", {})
    monkeypatch.setattr(tuning, "architecture", lambda device: 90)
    monkeypatch.setattr("benchmarks.gpu_check.verify.cautious_tokens", lambda device: 24576)


def test_it_writes_rows_findings_picture_and_text(monkeypatch, hopper, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(bench, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(bench.Check, "run", lambda self: Checked(findings(), ("sage: not here",)))
    assert bench.main(["--results", str(tmp_path), "--commit", "abc1234"]) == 0
    stem = tmp_path / "gpu_check_nvidia-h100-80gb-hbm3"
    rows = results.read(stem.with_suffix(".csv"))
    assert {row["commit"] for row in rows} == {"abc1234"} and {row["hardware"] for row in rows} == {"NVIDIA H100 80GB HBM3"}
    calls, ends = ([row for row in rows if row["what"] == what] for what in ("call", "break-even"))
    assert len(calls) == len(findings().timings) * 6 and len(ends) == 2 * 4
    assert read(stem.with_suffix(".json")) == [findings()]
    assert stem.with_suffix(".png").stat().st_size > 1000
    text = stem.with_suffix(".txt").read_text()
    assert "commit abc1234" in text and "sage: not here" in text and text in capsys.readouterr().out


def test_dense_attention_is_that_of_torch_in_the_layout_of_comfyui():
    found = attentions([CUDNN], torch.device("cpu"), lambda text: None)
    assert list(found)[:2] == [CUDNN, SDPA]
    q, k, v = (torch.randn(1, 5, 2 * 64) for _ in range(3))
    expected = [torch.softmax(q[0, :, part] @ k[0, :, part].T / 8, dim=-1) @ v[0, :, part] for part in (slice(0, 64), slice(64, 128))]
    assert torch.allclose(found[SDPA](q, k, v, 2)[0], torch.cat(expected, dim=1), atol=1e-5)


class FakeMeasure:
    """Calls by formula, and with the tiles of ``findings()`` by ``factor`` of it."""

    device = GPU

    def __init__(self, factor=1.0, later=1.0):
        self.factor, self.later = factor, later

    def times(self, heads, tokens, methods, begin):
        factor = self.factor if tuning.attend_tiles(GPU, 2) == findings().attend else 1.0
        return {method: self._time(heads, tokens, method) * (factor if isinstance(method, float) else 1.0) for method in methods}

    def _time(self, heads, tokens, method):
        return sparse_time(heads, tokens, method) if isinstance(method, float) else dense_time(heads, tokens) / self.later


FINE = findings(tuple((heads, tokens) for heads in (12, 40) for tokens in range(8192, 33000, 512)))


def test_what_holds_is_verified(hopper):
    assert verify(FakeMeasure(), FINE, SDPA, lambda text: None) == 0


@pytest.mark.parametrize("measure", [FakeMeasure(factor=1.04), FakeMeasure(later=1.5)], ids=["tiles", "break-even"])
def test_what_does_not_hold_is_found(hopper, measure):
    said = []
    assert verify(measure, FINE, SDPA, said.append) == 1
    assert any(line.startswith("MISSED") for line in said)
