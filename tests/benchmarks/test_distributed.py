"""The bench of several GPUs, on a CPU."""

import os
import subprocess
import sys

import torch

from benchmarks import distributed, results
from benchmarks.pack import ROOT


def run(*command):
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_it_checks_and_writes_what_every_method_takes(tmp_path):
    ran = run("-m", "benchmarks.distributed", "--tiny", "--rounds", "2", "--commit", "abc1234", "--results", tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 GPUs give what one gives" in ran.stdout
    (path,) = tmp_path.glob("distributed_2x_torch_*.csv")
    rows = results.read(path)
    assert [(row["method"], row["gpus"]) for row in rows] == [
        ("dense", "1"),
        ("sparse", "1"),
        ("dense", "2"),
        ("sparse", "2"),
        ("sparse, heads of one GPU", "2"),
        ("all-to-alls", "2"),
    ]
    assert all(row["commit"] == "abc1234" and row["tokens"] == "63" for row in rows)
    assert all(float(row[column]) > 0 for row in rows for column in distributed.COLUMNS)
    assert all(float(row["host_ms"]) <= float(row["idle_ms"]) for row in rows)
    assert [bool(row["times_one_gpu"]) for row in rows] == [True] * 4 + [False] * 2
    stages = [line.partition(" ms: ")[2].split()[::2] for line in ran.stdout.splitlines() if " ms: " in line]
    assert len(stages) == 3 and all(names[0] == "cluster" and names[-1] == "attend" for names in stages)


def test_where_several_do_not_give_what_one_gives_nothing_is_timed(tmp_path):
    # Nothing is as close as that.
    code = "import sys; from benchmarks import distributed as bench; bench.ROUNDING = dict.fromkeys(bench.ROUNDING, -1.0); "
    ran = run("-c", f"{code}raise SystemExit(bench.main(sys.argv[1:]))", "--tiny", "--results", tmp_path)
    assert ran.returncode == 1 and "do not give what one gives" in ran.stdout and not list(tmp_path.iterdir())


def test_without_two_gpus_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert distributed.main([]) == 2
    assert "needs 2 GPUs, and torch finds 1" in capsys.readouterr().out
