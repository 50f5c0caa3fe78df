from svg_ear.nodes.recording.reasons import CROSS_ATTENTION, SHORT_SEQUENCE, UNKNOWN_ARCHITECTURE, WARM_UP_STEP
from svg_ear.nodes.recording.record import RunRecord
from svg_ear.nodes.recording.summary import headline, report


def record(sparse_calls=0, dense_calls=None, **changes):
    values = {"architecture": "Wan", "steps": 20, "seconds": 12.5, "sparse_calls": sparse_calls}
    return RunRecord(**values | {"dense_calls": dense_calls or {}} | changes)


def test_report_counts_and_measures():
    run = record(
        30,
        {CROSS_ATTENTION: 40, WARM_UP_STEP: 10},
        density=0.104,
        estimated_error=0.05,
        stage_seconds={"cluster": 1.0, "attend": 3.25},
        state_bytes=3 * 2**20,
    )
    text = report(run)
    for part in ("Wan, 20 steps, 12.5 s", "Sparse calls: 30", "density 10.4%", "Dense calls: 50", "10 warm-up-step:"):
        assert part in text
    assert "attend 3.25 s" in text and "3 MB" in text
    assert "WARNING" not in text and "matches no" not in text


def test_warns_with_the_likeliest_cause():
    text = report(record(0, {CROSS_ATTENTION: 99, SHORT_SEQUENCE: 20, UNKNOWN_ARCHITECTURE: 1}))
    assert text.startswith("WARNING: nothing ran sparse: unknown-architecture")
    assert UNKNOWN_ARCHITECTURE.remedy in text
    assert SHORT_SEQUENCE.remedy in report(record(0, {CROSS_ATTENTION: 99, SHORT_SEQUENCE: 20}))
    assert "never called" in report(record())
    assert "nothing ran sparse: short-sequence" in headline(record(0, {SHORT_SEQUENCE: 1}))


def test_says_when_the_run_is_not_the_one_asked_for():
    assert "matches no recorded run" in report(record(1), is_match=False)
    assert "No run recorded" in report(None)


def test_a_run_that_stopped_early_is_not_blamed():
    stopped = record(completed=False)
    assert "stopped early" in report(stopped) and "WARNING" not in report(stopped)
    assert "stopped early" in headline(stopped)
