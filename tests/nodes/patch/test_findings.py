import json
import logging
import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import Harness, counts, qkv
from findings_made import CAPABILITY, NAME, card, findings
from svg_ear.kernels import tuning
from svg_ear.kernels.tuning import ATTEND, PROBE, Tiles
from svg_ear.nodes.patch import findings_file, user_file
from svg_ear.nodes.patch.findings import Card, Findings, Timing
from svg_ear.nodes.patch.findings_file import found_on, read, write
from svg_ear.nodes.patch.lengths import CAUTIOUS, CAUTIOUS_ELSEWHERE, Least, Lengths, cautious_tokens, measured_in_int8
from svg_ear.nodes.patch.options import CustomSettings, Options
from svg_ear.nodes.patch.user_file import DamagedFileError
from svg_ear.nodes.recording.summary import report

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """Calls that make ``GPU`` one of a name and compute capability."""
    monkeypatch.setattr(tuning, "_IN_USE", {})

    def become(name=NAME, capability=CAPABILITY):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        tuning.architecture.cache_clear()

    become()
    yield become
    tuning.architecture.cache_clear()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """ComfyUI's user folder, with an attention."""
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(get_user_directory=lambda: str(tmp_path)))
    set_attention(monkeypatch, "attention_pytorch")
    monkeypatch.setattr(findings_file, "_READ", {})
    monkeypatch.setattr(user_file, "_SAID", set())
    return tmp_path


def set_attention(monkeypatch, name):
    chosen = SimpleNamespace(__name__=name)
    monkeypatch.setitem(sys.modules, "comfy.ldm.modules.attention", SimpleNamespace(optimized_attention=chosen))


def path_in(folder):
    return folder / "svg_ear" / "gpu_check.json"


def now():
    """Findings with the versions that run here."""
    return findings(card=Card.of(GPU, "attention_pytorch"))


def test_least_tokens_follow_the_timings():
    found = findings()
    assert found.measured(12, 0.1) == pytest.approx(17000, rel=0.1)
    assert found.least_tokens(12, 0.1, cautious=24576) == math.ceil(found.measured(12, 0.1))
    assert found.least_tokens(24, 0.1, 24576) < found.least_tokens(12, 0.1, 24576)
    assert found.least_tokens(12, 0.3, 24576) > found.least_tokens(12, 0.1, 24576)


def test_where_dense_was_faster_everywhere_it_stays_dense():
    slow = Findings(card(), (Timing(12, 8192, 1.0, {0.1: 2.0}, {}), Timing(12, 32768, 1.0, {0.1: 2.0}, {})))
    assert slow.least_tokens(12, 0.1, cautious=24576) == 32769
    short = Findings(card(), (Timing(12, 8192, 1.0, {0.1: 2.0}, {}),))
    assert short.least_tokens(12, 0.1, cautious=24576) == 24576


def test_without_sparse_timings_the_cautious_number_counts():
    assert Findings(card(), (Timing(12, 8192, 1.0, {}, {}),)).least_tokens(12, 0.1, 24576) == 24576


def test_round_trip(tmp_path):
    path = tmp_path / "some" / "where.json"
    write(path, findings())
    assert read(path) == [findings()]
    write(path, findings(attend=None, probe=None))
    assert read(path) == [findings(attend=None, probe=None)]


def test_other_gpus_are_kept_and_the_same_one_is_replaced(tmp_path):
    path = tmp_path / "file.json"
    other = findings(card=card(name="NVIDIA RTX 4090"), attend=None)
    write(path, other)
    write(path, findings())
    write(path, findings(card=card(torch="2.13.0")))
    write(path, findings(card=card(dense="attention_sage")))
    assert [(found.card.name, found.card.torch, found.card.dense) for found in read(path)] == [
        (other.card.name, "2.11.0", "attention_pytorch"),
        (NAME, "2.13.0", "attention_pytorch"),
        (NAME, "2.11.0", "attention_sage"),
    ]


def test_a_damaged_file_makes_room(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("{")
    write(path, findings())
    assert read(path) == [findings()]


def damaged(change):
    """The text of a file in which ``change`` has spoilt the first entry, or the whole."""

    def make(path):
        write(path, findings())
        data = json.loads(path.read_text())
        return json.dumps(change(data) or data)

    return make


def entry(data):
    return data["cards"][0]


DAMAGED = {
    "empty": lambda path: "",
    "cut": lambda path: '{"format": 1, "cards": [',
    "a list": lambda path: "[]",
    "deep": lambda path: "[" * 100000,
    "long number": lambda path: '{"format": 1, "cards": ' + "1" * 5000 + "}",
    "large": lambda path: " " * 2**20 + "{}",
    "other format": damaged(lambda data: data | {"format": 2}),
    "more keys": damaged(lambda data: entry(data).update(command="x")),
    "no card": damaged(lambda data: entry(data).pop("card") and None),
    "long name": damaged(lambda data: entry(data)["card"].update(name="x" * 1000)),
    "control characters": damaged(lambda data: entry(data)["card"].update(name="a\nb")),
    "text as a time": damaged(lambda data: entry(data)["timings"][0].update(dense="1")),
    "negative time": damaged(lambda data: entry(data)["timings"][0].update(dense=-1)),
    "no time": damaged(lambda data: entry(data)["timings"][0].update(dense=float("nan"))),
    "infinite time": damaged(lambda data: entry(data)["timings"][0].update(dense=float("inf"))),
    "true heads": damaged(lambda data: entry(data)["timings"][0].update(heads=True)),
    "many tokens": damaged(lambda data: entry(data)["timings"][0].update(tokens=10**12)),
    "density in words": damaged(lambda data: entry(data)["timings"][0].update(sparse={"much": 1})),
    "density above 1": damaged(lambda data: entry(data)["timings"][0].update(sparse={"1.5": 1})),
    "four numbers": damaged(lambda data: entry(data).update(probe=[64, 64, 4, 3])),
    "half a warp": damaged(lambda data: entry(data).update(probe=[64, 64, 4.0, 3, 0])),
    "three shapes": damaged(lambda data: entry(data).update(attend=[[64, 64, 4, 3, 0]] * 3)),
    "many timings": damaged(lambda data: entry(data).update(timings=entry(data)["timings"] * 1000)),
}


@pytest.mark.parametrize("make", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused_by_what_is_wrong(tmp_path, make):
    path = tmp_path / "file.json"
    path.write_text(make(path))
    with pytest.raises(DamagedFileError, match="."):
        read(path)


def test_what_was_found_here_is_used(gpu, folder, caplog):
    assert found_on(GPU) is None
    write(path_in(folder), now())
    assert found_on(GPU) == now()
    assert found_on(torch.device("cpu")) is None
    assert not caplog.records


def test_a_file_is_read_again_only_when_it_changes(gpu, folder, monkeypatch):
    write(path_in(folder), now())
    readings = []
    monkeypatch.setattr(findings_file, "read", lambda path: readings.append(path) or read(path))
    assert found_on(GPU) == found_on(GPU) == now()
    assert len(readings) == 1
    write(path_in(folder), replace(now(), timings=now().timings[:-1]))
    assert len(found_on(GPU).timings) == len(now().timings) - 1


UNUSED = {
    "damaged": (lambda path: path.write_text("{"), "it is damaged"),
    "another GPU": (lambda path: write(path, findings(card=replace(now().card, name="NVIDIA RTX 4090"))), "it holds NVIDIA RTX 4090"),
    "another torch": (lambda path: write(path, findings(card=replace(now().card, torch="1.0"))), "torch 1.0"),
    "another Triton": (lambda path: write(path, findings(card=replace(now().card, triton="1.0"))), "Triton 1.0"),
    "another pack": (lambda path: write(path, findings(card=replace(now().card, pack="0.0.1"))), "svg-ear 0.0.1"),
    "another attention": (lambda path: write(path, findings(card=replace(now().card, dense="sage"))), "dense attention sage"),
    "tiles of no table": (
        lambda path: write(path, replace(now(), probe=Tiles(64, 48, 4, 3))),
        "probe tiles .*48.* are no choice for this GPU",
    ),
    "tiles of another GPU": (lambda path: write(path, replace(now(), attend=ATTEND[100])), "attend tiles .* are no choice for this GPU"),
}


@pytest.mark.parametrize(("make", "said"), UNUSED.values(), ids=UNUSED)
def test_what_does_not_belong_here_is_ignored_with_one_line(gpu, folder, caplog, make, said):
    path_in(folder).parent.mkdir()
    make(path_in(folder))
    with caplog.at_level(logging.WARNING, "svg_ear"):
        assert found_on(GPU) is None
        assert found_on(GPU) is None
        assert found_on(torch.device("cuda", 1)) is None
        assert Lengths(Options()).least(GPU, 12).tokens == CAUTIOUS[90]
    assert len(caplog.records) == 1
    assert caplog.messages[0].count("\n") == 0 and "Run SVG-EAR GPU Check" in caplog.messages[0]
    assert re.search(said, caplog.messages[0])
    assert tuning.attend_tiles(GPU, 2) == ATTEND[90] and tuning.probe_tiles(GPU, 2) == PROBE[90]


def test_automatic_takes_what_was_found_and_its_tiles(gpu, folder):
    write(path_in(folder), now())
    lengths = Lengths(Options())
    # What balanced computes in the middle of the denoising.
    middle = (0.35 * 0.06) ** 0.5
    assert lengths.least(GPU, 12).tokens == now().least_tokens(12, middle, 24576)
    assert lengths.least(GPU, 12).origin == "found by SVG-EAR GPU Check"
    assert lengths.least(GPU, 40).tokens == now().least_tokens(40, middle, 24576) < lengths.least(GPU, 12).tokens
    assert Lengths(Options(preset="quality")).least(GPU, 12).tokens == now().least_tokens(12, (0.6 * 0.1) ** 0.5, 24576)
    assert Lengths(Options(density=0.15)).least(GPU, 12).tokens == now().least_tokens(12, (0.35 * 0.15) ** 0.5, 24576)
    top_p = Options(preset="custom", custom=CustomSettings.of(budget="top-p"))
    assert Lengths(top_p).least(GPU, 12).tokens == now().least_tokens(12, 0.3, 24576)
    assert (tuning.attend_tiles(GPU, 2), tuning.probe_tiles(GPU, 2)) == (now().attend, now().probe)


def test_a_value_of_the_user_counts_and_the_tiles_are_used_all_the_same(gpu, folder):
    write(path_in(folder), now())
    least = Lengths(Options(min_tokens=0)).least(GPU, 12)
    assert (least.tokens, least.origin) == (0, "")
    assert tuning.attend_tiles(GPU, 2) == now().attend


def test_nothing_changes_within_a_run(gpu, folder):
    lengths = Lengths(Options())
    before = lengths.least(GPU, 12)
    write(path_in(folder), now())
    assert lengths.least(GPU, 12) == before and lengths.least(GPU, 40).tokens == before.tokens
    assert tuning.attend_tiles(GPU, 2) == ATTEND[90]
    assert Lengths(Options()).least(GPU, 12) != before


@pytest.mark.parametrize(("capability", "tokens"), [((9, 0), 24576), ((8, 6), 24576), ((10, 0), 32768), ((12, 1), CAUTIOUS_ELSEWHERE)])
def test_without_a_check_the_number_is_a_cautious_one(gpu, folder, capability, tokens):
    gpu(capability=capability)
    least = Lengths(Options()).least(GPU, 40)
    assert least.tokens == cautious_tokens(GPU) == tokens
    assert "SVG-EAR GPU Check" in least.origin


def test_automatic_precision_takes_int8_from_a_length_on_where_one_is_known(gpu, monkeypatch):
    automatic = Lengths(Options())
    monkeypatch.setattr("svg_ear.nodes.patch.lengths.INT8_FROM", {})
    assert automatic.precision(GPU, 40, 10**9) == "full"
    monkeypatch.setattr("svg_ear.nodes.patch.lengths.INT8_FROM", {90: ((1, 5000),)})
    for heads in (1, 12, 40):
        assert [automatic.precision(GPU, heads, tokens) for tokens in (4999, 5000)] == ["full", "int8"]
    monkeypatch.setattr("svg_ear.nodes.patch.lengths.INT8_FROM", {90: ((12, 40_000), (48, 10_000))})
    edges = {6: 40_000 * 2**0.5, 12: 40_000, 24: 20_000, 48: 10_000, 96: 10_000}
    for heads, tokens in edges.items():
        assert [automatic.precision(GPU, heads, factor * tokens) for factor in (0.999, 1.001)] == ["full", "int8"]
    assert automatic.precision(torch.device("cpu"), 40, 10**9) == "full"
    assert automatic.precision(GPU, 40, 10**9, measured=False) == "full"
    assert (automatic.precisions(GPU, 40), automatic.precisions(GPU, 40, measured=False)) == (("int8",), ("full",))
    gpu(capability=(8, 9))
    assert automatic.precision(GPU, 40, 10**9) == "full"


def test_automatic_precision_knows_hopper_only(gpu):
    automatic = Lengths(Options())
    assert [automatic.precision(GPU, 40, tokens) for tokens in (16383, 16384)] == ["full", "int8"]
    gpu(capability=(12, 0))
    assert automatic.precision(GPU, 40, 10**9) == "full"


def test_int8_was_measured_in_half_precision_at_one_head_dimension():
    known = [(dtype, dim) for dtype in (torch.float16, torch.bfloat16, torch.float32) for dim in (64, 128) if measured_in_int8(dtype, dim)]
    assert known == [(torch.float16, 128), (torch.bfloat16, 128)]


@pytest.mark.parametrize("precision", ["full", "int8"])
def test_a_precision_of_the_user_counts_whatever_is_known(gpu, monkeypatch, precision):
    monkeypatch.setattr("svg_ear.nodes.patch.lengths.INT8_FROM", {90: ((1, 5000),)})
    asked = Lengths(Options(precision=precision))
    assert {asked.precision(device, 40, tokens) for device in (GPU, torch.device("cpu")) for tokens in (1, 10**9)} == {precision}


def test_a_run_asks_for_the_device_and_heads_of_its_calls(monkeypatch):
    asked = []
    monkeypatch.setattr(Lengths, "least", lambda self, device, heads: asked.append((device, heads)) or Least(0))
    played = Harness()
    played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(heads=3), 3)))
    assert asked == [(torch.device("cpu"), 3)]


def test_a_run_uses_and_reports_the_automatic_number(monkeypatch):
    monkeypatch.setattr("svg_ear.nodes.patch.lengths.CAUTIOUS_ON_CPU", 97)
    played = Harness(min_tokens=-1)
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(), 2)))
    assert counts(record) == {"short-sequence": 1} and record.min_tokens == 97
    monkeypatch.setattr("svg_ear.nodes.patch.lengths.CAUTIOUS_ON_CPU", 96)
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(), 2)))
    assert record.sparse_calls == 1
    assert "at or above the min_tokens of 96 (a cautious number for this device" in report(SimpleNamespace(run=record, is_match=True))
