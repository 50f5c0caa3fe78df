import time

import pytest
import torch
from svg_ear.nodes.recording.times import RunTimer

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def sparse(timer, clock, seconds, shape=(1, 2, 96, 64), kind=False):
    with timer.sparse(CPU, shape, kind).stage("attend", CPU):
        clock[0] += seconds


def dense(timer, clock, seconds, shape=(1, 2, 96, 64)):
    with timer.dense(CPU, shape).stage("dense", CPU):
        clock[0] += seconds


def test_compilation_counts_in_no_mean(clock):
    timer = RunTimer()
    for seconds in (30.0, 2.0, 2.0):
        sparse(timer, clock, seconds, kind=True)
    for seconds in (20.0, 1.0, 1.0, 1.0):
        sparse(timer, clock, seconds)
    for seconds in (9.0, 4.0, 4.0):
        dense(timer, clock, seconds)
    times = timer.finish()
    assert times.sparse == pytest.approx(3 * 2 + 4 * 1) and times.dense == pytest.approx(7 * 4)
    assert times.speed_up == pytest.approx(2.8) and times.once == pytest.approx(28 + 19)
    assert times.saved == pytest.approx(28 - 10 - 47) and times.stages == {"attend": pytest.approx(7)}


def test_shapes_are_compared_with_their_own(clock):
    timer = RunTimer()
    for shape, seconds in (((1, 1), 1.0), ((2, 2), 5.0)):
        for _ in range(3):
            sparse(timer, clock, seconds, shape)
            dense(timer, clock, 2 * seconds, shape)
    assert timer.finish().speed_up == pytest.approx(2)
    sparse(timer, clock, 1.0, (3, 3))
    times = timer.finish()
    assert times.dense is None and times.speed_up is None and times.saved is None and times.sparse == pytest.approx(19)


def test_a_single_call_is_all_there_is(clock):
    timer = RunTimer()
    sparse(timer, clock, 3.0)
    times = timer.finish()
    assert times.sparse == pytest.approx(3) and times.once == 0
    assert RunTimer().finish().sparse is None


def test_dense_steps(clock):
    timer = RunTimer()
    for _ in range(2):
        with timer.dense_step(CPU).stage("step", CPU):
            clock[0] += 5
    assert timer.finish().dense_steps == pytest.approx(10)
