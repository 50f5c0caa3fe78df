"""``make demo`` at a size that takes seconds."""

import csv
import re

import pytest
from PIL import Image

from benchmarks import demo

LAST_LINE = r"demo: svg-ear density=(0\.\d+) psnr=(\d+\.\d+) dB svg2 psnr=(\d+\.\d+) dB"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """A function of extra settings that runs the demo; returns its exit status, the lines it printed and its folder."""

    def run(**settings):
        monkeypatch.setitem(demo.SCALES, "cpu", demo.Scale((3, 10, 14), 3, 1, 1.0))
        for name, value in settings.items():
            monkeypatch.setattr(demo, name, value)
        monkeypatch.setattr("sys.argv", ["demo", "--device", "cpu", "--output", str(tmp_path / "out")])
        status = demo.main()
        return status, capsys.readouterr().out.splitlines(), tmp_path / "out"

    return run


def test_it_prints_a_table_and_writes_pictures(run):
    status, lines, folder = run()
    density, ours, svg2 = map(float, re.fullmatch(LAST_LINE, lines[-1]).groups())
    assert status == 0 and ours > svg2
    assert density == pytest.approx(0.1, abs=0.02)
    assert {line.split()[0] for line in lines} >= {"method", "dense", "SVG-EAR", "SVG2"}
    sheet = Image.open(folder / "contact_sheet.png")
    assert len(sheet.convert("RGB").getcolors(1 << 24)) > 1000
    assert Image.open(folder / "preview.webp").n_frames == 3
    figures = list(csv.DictReader(open(folder / "figures.csv")))
    assert [row["method"] for row in figures] == ["dense", "SVG-EAR", "SVG-EAR as published", "SVG2"]
    assert float(figures[1]["psnr_db"]) == ours


def test_it_fails_when_svg_ear_is_not_the_closer_one(run):
    status, _, _ = run(SVG_EAR=demo.SVG2, SVG2=demo.SVG_EAR)
    assert status == 1
