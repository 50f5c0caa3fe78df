"""When kernels are compiled, and who waits for them. A GPU and its compiler are played."""

import logging
from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import HEADS, Harness, qkv
from svg_ear.kernels import SequenceLayout, Settings, tuning
from svg_ear.nodes.patch import override, preparation
from svg_ear.nodes.patch.preparation import Preparations, Prepared
from svg_ear.nodes.recording.record import Found
from svg_ear.nodes.recording.summary import report

GPU = torch.device("cuda", 0)
LAYOUT = SequenceLayout(range(96))


class Compiling:
    """A preparation that takes ``seconds`` from the moment that somebody waits for it, or has ended with ``errors``."""

    def __init__(self, seconds=0.0, errors=(), clock=None):
        self.seconds, self.errors, self.kernels, self.has_ended = seconds, list(errors), {1, 2}, clock is None
        self.clock, self.wrong = clock, None

    def wait(self):
        if not self.has_ended:
            self.clock[0] += self.seconds
        self.has_ended = True


def call(device=GPU, tokens=96, text=0):
    q = SimpleNamespace(device=torch.device(device), dtype=torch.float16)
    return SimpleNamespace(
        q=q, dtype=q.dtype, shape=(1, 2, tokens + text, 64), head_dim=64, tokens=tokens + text, split_heads=lambda: (q, q, q)
    )


@pytest.fixture(autouse=True)
def tested(monkeypatch):
    """Every self-test has passed before; test_trust.py has the others."""
    monkeypatch.setattr(preparation, "key_of", str)
    monkeypatch.setattr(preparation, "has_passed", lambda key: True)
    monkeypatch.setattr(tuning, "_IN_USE", {torch.device("cuda", number): (None, None) for number in range(2)})


@pytest.fixture
def prepared(monkeypatch):
    """What was asked to be compiled; each is ready at once."""
    asked = []

    def prepare(*inputs, **options):
        asked.append(options)
        return Compiling()

    monkeypatch.setattr(preparation.kernels, "prepare", prepare)
    return asked


def test_nothing_is_compiled_twice_for_a_shape_and_settings_on_a_device(prepared):
    preparations = Preparations()
    text = SequenceLayout(range(7, 103), (range(7),))
    wanted = [
        (call(), (LAYOUT,), Settings()),
        (call(), (LAYOUT,), Settings(density=0.3)),
        (call("cuda:1"), (LAYOUT,), Settings()),
        (call(tokens=192), (SequenceLayout(range(192)),), Settings()),
        (call(text=7), (text,), Settings()),
    ]
    for asked in (*wanted, *wanted):
        preparations.begin(*asked, None, None)
    assert len(prepared) == len(wanted)
    longer = SequenceLayout(range(9, 105), (range(9),))
    preparations.begin(call(text=9), (longer,), Settings(), None, None)
    assert len(prepared) == len(wanted)


def test_nothing_is_compiled_on_a_cpu(prepared):
    preparations = Preparations()
    preparations.begin(call("cpu"), (LAYOUT,), Settings(), None, None)
    assert not prepared and preparations.finish(torch.device("cpu"), pytest.fail) == Prepared()


def test_who_waits_is_told_and_the_log_says_how_long(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "svg_ear")
    clock, told, preparations = [0.0], [], Preparations()
    monkeypatch.setattr(preparation.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(preparation.kernels, "prepare", lambda *args, **options: Compiling(3.5, [ValueError("planted")], clock))
    preparations.begin(call(), (LAYOUT,), Settings(), None, None)
    assert preparations.finish(torch.device("cuda", 1), pytest.fail) == Prepared()
    assert preparations.finish(GPU, told.append) == Prepared(3.5)
    assert told == ["Compiling kernels, once", "Running"]
    assert "2 kernels compiled or loaded in 3.5 s" in caplog.text and "ValueError: planted" in caplog.text
    assert preparations.finish(GPU, pytest.fail) == Prepared()


def test_what_was_compiled_meanwhile_makes_nobody_wait(prepared, caplog):
    caplog.set_level(logging.INFO, "svg_ear")
    preparations = Preparations()
    preparations.begin(call(), (LAYOUT,), Settings(), None, None)
    assert preparations.finish(GPU, pytest.fail).seconds < 1 and "2 kernels" in caplog.text


class Watched(Preparations):
    """Notes what is asked of it, in order."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds, self.asked = seconds, []

    def begin(self, call, layouts, settings, blocks, memory_limit):
        self.asked.append("begin")

    def finish(self, device, tell):
        self.asked.append("finish")
        return Prepared(self.seconds)


@pytest.fixture
def watched(monkeypatch):
    found = Watched()
    monkeypatch.setattr(override, "_PREPARATIONS", found)
    return found


def test_compiling_begins_in_the_first_dense_step_and_ends_before_the_first_sparse_call(watched):
    played = Harness(dense_first_steps=1)
    for step, asked in ((0, ["begin"]), (1, ["begin", "begin", "finish"])):
        played.evaluate(lambda attention: attention(*qkv(), HEADS), step=step)
        assert watched.asked == asked


def test_nothing_is_compiled_for_a_run_that_stays_dense(watched):
    played = Harness(dense_first_steps=100)
    played.evaluate(lambda attention: attention(*qkv(), HEADS), step=0)
    played = Harness(dense_last_steps=2)
    played.evaluate(lambda attention: attention(*qkv(), HEADS), step=4)
    Harness(min_tokens=10**6).evaluate(lambda attention: attention(*qkv(), HEADS))
    Harness("unknown").evaluate(lambda attention: attention(*qkv(), HEADS))
    assert not watched.asked


def test_waiting_is_in_the_report_and_in_no_comparison_of_calls(watched):
    watched.seconds = 40.0
    played = Harness(dense_first_steps=1)
    record = played.sample(lambda: [played.evaluate(lambda attention: attention(*qkv(), HEADS), step=step) for step in (0, 1, 2)])
    assert record.times.once >= 80 and record.times.sparse < 10 and record.times.saved < -70
    assert "kernels compile" in report(Found((record,), record, True, True))
