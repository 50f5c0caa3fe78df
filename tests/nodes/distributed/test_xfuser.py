"""Through xFuser from PyPI, several processes give what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from svg_ear import kernels
from svg_ear.kernels import Settings
from svg_ear.nodes.distributed.gathered import Gathered
from svg_ear.nodes.distributed.xfuser import KEY, Attention, SparseCall

HERE = Path(__file__).resolve().parent
CASES = [
    "calls wan, batch 1",
    "calls wan, batch 2",
    "calls hunyuan, batch 1",
    "calls hunyuan, batch 2",
    "dense calls",
    "joint tensors",
    "model wan",
    "model hunyuan",
    "ring",
]


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    """The largest difference from one process, by number of processes and case."""
    folder = tmp_path_factory.mktemp("xfuser")
    command = [sys.executable, HERE / "through_xfuser.py", folder]
    ran = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads((folder / "differences.json").read_text())


@pytest.mark.parametrize("ranks", ["2", "4"])
def test_all_that_was_tried_is_asserted(differences, ranks):
    assert list(differences[ranks]) == CASES


@pytest.mark.parametrize("ranks", ["2", "4"])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_give_what_one_gives(differences, ranks, case):
    assert differences[ranks][case] < 1e-5


@pytest.mark.parametrize(
    ("ring", "given", "said"),
    [
        (2, {}, "ring_degree is 2"),
        (1, {"is_causal": True}, "is_causal True"),
        (1, {"dropout_p": 0.1}, "dropout_p is 0.1"),
        (1, {"tokens": 12}, "the call has 12 queries"),
    ],
)
def test_what_does_not_fit_is_said(monkeypatch, ring, given, said):
    monkeypatch.setitem(sys.modules, "xfuser", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "xfuser.core", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "xfuser.core.distributed", SimpleNamespace(get_ring_parallel_world_size=lambda: ring))
    tensors = [torch.zeros(1, 2, given.pop("tokens", 16) if first else 16, 64) for first in (True, False, False)]
    arguments = {"dropout_p": 0.0, "is_causal": False} | given
    with pytest.raises(ValueError, match=said):
        Attention(None)(*tensors, **arguments, attention_kwargs={KEY: SparseCall(Gathered((15,), 2))})


def test_a_calibration_is_refused_before_anything_is_exchanged():
    with pytest.raises(ValueError, match="method is 'calibrated', which knows all heads together"):
        SparseCall(Gathered((16,), 2), Settings(method="calibrated"))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_takes_the_working_memory_of_all_heads(monkeypatch, ranks):
    given = []
    monkeypatch.setattr(
        kernels,
        "sparse_attention",
        lambda q, k, v, *_, memory_limit, **__: given.append(memory_limit) or SimpleNamespace(output=q, statistics=None),
    )
    q, k, v = torch.zeros(3, 1, 8 // ranks, 64, 32)
    SparseCall(Gathered((61,), ranks)).attend(q, k, v)
    # Of 61 tokens, 8 heads and 32 channels, in float32.
    assert given == [3 * (3 * 61 * 8 * 32 * 4) // 4]
