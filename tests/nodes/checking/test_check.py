import math

import pytest
import torch
from findings_made import card, dense_time, findings, sparse_time
from svg_ear.kernels import tuning
from svg_ear.kernels.tuning import ATTEND, PROBE, attend_choices, probe_choices
from svg_ear.nodes.checking.check import Check, best
from svg_ear.nodes.checking.plan import DENSITIES, FULL, QUICK, Plan, to_refine
from svg_ear.nodes.checking.report import report, status
from svg_ear.nodes.patch.break_even import break_even
from svg_ear.nodes.patch.findings import Timing

GPU = torch.device("cuda", 0)
SMALL = Plan((((12, 8192), (12, 32768)),), refinements=0, trials=(), longest=1e6, seconds=1e6)


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    monkeypatch.setattr(tuning, "_IN_USE", {})
    monkeypatch.setattr(tuning, "architecture", lambda device: 90)


class FakeMeasure:
    """Times from formulas instead of a GPU.

    Args:
        broken: methods or tiles that fail.
        largest: tokens times heads that fit; from ``out_of_memory`` on a call runs out of memory all the same.
        gains: by choice of tiles, the share of the table's time that it takes, for each trial.
    """

    device = GPU

    def __init__(self, broken=(), largest=math.inf, out_of_memory=math.inf, gains=(), dense=dense_time, sparse=sparse_time):
        self.attentions = {"attention_pytorch": None, "sage": None}
        self.broken, self.largest, self.out_of_memory, self.gains = broken, largest, out_of_memory, dict(gains)
        self.dense, self.sparse = dense, sparse
        self.sizes, self.tried = [], []

    def fits(self, heads, tokens):
        return heads * tokens <= self.largest

    def times(self, heads, tokens, methods, begin):
        if heads * tokens >= self.out_of_memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append((heads, tokens))
        for method in methods:
            begin(method)
        return {
            method: RuntimeError("no such kernel\nin detail") if method in self.broken else self._time(heads, tokens, method)
            for method in methods
        }

    def _time(self, heads, tokens, method):
        if isinstance(method, float):
            return self.sparse(heads, tokens, method)
        return self.dense(heads, tokens) * (0.4 if method == "sage" else 1)

    def trials(self, kernel, heads, tokens, choices, begin):
        self.tried.append((kernel, heads, tokens))
        for choice in choices:
            begin(choice)
        number = len([size for size in self.tried if size[0] == kernel]) - 1
        gain = {choice: self.gains.get(choice, (1.5,) * 9)[number] for choice in choices[1:]} | {choices[0]: 1.0}
        return {choice: RuntimeError("out of resources") if choice in self.broken else gain[choice] for choice in choices}


def checked(plan=SMALL, measure=None, told=None, earlier=None):
    tell = (lambda share, text: told.append((share, text))) if told is not None else lambda share, text: None
    return Check(card(), measure or FakeMeasure(), plan, tell, earlier).run()


def test_it_times_every_method_at_every_size():
    measure = FakeMeasure()
    found = checked(measure=measure).findings
    assert measure.sizes == [(12, 8192), (12, 32768)]
    expected = Timing(
        12, 8192, dense_time(12, 8192), {d: sparse_time(12, 8192, d) for d in DENSITIES}, {"sage": dense_time(12, 8192) * 0.4}
    )
    assert found.timings[0] == expected
    assert (found.attend, found.probe) == (None, None)


@pytest.mark.parametrize("plan", [QUICK, FULL])
def test_break_evens_are_within_a_few_percent_of_a_fine_measurement(plan):
    found = checked(plan).findings
    assert found.heads == [12, 24, 40]
    for heads in found.heads:
        for density in DENSITIES:
            fine = break_even((tokens, dense_time(heads, tokens), sparse_time(heads, tokens, density)) for tokens in range(8192, 32768, 64))
            assert found.measured(heads, density) == pytest.approx(fine, rel=0.02), (heads, density)


def test_a_length_above_a_crossing_confirms_it():
    """Dense times rise in steps: on an H200 sparse calls at 30 % are faster from 26,200 tokens on, and slower again at 28,700."""
    times = {25600: 0.99, 26880: 1.02, 32768: 1.2}
    known = [Timing(24, tokens, gain, {0.3: 1.0}, {}) for tokens, gain in times.items()]
    (_, above), *more = to_refine(known)
    assert not more and 28500 < above < 30500
    slower = [*known, Timing(24, above, 0.95, {0.3: 1.0}, {})]
    assert to_refine(slower) == [], "crossed between two that are close, and confirmed by the longest"
    assert break_even((timing.tokens, timing.dense, timing.sparse[0.3]) for timing in slower) > above


def test_close_lengths_are_not_measured_again():
    assert to_refine(findings(((12, 16000), (12, 18000), (12, 20000))).timings) == []
    refined = to_refine(findings(((12, 8192), (12, 65536))).timings)
    lengths = sorted(tokens for _, tokens in refined)
    assert 1 <= len(lengths) <= len(DENSITIES) and all(tokens % 256 == 0 for tokens in lengths)
    assert all(high / low >= 1.04 for low, high in zip(lengths, lengths[1:]))
    assert to_refine(findings(((12, 1024), (12, 2048))).timings) == [], "dense is faster at both"


def test_refinements_leave_the_other_dense_methods_out():
    measure = FakeMeasure()
    found = checked(QUICK, measure).findings
    refined = [timing for timing in found.timings if (timing.heads, timing.tokens) not in QUICK.sizes[0]]
    assert refined and not any(timing.others for timing in refined)


def test_what_does_not_fit_or_takes_too_long_is_said():
    plan = Plan((((12, 8192), (12, 16384), (12, 65536), (40, 131072)),), refinements=0, trials=(), longest=50, seconds=1e6)
    found = checked(plan, FakeMeasure(largest=12 * 65536))
    assert [timing.tokens for timing in found.findings.timings] == [8192, 16384]
    assert found.left_out == (
        "12 heads, 65,536 tokens: a dense call would take about 72 ms",
        "40 heads, 131,072 tokens: not enough free memory",
    )
    assert "40 heads, 131,072 tokens: not enough free memory" in report(found)


def test_memory_that_runs_out_and_time_that_is_over_end_nothing():
    found = checked(SMALL, FakeMeasure(out_of_memory=12 * 32768))
    assert [timing.tokens for timing in found.findings.timings] == [8192]
    assert found.left_out == ("12 heads, 32,768 tokens: out of memory",)
    late = checked(Plan(SMALL.sizes, 0, (), longest=1e6, seconds=-1))
    assert late.findings.timings == () and all("are over" in sentence for sentence in late.left_out)


def test_a_method_that_fails_is_said_once_and_left_out():
    measure = FakeMeasure(broken=("sage", 0.05))
    found = checked(SMALL, measure)
    assert found.left_out == ("sage: RuntimeError: no such kernel", "5% exact: RuntimeError: no such kernel")
    assert [sorted(timing.sparse) for timing in found.findings.timings] == [[0.1, 0.2, 0.3]] * 2
    assert not any(timing.others for timing in found.findings.timings)


def test_without_dense_attention_or_sparse_calls_nothing_is_compared():
    for broken in (("attention_pytorch",), DENSITIES):
        found = checked(SMALL, FakeMeasure(broken=broken))
        assert found.findings.heads == []
        assert status(found.findings) == "Nothing could be compared"
        assert "RuntimeError: no such kernel" in report(found)


def test_an_interruption_stops_the_check():
    class Interrupted(Exception):
        pass

    def tell(share, text):
        if "20% exact" in text:
            raise Interrupted

    with pytest.raises(Interrupted):
        Check(card(), FakeMeasure(), SMALL, tell).run()


def test_progress_rises_to_the_end():
    told = []
    checked(FULL, told=told)
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[0] == 0 and told[-1] == (1.0, "Done")
    assert "trying tiles of attend, 24 heads, 16,384 tokens" in [text for _, text in told]


def test_tiles_that_are_faster_everywhere_are_taken_before_calls_are_timed():
    attend, probe = attend_choices(GPU)[2], probe_choices(GPU)[1]
    measure = FakeMeasure(gains={attend: (0.9, 0.95, 0.97), probe: (0.9, 0.9, 0.9)})
    measure.times, times = lambda *given: in_use.append(tuning.attend_tiles(GPU, 2)) or times(*given), measure.times
    in_use = []
    found = checked(FULL, measure).findings
    assert (found.attend, found.probe) == (attend, probe)
    assert set(in_use) == {attend}
    assert (tuning.attend_tiles(GPU, 2), tuning.probe_tiles(GPU, 2)) == (attend, probe)


def test_a_quick_check_keeps_the_tiles_that_were_found():
    earlier = findings()
    found = checked(QUICK, earlier=earlier).findings
    assert (found.attend, found.probe) == (earlier.attend, earlier.probe)
    assert checked(FULL, earlier=earlier).findings.attend == ATTEND[90]


def test_tiles_that_fail_are_said_and_left_out():
    broken = attend_choices(GPU)[1]
    found = checked(FULL, FakeMeasure(broken=(broken,), gains={broken: (0.1,) * 3}))
    assert (found.findings.attend, found.findings.probe) == (ATTEND[90], PROBE[90])
    assert any("RuntimeError: out of resources" in sentence for sentence in found.left_out)


@pytest.mark.parametrize(
    ("tried", "chosen"),
    [
        ([{"table": 1.0, "other": 0.9}, {"table": 2.0, "other": 1.9}], "other"),
        ([{"table": 1.0, "other": 0.99}], "table"),
        ([{"table": 1.0, "other": 0.5}, {"table": 1.0, "other": 1.02}], "table"),
        ([{"table": 1.0, "other": 0.95, "third": 0.94}], "third"),
        ([{"table": 1.0, "other": 0.5}, {"table": 1.0, "other": RuntimeError()}], "table"),
        ([{"table": RuntimeError(), "other": 3.0, "third": 2.0}], "third"),
        ([{"table": RuntimeError(), "other": RuntimeError()}], None),
        ([], None),
    ],
)
def test_other_tiles_must_be_worth_it(tried, chosen):
    assert best(tried) == chosen


def test_the_report_says_it_in_plain_words():
    text = report(checked(FULL), commit="abc1234")
    assert text.startswith("SVG-EAR GPU Check: NVIDIA H100 80GB HBM3 (compute capability 9.0), torch 2.11.0, Triton 3.6.0, svg-ear 0.1.0")
    assert "commit abc1234" in text.splitlines()[0]
    assert "10% exact beats dense from 15,800 tokens on at 12 heads. Wan 2.1 1.3B at 832 x 480 and 81 frames has 32,760." in text
    assert "sage is 2.5x as fast as the dense attention that is set (24 heads, 131,072 tokens)." in text
    assert "Tiles of attend: 128 x 64, 8 warps, 2 stages, 128 registers and 64 x 64, 4 warps, 3 stages" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["heads", "5%", "exact", "10%", "exact", "20%", "exact", "30%", "exact"] in rows


def test_the_report_knows_always_and_never():
    always = report(checked(SMALL, FakeMeasure(sparse=lambda heads, tokens, density: 1e-3)))
    assert "10% exact beat dense at 12 heads at every length from 8,192 tokens on" in always and "8,192 or less" in always
    never = report(checked(SMALL, FakeMeasure(sparse=lambda heads, tokens, density: 1e6)))
    assert "10% exact was slower than dense at 12 heads up to 32,768 tokens" in never and "over 32,768" in never
