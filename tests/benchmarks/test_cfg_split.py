"""ComfyUI's split of the conditionings over devices, in a real ComfyUI whose CPU passes for two."""

import os
import re
import subprocess
import sys

import pytest

from benchmarks import cfg_split, results
from benchmarks.checkout import find_checkout
from benchmarks.pack import ROOT


@pytest.mark.skipif(find_checkout() is None, reason="no ComfyUI checkout found")
def test_each_device_runs_sparse_and_they_give_what_one_gives(tmp_path):
    """In a process of its own, since ComfyUI wants to be imported before torch."""
    command = [sys.executable, "-m", "benchmarks.cfg_split", "--tiny", "--results", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    (line,) = (line for line in ran.stdout.splitlines() if re.match(r"sparse, apart +2 device", line))
    counts = [int(number) for number in re.findall(r"(\d+) sparse calls on", line)]
    # Three layers, one of the conditionings on each device.
    assert counts == [3 * cfg_split.STEPS] * 2 and f"in the report {sum(counts)}, apart by" in line
    assert float(line.rpartition(" ")[2]) < 1e-5
    (rows,) = map(results.read, tmp_path.iterdir())
    assert [(row["method"], row["gpus"]) for row in rows] == [
        *(("dense", "1"), ("dense", "2"), ("sparse", "1"), ("sparse, apart", "1"), ("sparse, apart", "2")),
    ]


def test_without_a_comfyui_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert cfg_split.main([]) == 2
    assert "needs a ComfyUI" in capsys.readouterr().out
