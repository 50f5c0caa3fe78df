"""The self-test before the first sparse call of a GPU: made once, remembered in a file that may be anything."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import HEADS, Harness, counts, dense, qkv
from svg_ear.kernels import SelfTest, SequenceLayout, Settings, tuning
from svg_ear.nodes.patch import override, preparation, trust, user_file
from svg_ear.nodes.patch.preparation import Preparations, Prepared
from svg_ear.nodes.recording.reasons import StrictModeError

GPU = torch.device("cuda", 0)
LAYOUT = SequenceLayout(range(96))


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A GPU of which nothing is known, and the file in which it will be."""
    card = SimpleNamespace(name="Card", capability=(9, 0), file=tmp_path / "svg_ear" / trust.FILE)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card.capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(get_user_directory=lambda: str(tmp_path)))
    monkeypatch.setattr(user_file, "_SAID", set())
    monkeypatch.setattr(tuning, "_IN_USE", {})
    for cached in (tuning.architecture, trust._passed):
        cached.cache_clear()
    yield card
    for cached in (tuning.architecture, trust._passed):
        cached.cache_clear()


@pytest.fixture
def asked(monkeypatch, card):
    """The self-tests that were made, and what they find."""
    asked = SimpleNamespace(tests=[], finds=None)

    def prepare(call, test):
        if test is not None:
            asked.tests.append(test)
        found = asked.finds if test is not None else None
        return SimpleNamespace(kernels={1}, seconds=1.0, errors=[], wrong=found, stopped=False, has_ended=True, wait=lambda: None)

    monkeypatch.setattr(preparation.HollowCall, "like", lambda *inputs: SimpleNamespace(device=GPU, kind=()))
    monkeypatch.setattr(preparation.kernels, "prepare", prepare)
    return asked


def ask(settings=Settings(), dtype=torch.bfloat16, heads=2, preparations=None):
    """What becomes of a call, in a new process unless it is that of ``preparations``."""
    if preparations is None:
        preparations = Preparations()
        trust._passed.cache_clear()
    q = SimpleNamespace(device=GPU, dtype=dtype)
    call = SimpleNamespace(q=q, dtype=dtype, shape=(1, heads, 96, 64), head_dim=64, key_tokens=96, split_heads=lambda: (q, q, q))
    preparations.begin(call, (LAYOUT,), settings, None, None)
    return preparations.finish(GPU, pytest.fail).wrong


def test_what_passed_is_tested_once_for_all_processes(asked, card):
    process = Preparations()
    assert ask(preparations=process) is ask(preparations=process) is ask(heads=3, preparations=process) is None
    assert ask() is ask(Settings(density=0.3)) is None
    assert asked.tests == [SelfTest(GPU, torch.bfloat16, Settings(), 64, False)]
    assert len(json.loads(card.file.read_text())["passed"]) == 1


def test_two_calls_that_wait_for_the_same_test_have_one(asked):
    process, (q,) = Preparations(), (SimpleNamespace(device=GPU, dtype=torch.bfloat16),)
    for heads in (2, 3):
        call = SimpleNamespace(q=q, dtype=q.dtype, shape=(1, heads, 96, 64), head_dim=64, key_tokens=96, split_heads=lambda: (q, q, q))
        process.begin(call, (LAYOUT,), Settings(), None, None)
    assert len(asked.tests) == 1 and process.finish(GPU, pytest.fail).wrong is None


@pytest.mark.parametrize(
    "change",
    [
        lambda monkeypatch, card: {"settings": Settings(method="svg2")},
        lambda monkeypatch, card: {"settings": Settings(budget="top-p")},
        lambda monkeypatch, card: {"settings": Settings(min_share=0.1)},
        lambda monkeypatch, card: {"settings": Settings(recluster_every=3)},
        lambda monkeypatch, card: {"dtype": torch.float16},
        lambda monkeypatch, card: setattr(card, "name", "Other"),
        lambda monkeypatch, card: setattr(card, "gcnArchName", "gfx1151"),
        lambda monkeypatch, card: monkeypatch.setattr(torch, "__version__", "9.9"),
        lambda monkeypatch, card: monkeypatch.setattr(trust, "_code", lambda: "other"),
        lambda monkeypatch, card: monkeypatch.setattr("svg_ear.nodes.patch.findings.pack_version", lambda: "9.9"),
        lambda monkeypatch, card: monkeypatch.setattr("triton.__version__", "9.9"),
        lambda monkeypatch, card: tuning.use(GPU, attend=tuning.ATTEND_CHOICES[90][0]),
        lambda monkeypatch, card: tuning.use(GPU, probe=tuning.PROBE_CHOICES[90][0]),
    ],
    ids="method budget share labels dtype card family torch code pack triton attend probe".split(),
)
def test_other_kernels_cards_versions_and_tiles_are_tested_anew(asked, card, monkeypatch, change):
    process = Preparations()
    ask(preparations=process)
    options = change(monkeypatch, card) or {}
    tuning.architecture.cache_clear()
    ask(**options)
    ask(**options)
    assert len(asked.tests) == 2


def test_other_tiles_are_tested_within_a_process_too(asked):
    process = Preparations()
    ask(preparations=process)
    tuning.use(GPU, probe=tuning.PROBE_CHOICES[90][0])
    ask(preparations=process)
    assert len(asked.tests) == 2


@pytest.mark.parametrize("finds", ["attend is off by 0.5", OSError("planted")], ids=["wrong", "stopped"])
def test_what_fails_is_not_remembered(asked, card, finds):
    process, asked.finds = Preparations(), finds
    assert ask(preparations=process) is ask(preparations=process) is finds and not card.file.exists()
    asked.finds = None
    assert ask(preparations=process) is None and len(asked.tests) == 3 and card.file.exists()


DAMAGED = ["", "{", '{"a": 1}', '{"format": 2, "passed": []}', '{"format": 1, "passed": [1]}', "[1, 2]", "\x00\xff", "null", "[" * 10**5]


@pytest.mark.parametrize("text", [*DAMAGED, " " * 2**20 + "[]"], ids=lambda text: text[:30])
def test_a_damaged_or_foreign_file_is_ignored_with_one_line(asked, card, caplog, text):
    card.file.parent.mkdir()
    card.file.write_bytes(text.encode("latin-1"))
    assert ask() is None and len(asked.tests) == 1
    assert len(caplog.records) == 1 and "damaged" in caplog.text and "anew" in caplog.text
    assert len(json.loads(card.file.read_text())["passed"]) == 1


def test_where_nothing_can_be_written_it_is_tested_once_a_process(asked, card, monkeypatch):
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(get_user_directory=lambda: "/proc/nowhere"))
    process = Preparations()
    assert ask(preparations=process) is ask(heads=3, preparations=process) is None and len(asked.tests) == 1
    assert ask() is None and len(asked.tests) == 2


class Found(Preparations):
    """On a device that finds ``wrong``."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.asked = wrong, 0

    def finish(self, device, tell):
        self.asked += 1
        return Prepared(1.0, self.wrong)


def triton_error():
    """An error that arose while Triton was at work."""
    build = pytest.importorskip("triton.runtime.build")
    try:
        build.compile_module_from_src(None, None)
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("wrong", "reason", "said"),
    [
        (lambda: "attend is off by 0.5", "kernel-wrong", "attend is off by 0.5"),
        (triton_error, "kernel-failed", "could not compile or launch"),
        (lambda: KeyError("planted"), "kernel-wrong", "could not be tested on this GPU (KeyError: 'planted')"),
    ],
    ids=["wrong", "stopped by Triton", "stopped by something else"],
)
def test_kernels_that_fail_the_test_leave_the_run_dense_and_stop_strict_mode(monkeypatch, caplog, wrong, reason, said):
    found = Found(wrong())
    monkeypatch.setattr(override, "_PREPARATIONS", found)
    outputs = []

    def run(played):
        def body(attention):
            outputs.append(attention(*qkv(), HEADS))

        return played.sample(lambda: [played.evaluate(body, step=step) for step in range(3)])

    record = run(Harness())
    assert counts(record) == {reason: 3} and found.asked == 1
    assert len(caplog.records) == 1 and said in caplog.text
    assert all(torch.equal(output, dense(*qkv(), HEADS)) for output in outputs)
    with pytest.raises(StrictModeError, match=reason):
        run(Harness(strict=True))


def test_memory_that_runs_out_in_the_test_is_no_verdict_on_the_kernels(monkeypatch):
    found = Found(torch.OutOfMemoryError("planted"))
    monkeypatch.setattr(override, "_PREPARATIONS", found)
    played = Harness()
    record = played.sample(lambda: [played.evaluate(lambda attention: attention(*qkv(), HEADS), step=step) for step in range(3)])
    assert counts(record) == {"out-of-memory": 3} and found.asked == 3
