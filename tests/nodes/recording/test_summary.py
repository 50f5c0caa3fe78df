import pytest
from fake_comfyui import options
from svg_ear.nodes.patch.options import Options
from svg_ear.nodes.patch.wording import advice, in_words
from svg_ear.nodes.recording.reasons import CROSS_ATTENTION, SHORT_SEQUENCE, UNKNOWN_ARCHITECTURE, WARM_UP_STEP
from svg_ear.nodes.recording.record import Found, Run, RunRecord
from svg_ear.nodes.recording.size import VideoSize
from svg_ear.nodes.recording.summary import headline, report, status
from svg_ear.nodes.recording.times import RunTimes
from svg_ear.nodes.recording.words import counted, duration

WIDE = VideoSize((21, 30, 52), (4, 16, 16))


def record(sparse_calls=0, dense_calls=None, **changes):
    values = {"architecture": "Wan", "steps": 20, "seconds": 12.5, "sparse_calls": sparse_calls}
    return RunRecord(**values | {"dense_calls": dense_calls or {}} | changes)


def told(run, **changes):
    return report(Found(**{"runs": (run,), "run": run, "is_match": True, "is_patched": True} | changes))


def test_report_counts_and_measures():
    run = record(
        30,
        {CROSS_ATTENTION: 40, WARM_UP_STEP: 10},
        density=0.104,
        estimated_error=0.05,
        times=RunTimes({"cluster": 1.0, "attend": 3.25}, sparse=4.3),
        state_bytes=3 * 2**20,
    )
    text = told(run)
    for part in ("Wan, 20 steps, 12.5 s", "Sparse calls: 30", "density 10.4%", "Dense calls: 50", "10 warm-up-step:"):
        assert part in text
    assert "attend 3.2 s" in text and "3 MB" in text
    assert "WARNING" not in text and "matches no" not in text


def test_few_steps_without_guidance_are_advised_another_preset():
    run, few = Run(), Options(preset="balanced")
    assert [steps for steps in range(50) if advice(few, steps)] == [3, 4, 5, 6, 7, 8]
    assert advice(Options(preset="few-step"), 4) is None
    run.advise(advice(few, 4), is_guided=False)
    advised = told(run.finish(None))
    assert "Advice: 4 steps without guidance" in advised and "preset few-step" in advised
    run.advise(advice(few, 4), is_guided=True)
    run.advise(advice(few, 4), is_guided=False)
    assert "Advice" not in told(run.finish(None))


def test_frames_of_tokens_that_are_not_all_alike():
    """MiniMax-H3's: 17 frames in 5 tokens."""
    token, rhythm = (4, 32, 32), (1, 4, 4, 4, 4)
    assert VideoSize((37, 22, 40), token, rhythm).in_words() == "1280 x 704, 124 frames"
    assert [VideoSize((count, 1, 1), token, rhythm).frames for count in (1, 2, 7, 72)] == [1, 5, 22, 243]
    larger, longer = VideoSize((7, 22, 40), token, rhythm).reaching(20000)
    assert longer.grid == (23, 22, 40) and longer.frames == 4 * 17 + 1 + 4 + 4 and larger.frames == 22


def test_warns_with_the_likeliest_cause():
    text = told(record(0, {CROSS_ATTENTION: 99, SHORT_SEQUENCE: 20, UNKNOWN_ARCHITECTURE: 1}))
    assert text.startswith("WARNING: nothing ran sparse: unknown-architecture")
    assert UNKNOWN_ARCHITECTURE.remedy in text
    assert SHORT_SEQUENCE.remedy in told(record(0, {CROSS_ATTENTION: 99, SHORT_SEQUENCE: 20}))
    assert "never called" in told(record())
    assert "nothing ran sparse: short-sequence" in headline(record(0, {SHORT_SEQUENCE: 1}))
    assert text.count(UNKNOWN_ARCHITECTURE.sentence) == 1


def test_says_when_the_run_is_not_the_one_asked_for():
    assert "matches no recorded run" in told(record(1), is_match=False)
    assert "connect the MODEL output" in report(Found())
    assert "no sampler has used this MODEL" in report(Found(is_patched=True))
    taken = "SVG-EAR Calibrate"
    assert "A later node took over" in report(Found(is_patched=True, taken_over_by=taken)) and taken in told(
        record(1), is_match=False, taken_over_by=taken
    )


def test_a_run_that_stopped_early_is_not_blamed():
    stopped = record(completed=False)
    assert "stopped early" in told(stopped) and "WARNING" not in told(stopped)
    assert "stopped early" in headline(stopped)


def test_the_status_is_short_and_its_cause_comes_first():
    short = status(record(0, {CROSS_ATTENTION: 4, SHORT_SEQUENCE: 4}, tokens=8190, min_tokens=24576))
    assert short == "Too short, 8,190 of 24,576 tokens: nothing ran sparse"
    unknown = status(record(0, {UNKNOWN_ARCHITECTURE: 1}))
    assert unknown.startswith("unknown-architecture") and len(unknown) < 60
    saved = status(record(400, {WARM_UP_STEP: 100}, seconds=300.0, times=RunTimes(sparse=50, dense=200), warnings=("x",)))
    assert saved == "1 warning, 400 of 500 calls sparse, saved 2 min 30 s of 7 min 30 s"


def test_tokens_and_what_would_suffice():
    enough = told(record(1, tokens=32760, min_tokens=24576, size=WIDE))
    assert "Tokens: 32,760 (832 x 480, 81 frames), at or above the min_tokens of 24,576" in enough
    small = VideoSize((5, 30, 52), (4, 16, 16))
    short = told(record(0, {SHORT_SEQUENCE: 1}, tokens=7800, min_tokens=24576, size=small))
    assert "Tokens: 7,800 (832 x 480, 17 frames), below the min_tokens of 24,576" in short
    assert "1488 x 864, 17 frames, or 832 x 480, 61 frames" in short
    for larger in small.reaching(24576):
        assert larger.tokens >= 24576


@pytest.mark.parametrize("grid", [(1, 1, 1), (7, 45, 3), (3, 2, 200)])
def test_sizes_that_reach_are_no_larger_than_they_need(grid):
    size = VideoSize(grid, (4, 16, 16))
    larger, longer = size.reaching(10_000)
    assert larger.grid[0] == grid[0] and longer.grid[1:] == grid[1:]
    assert larger.tokens >= 10_000 > (longer.grid[0] - 1) * grid[1] * grid[2]
    frames, rows, columns = larger.grid
    assert frames * rows * (columns - 1) < 10_000 or frames * (rows - 1) * columns < 10_000


def test_what_computed_the_dense_calls():
    one = {"cuDNN (PyTorch SDPA)": 7}
    assert "Dense calls of the video used: cuDNN (PyTorch SDPA)\n" in told(record(9, dense_attention=one, times=RunTimes(sparse=1.0)))
    two = told(record(9, dense_attention=one | {"ComfyUI's PyTorch attention": 2}))
    assert "used: cuDNN (PyTorch SDPA) (7); ComfyUI's PyTorch attention (2)" in two
    assert "of the video used" not in told(record(9))


def test_what_was_saved_and_what_dense_steps_took():
    times = RunTimes({"attend": 40.0}, sparse=50.0, once=10.0, dense=200.0, dense_steps=100.0)
    text = told(record(400, {WARM_UP_STEP: 100}, seconds=300.0, times=times, dense_steps=4))
    assert "Dense steps: 4 of 20, 1 min 40 s of 5 min 00 s (33%)" in text
    assert "in dense attention it would have been about 3 min 20 s" in text and "4.0x faster" in text
    assert "First calls, in which kernels compile: 10.0 s on top" in text
    assert "The whole run: about 2 min 20 s saved (32% of about 7 min 20 s all dense)" in text
    assert "lost" in told(record(1, times=RunTimes(sparse=5.0, dense=2.0))) and "slower than dense" in status(
        record(1, times=RunTimes(sparse=5.0, dense=2.0))
    )


def test_warnings_come_first_and_count():
    run = record(3, warnings=("grey tiles",))
    assert told(run).startswith("WARNING: grey tiles\n") and "1 warning" in headline(run) and "1 warning" in status(run)


def test_plurals():
    assert "1 step," in told(record(1, steps=1)) and "2 steps," in told(record(1, steps=2))
    assert counted(1, "frame") == "1 frame" and counted(32760, "token") == "32,760 tokens"
    assert [duration(seconds) for seconds in (0.0123, 0.25, 12.34, 61, 7260)] == ["12 ms", "0.25 s", "12.3 s", "1 min 01 s", "2 h 01 min"]
    assert VideoSize((1, 30, 52), (4, 16, 16)).in_words() == "832 x 480, 1 frame"


def test_settings_by_the_names_of_the_inputs():
    assert in_words(Options(), 20) == (
        "preset balanced, density 0.06, warm_up_density 0.35 (automatic), dense_first_steps 0 (automatic), dense_blocks 0"
    )
    before = Options(warm_up_density=0.0, density=0.1)
    assert in_words(before, 20) == "preset balanced, density 0.1, dense_first_steps 4 (automatic), dense_blocks 0"
    assert "density 0.06, warm_up_density 0.4, dense_first_steps 2, " in in_words(Options(dense_first_steps=2, warm_up_density=0.4), 20)
    own = options(preset="custom", budget="top-p", dense_first_steps=2, dense_last_steps=1, end_percent=0.9, dense_blocks="")
    assert in_words(own, 5) == (
        "preset custom, method svg-ear, top_p 0.85, dense_first_steps 2, dense_last_steps 1, start_percent 0, end_percent 0.9, "
        "dense_blocks none"
    )
