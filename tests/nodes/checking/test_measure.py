import pytest
import torch
from svg_ear.kernels import StageTimer
from svg_ear.nodes.checking.inputs import HEAD_DIM, made_up
from svg_ear.nodes.checking.measure import Measure, SparseCalls
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention

CPU = torch.device("cpu")
HEADS, TOKENS = 2, 640


def dense(q, k, v, heads):
    split = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    return scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


@pytest.fixture
def counted(monkeypatch):
    """Times that are counts of what was run, in place of a GPU's events."""
    monkeypatch.setattr(Measure, "_once", lambda self, call, repeats: [call() for _ in range(repeats)] and 7.0)


def test_inputs_cluster_and_repeat():
    q, k, v = made_up(HEADS, TOKENS, CPU)
    assert all(tensor.shape == (1, TOKENS, HEADS * HEAD_DIM) and tensor.dtype == torch.bfloat16 for tensor in (q, k, v))
    assert all(torch.equal(one, other) for one, other in zip((q, k, v), made_up(HEADS, TOKENS, CPU)))
    q, k = (tensor[0, :, :HEAD_DIM].float() for tensor in (q, k))
    assert q.var() == pytest.approx(1, abs=0.1)
    near, far = (cosine_similarity(q, k.roll(shift, 0), dim=1) for shift in (0, TOKENS // 2))
    assert near.mean() > 0.5 > 2 * far.mean()


def test_every_method_is_warmed_up_and_timed_in_turn(counted):
    began = []
    measure = Measure(CPU, {"dense": dense}, milliseconds=14.0, rounds=2)
    found = measure.times(HEADS, TOKENS, ["dense", 0.2], began.append)
    assert found == {"dense": 7.0, 0.2: 7.0}
    assert began == ["dense", 0.2, "dense", 0.2, "dense", 0.2]


def test_failures_are_handed_back_and_do_not_stop_the_others(counted):
    def broken(q, k, v, heads):
        raise RuntimeError("no kernel image")

    found = Measure(CPU, {"dense": dense, "broken": broken}).times(HEADS, TOKENS, ["dense", "broken", 0.2], lambda method: None)
    assert isinstance(found.pop("broken"), RuntimeError)
    assert found == {"dense": 7.0, 0.2: 7.0}


def test_memory_that_runs_out_is_raised(counted):
    def greedy(q, k, v, heads):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Measure(CPU, {"dense": greedy}).times(HEADS, TOKENS, ["dense"], lambda method: None)


def test_what_begin_raises_stops_it(counted):
    def begin(method):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Measure(CPU, {"dense": dense}).times(HEADS, TOKENS, ["dense"], begin)


def test_sparse_calls_are_those_of_a_model():
    inputs = made_up(HEADS, TOKENS, CPU)
    exact = SparseCalls(inputs, HEADS, 1.0)
    assert torch.allclose(exact().float(), dense(*inputs, HEADS).float(), atol=0.05)
    assert SparseCalls(inputs, HEADS, 0.2).stage("attend") > 0
    timer = StageTimer()
    exact(timer)
    assert {"attend", "probe"} <= set(timer.seconds())


def test_tiles_that_compute_something_else_are_no_choice(monkeypatch):
    used, call = [], SparseCalls.__call__
    monkeypatch.setattr("svg_ear.kernels.tuning.use", lambda device, **tiles: used.append(tiles))
    wrong = {"right": 1.0, "rounding": 1.001, "doubling": 2.0, "nothing": float("nan")}
    monkeypatch.setattr(SparseCalls, "__call__", lambda self, timer=None: call(self, timer) * wrong[used[-1]["attend"]])
    monkeypatch.setattr(SparseCalls, "stage", lambda self, name: 5.0)
    found = Measure(CPU, {"dense": dense}).trials("attend", HEADS, TOKENS, list(wrong), lambda choice: None)
    assert (found["right"], found["rounding"]) == (5.0, 5.0)
    assert "100% off" in str(found["doubling"]) and isinstance(found["nothing"], RuntimeError)


def test_trials_take_each_choice_into_use_and_put_the_table_back(monkeypatch):
    used = []
    monkeypatch.setattr("svg_ear.kernels.tuning.use", lambda device, **tiles: used.append(tiles))
    monkeypatch.setattr(SparseCalls, "stage", lambda self, name: 5.0 if used[-1][name] == "tall" else 3.0)
    found = Measure(CPU, {"dense": dense}, rounds=1).trials("attend", HEADS, TOKENS, ["tall", "flat"], lambda choice: None)
    assert found == {"tall": 5.0, "flat": 3.0}
    assert used[-1] == {} and {"attend": "flat"} in used
