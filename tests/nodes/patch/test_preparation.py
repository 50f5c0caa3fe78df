"""When kernels are compiled, and who waits for them. A GPU and its compiler are played."""

import logging
from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import HEADS, MODELS, Harness, qkv
from svg_ear.kernels import HollowCall, HollowTensor, SequenceLayout, Settings, tuning
from svg_ear.nodes.patch import lengths, override, preparation
from svg_ear.nodes.patch.call import FLOAT32_RUNS_IN
from svg_ear.nodes.patch.options import Options
from svg_ear.nodes.patch.override import Patch
from svg_ear.nodes.patch.preparation import Preparations, Prepared
from svg_ear.nodes.recording.record import Found
from svg_ear.nodes.recording.summary import report

GPU = torch.device("cuda", 0)
LAYOUT = SequenceLayout(range(96))


class Compiling:
    """A preparation that takes ``seconds`` from the moment that somebody waits for it, or has ended with ``errors``."""

    def __init__(self, call, test=None, seconds=0.0, errors=(), clock=None):
        self.call, self.test, self.stopped = call, test, False
        self.seconds, self.errors, self.kernels, self.has_ended = seconds, list(errors), {1, 2}, clock is None
        self.clock, self.wrong = clock, None

    def wait(self):
        if not self.has_ended:
            self.clock[0] += self.seconds
        self.has_ended = True

    def stop(self):
        self.stopped = True


def hollow(dtype=torch.float16, settings=Settings()):
    tensor = HollowTensor((1, 2, 192, 64), (192 * 128, 64, 128, 1), dtype, GPU, 0)
    return HollowCall((tensor,) * 3, settings, SequenceLayout(range(192)), None)


@pytest.fixture(autouse=True)
def tested(monkeypatch):
    """Every self-test has passed before; test_trust.py has the others."""
    monkeypatch.setattr(preparation, "key_of", str)
    monkeypatch.setattr(preparation, "has_passed", lambda key: True)
    monkeypatch.setattr(preparation.kernels, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(tuning, "_IN_USE", {torch.device("cuda", number): (None, None) for number in range(2)})


def call(device=GPU, tokens=96, text=0):
    q = FakeTensor(1, 2, tokens + text, 64, device=torch.device(device))
    return SimpleNamespace(q=q, dtype=q.dtype, shape=q.shape, head_dim=64, key_tokens=tokens + text, split_heads=lambda: (q, q, q))


class FakeTensor:
    """A tensor on a GPU that is not there."""

    dtype, itemsize = torch.float16, 2

    def __init__(self, *shape, device):
        self.shape, self.device = shape, device

    def stride(self):
        return self.shape

    def data_ptr(self):
        return 0


@pytest.fixture
def prepared(monkeypatch):
    """What was asked to be compiled; each is ready at once."""
    asked = []

    def prepare(call, test):
        asked.append(Compiling(call, test))
        return asked[-1]

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
    for _ in range(2):
        preparations.begin(call(text=7), (text,), Settings(), None, None, FakeTensor(1, 1, 103, device=GPU))
    assert len(prepared) == len(wanted) + 1 and prepared[-1].call.biases.shape == (1, 1, 103)


def test_what_is_expected_is_compiled_once_and_given_up_for_calls_of_another_kind(prepared):
    preparations = Preparations()
    for expected in (hollow(), hollow(torch.bfloat16), hollow(), hollow(settings=Settings(density=0.3))):
        preparations.expect(expected)
    assert [preparation.call.kind[1] for preparation in prepared] == [torch.float16, torch.bfloat16, torch.float16]
    preparations.begin(call(), (LAYOUT,), Settings(), None, None)
    assert [preparation.stopped for preparation in prepared] == [False, True, True, False]
    preparations.begin(call(), (LAYOUT,), Settings(), None, None)
    assert len(prepared) == 4


def test_what_a_run_asks_for_is_never_given_up(prepared):
    preparations = Preparations()
    preparations.begin(call(), (LAYOUT,), Settings(), None, None)
    preparations.begin(call(text=7), (SequenceLayout(range(7, 103), (range(7),)),), Settings(), None, None)
    assert [preparation.stopped for preparation in prepared] == [False, False]


def test_a_test_that_was_given_up_has_neither_passed_nor_failed(prepared, monkeypatch):
    known = []
    monkeypatch.setattr(preparation, "has_passed", lambda key: False)
    monkeypatch.setattr(preparation, "remember", known.append)
    preparations = Preparations()
    preparations.expect(hollow(torch.bfloat16))
    preparations.begin(call(), (LAYOUT,), Settings(), None, None)
    prepared[0].wrong = "planted"
    assert preparations.finish(GPU, pytest.fail).wrong is None and len(known) == 1 and "float16" in known[0] and "bfloat16" not in known[0]
    preparations.expect(hollow(torch.bfloat16, Settings(density=0.3)))
    assert [preparation.test is not None for preparation in prepared] == [True] * 3


def test_nothing_is_compiled_on_a_cpu(prepared):
    preparations = Preparations()
    preparations.begin(call("cpu"), (LAYOUT,), Settings(), None, None)
    assert not prepared and preparations.finish(torch.device("cpu"), pytest.fail) == Prepared()


def test_who_waits_is_told_and_the_log_says_how_long(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "svg_ear")
    clock, told, preparations = [0.0], [], Preparations()
    monkeypatch.setattr(preparation.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(preparation.kernels, "prepare", lambda call, test: Compiling(call, test, 3.5, [ValueError("planted")], clock))
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

    def begin(self, call, layouts, settings, blocks, memory_limit, biases=None):
        self.asked.append("begin")

    def expect(self, call):
        self.asked.append(call)

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


def patcher(model="wan", device=GPU, dtype=torch.float16, heads=2, width=128):
    """ComfyUI's patcher around a model whose weights are of another dtype than what it computes in."""
    network = MODELS[model]()
    network.num_heads, network.dim = heads, width
    base_model = SimpleNamespace(diffusion_model=network, manual_cast_dtype=dtype)
    return SimpleNamespace(model=base_model, load_device=device, model_dtype=lambda: torch.float8_e4m3fn)


@pytest.fixture
def devices(monkeypatch):
    """The devices whose findings were asked for, which are those of a GPU that was not checked."""
    found = []
    monkeypatch.setattr(override.Lengths, "prepare", lambda self, device: found.append(device))
    monkeypatch.setattr(lengths, "architecture", lambda device: 90)
    return found


def test_compiling_begins_where_the_node_runs(watched, devices):
    Patch(Options(density=0.2, memory_limit_mb=3)).compile_early(patcher())
    (expected,) = watched.asked
    assert expected.settings == Settings(density=0.2) and expected.memory_limit == 3 * 2**20 and set(devices) == {GPU}
    assert expected.inputs[0].dtype == torch.float16 and expected.inputs[0].shape[3] == 64
    Patch(Options()).compile_early(patcher(dtype=torch.float32))
    assert watched.asked[-1].inputs[0].dtype == FLOAT32_RUNS_IN


@pytest.mark.parametrize(
    ("known", "widget", "expected"),
    [
        ({}, "auto", ["full"]),
        ({90: ((1, 50_000),)}, "auto", ["full", "int8"]),
        ({90: ((1, 20_000),)}, "auto", ["int8"]),
        ({80: ((1, 20_000),)}, "auto", ["full"]),
        ({90: ((1, 50_000),)}, "full", ["full"]),
        ({}, "int8", ["int8"]),
    ],
)
def test_every_precision_that_a_long_enough_call_may_have_is_compiled(watched, devices, monkeypatch, known, widget, expected):
    monkeypatch.setattr(lengths, "INT8_FROM", known)
    monkeypatch.setattr(override, "measured_in_int8", lambda dtype, head_dim: True)
    Patch(Options(precision=widget)).compile_early(patcher())
    assert [call.settings.precision for call in watched.asked] == expected


@pytest.mark.parametrize(
    "unknown",
    [
        {"model": "unknown"},
        {"device": torch.device("cpu")},
        {"device": torch.device("mps")},
        {"dtype": None},
        {"dtype": torch.float64},
        {"heads": 0},
        {"heads": 3},
        {"width": 96},
    ],
    ids=str,
)
def test_where_a_model_does_not_tell_the_first_dense_step_begins_it(watched, unknown):
    Patch(Options()).compile_early(patcher(**unknown))
    assert not watched.asked


def test_a_calibration_says_in_the_run_what_is_computed(watched):
    options = SimpleNamespace(**vars(Options()), profile=object(), settings=Settings, recorded=Options().recorded)
    Patch(options).compile_early(patcher())
    assert not watched.asked
