"""Calls that several GPUs share can repeat the launches of the one before, as those of one GPU."""

import pytest
import torch
from svg_ear.kernels import ClusterState, SequenceLayout, Settings, pipeline, torch_stages
from svg_ear.kernels.replay import _kinds
from svg_ear.nodes.distributed.gathered import Gathered
from svg_ear.nodes.distributed.xfuser import SparseCall
from test_gathered import shared_out
from test_worker import DIM, TEXT, VIDEO, Played, drawn

CALLS = 5


@pytest.fixture
def asked(monkeypatch):
    """By what the launches of each call would be found again; the torch stages pass for kernels."""
    keys = []

    def replayed(compute, key, tensors, done):
        keys.append((*key, *_kinds(tensors)))
        return compute(done, *tensors)

    monkeypatch.setattr(pipeline, "replayed", replayed)
    monkeypatch.setattr(torch_stages, "LAUNCHES", True)
    return keys


def assert_alike(keys):
    # The first call clusters from nothing, which is no repetition of anything; what it leaves behind lies otherwise in memory.
    assert len(keys) == CALLS - 1
    assert all(key == keys[-1] for key in keys[1:])


@pytest.mark.parametrize("streams", [(VIDEO,), (TEXT, VIDEO)])
def test_calls_through_xfuser(asked, streams):
    layout = SequenceLayout(range(sum(streams) - VIDEO, sum(streams)), (range(sum(streams) - VIDEO),) if len(streams) > 1 else ())
    call = SparseCall(Gathered(streams, 2), Settings(density=0.3), layout, ClusterState())
    for step in range(CALLS):
        call.attend(*(shared_out(tensor.split(streams, dim=1), 2).transpose(1, 2) for tensor in drawn(sum(streams), seed=step)))
    assert_alike(asked)


@pytest.mark.parametrize("model", ["wan", "hunyuan"])
def test_calls_in_workers_of_raylight(asked, raylight, monkeypatch, model):
    from svg_ear.nodes.distributed import worker

    streams = (TEXT, VIDEO) if model == "hunyuan" else (VIDEO,)
    played = Played(worker, monkeypatch, model=model)
    # Calls whose routing is recorded have it read between the launches.
    monkeypatch.setattr(played.patch.run.trace, "observer", lambda *place: None)
    conditions = {"c_crossattn": torch.zeros(1, TEXT, DIM)}
    for step in range(CALLS):
        gathered = (shared_out(tensor.split(streams, dim=1), 2) for tensor in drawn(sum(streams), seed=step))
        played.attend(*gathered, step=step, conditions=conditions)
    assert_alike(asked)
