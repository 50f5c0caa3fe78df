"""``make demo`` at a size that takes seconds."""

import csv
import re
import runpy

import pytest
import torch
from PIL import Image

from benchmarks.demo import run as demo
from benchmarks.demo.budget import DENSE_STEP, SPARSE_STEP, Budget, TooSlow
from benchmarks.demo.clips import SCALES, Scale

LAST_LINE = r"demo: svg-ear density=(0\.\d+) psnr=(\d+\.\d+) dB svg2 psnr=(\d+\.\d+) dB"
LARGE, SMALL = Scale((4, 10, 14), 3, 1, 1.0, 1.0), Scale((3, 10, 14), 3, 1, 1.0, 0.2)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """A function of arguments and settings that runs the demo; returns its exit status, the lines it printed and its folder."""

    def run(*arguments, scales=(SMALL,), **settings):
        monkeypatch.setitem(demo.SCALES, "cpu", scales)
        for name, value in settings.items():
            monkeypatch.setitem(demo.METHODS, name, value)
        monkeypatch.setattr("sys.argv", ["demo", "--device", "cpu", "--output", str(tmp_path / "out"), *arguments])
        status = demo.main()
        return status, capsys.readouterr().out.splitlines(), tmp_path / "out"

    return run


def rows(folder):
    return list(csv.DictReader(open(folder / "figures.csv")))


def test_it_prints_a_table_and_writes_pictures(run):
    status, lines, folder = run()
    density, ours, svg2 = map(float, re.fullmatch(LAST_LINE, lines[-1]).groups())
    assert status == 0 and ours > svg2
    assert density == pytest.approx(0.1, abs=0.02)
    assert {line.split()[0] for line in lines} >= {"method", "dense", "SVG-EAR", "SVG2"}
    assert "on a CPU" in "".join(lines) and "without kernels" in "".join(lines)
    sheet = Image.open(folder / "contact_sheet.png")
    assert len(sheet.convert("RGB").getcolors(1 << 24)) > 1000
    assert Image.open(folder / "preview.webp").n_frames == 3
    figures = rows(folder)
    assert [row["method"] for row in figures] == ["dense", "SVG-EAR", "SVG-EAR as published", "SVG2"]
    assert float(figures[1]["psnr_db"]) == ours


def test_it_fails_when_svg_ear_is_not_the_closer_one(run):
    status, _, _ = run(**{"SVG-EAR": demo.SVG2, "SVG2": demo.SVG_EAR})
    assert status == 1


def test_too_little_time_takes_one_thread_then_a_smaller_clip_and_says_so(run):
    torch.set_num_threads(2)
    status, lines, folder = run("--seconds", "0.001", scales=(LARGE, SMALL))
    assert status == 0 and torch.get_num_threads() == 1
    assert "slow or busy" in lines[1] and "with one thread" in lines[1]
    assert "slow or busy" in lines[2] and "420 video tokens" in lines[2] and "--seconds" in lines[3]
    assert Image.open(folder / "preview.webp").n_frames == SMALL.grid[0]


def test_a_folder_that_cannot_be_written_is_found_before_the_work(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.sample, "load_demo_transformer", lambda *_: pytest.fail("the work had begun"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        run("--output", str(tmp_path / "file" / "folder"))
    told = capsys.readouterr().err
    assert ended.value.code == 2 and f"{tmp_path / 'file' / 'folder'} (Not a directory)" in told and "--output FOLDER" in told


@pytest.mark.parametrize("done", [0, 2])
def test_an_interrupt_keeps_what_is_done(run, monkeypatch, done):
    calls = []

    def stepped(budget):
        calls.append(budget)
        if len(calls) == done * SMALL.steps + 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Budget, "step", stepped)
    status, lines, folder = run()
    assert status == 130 and lines[-1].startswith("stopped: ")
    if done:
        assert [row["method"] for row in rows(folder)] == ["dense", "SVG-EAR"] and "figures.csv" in lines[-1]
        assert [line.split()[0] for line in lines[1:-1]] == ["method", "dense", "SVG-EAR"]
    else:
        assert "no clip" in lines[-1] and not (folder / "figures.csv").exists()


def test_an_interrupt_while_it_starts_is_a_line_too(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "main", interrupted)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.demo", run_name="__main__")
    assert ended.value.code == 130 and capsys.readouterr().err == "stopped before anything was done\n"


# Of the largest clips on two idle CPU cores: docs/demo.csv.
IDLE_SECONDS = 45


class Machine:
    """Plays the clips of the demo on a machine so many times slower than an idle one."""

    def __init__(self, seconds=demo.SECONDS):
        self.now = 0.0
        self.budget = Budget(seconds, SCALES["cpu"], lambda: self.now)
        self.sparse = [settings is not None for settings in demo.METHODS.values()]

    def play(self, scale, slowness, sparse_slowness=None):
        """All clips of ``scale``, or what is left of it when the budget gives it up: the next scale."""
        self.budget.begin(scale, self.sparse)
        second = IDLE_SECONDS * scale.cost / self.budget.all
        try:
            for work in list(self.budget.ahead):
                self.now += work * second * (slowness if work == DENSE_STEP else sparse_slowness or slowness)
                self.budget.step()
        except TooSlow as slow:
            return slow.smaller
        return None

    def plays(self, *slowness):
        """Play scales until one is done, and return it."""
        scale = SCALES["cpu"][0]
        while (smaller := self.play(scale, *slowness)) is not None:
            scale = smaller
        return scale


def test_an_idle_machine_makes_the_largest_clip():
    """Also one that is twice as slow; a first step that takes twice its time is no reason."""
    for slowness in (1, 2, 3.5):
        assert Machine().plays(slowness) is SCALES["cpu"][0]


@pytest.mark.parametrize("slowness", [(5,), (10,), (25,), (4, 12), (10, 30)])
def test_a_busy_machine_keeps_to_the_time(slowness):
    """Sparse steps may suffer more from it than dense ones, which the first step does not show."""
    machine = Machine()
    assert machine.plays(*slowness) is not SCALES["cpu"][0]
    assert machine.now < demo.SECONDS * 1.25


def test_what_is_nearly_done_is_not_begun_anew():
    """Where it gets slow towards the end; and the smallest clip goes on however slow it is."""
    machine = Machine()
    machine.budget.begin(SCALES["cpu"][0], machine.sparse)
    while machine.budget.ahead:
        done = 1 - sum(machine.budget.ahead[1:]) / machine.budget.all
        machine.now = demo.SECONDS * (0.9 * done if done < 0.9 else 1.1 * done)
        machine.budget.step()
    assert machine.now > demo.SECONDS
    assert Machine(1).play(SCALES["cpu"][-1], 100) is None


def test_one_thread_goes_on_from_the_clips_that_are_done():
    machine = Machine()
    machine.budget.begin(SCALES["cpu"][0], machine.sparse)
    whole = machine.budget.cost
    machine.budget.begin(SCALES["cpu"][0], machine.sparse, done=2)
    assert len(machine.budget.ahead) == 2 * SCALES["cpu"][0].steps and machine.budget.cost < whole == SCALES["cpu"][0].cost


def test_the_scales_get_smaller_and_sparse_steps_count_for_more():
    for scales in SCALES.values():
        assert sorted(scales, key=lambda scale: -scale.cost) == list(scales)
    assert SPARSE_STEP > DENSE_STEP
