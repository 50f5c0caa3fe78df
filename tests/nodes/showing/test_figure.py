import time
from dataclasses import replace

import numpy as np
import pytest
from routing_maps import routing_map, run_record
from svg_ear.nodes.recording.trace import TraceRecord
from svg_ear.nodes.showing.figure import figure
from svg_ear.nodes.showing.palette import DENSITY, ERROR, EXACT, SHARE, error_level, shade


def share_of_color(image, color):
    return (np.asarray(image) == color).all(-1).mean()


@pytest.mark.parametrize("width", [700, 1400, 2000])
def test_exact_blocks_take_their_true_area(width):
    run = run_record()
    recorded = run.trace.maps[0]
    # without the tables, whose highest value has the colour of exact blocks
    sides = [figure(run, shown, 4, width) for shown in (recorded, replace(recorded, exact=np.zeros_like(recorded.exact)))]
    painted = [share_of_color(side, EXACT) * side.width * side.height for side in sides]
    map_area = (600 / 1400 * width) ** 2
    assert sides[0].width == width
    assert (painted[0] - painted[1]) / map_area == pytest.approx(recorded.density, abs=0.02)


def test_a_long_run_is_drawn_in_time():
    recorded = routing_map(groups=300, clusters=1000, grid=(21, 45, 80))
    run = run_record((recorded,), layers=40, steps=50)
    began = time.perf_counter()
    figure(run, recorded, 4, 1400)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    "run",
    [None, run_record((), trace=TraceRecord()), run_record((), trace=TraceRecord(), completed=False), run_record(())],
    ids=["no run", "nothing sparse", "stopped", "no maps"],
)
def test_what_is_missing_is_said(run):
    image = np.asarray(figure(run, None, 4, 1000))
    assert image.shape[1] == 1000 and (image < 120).any()


def test_an_unknown_grid_changes_the_last_part_only():
    run = run_record()
    known, unknown = (np.asarray(figure(run, shown, 4, 700)) for shown in (run.trace.maps[0], replace(run.trace.maps[0], grid=None)))
    assert len(unknown) < len(known)
    assert np.array_equal(known[:440], unknown[:440]) and (unknown[450:] < 200).any()


@pytest.mark.parametrize("ramp", [ERROR, DENSITY, SHARE])
def test_ramps_change_steadily_in_lightness(ramp):
    """Told apart without hue, and so by the colour-blind."""
    lightness = shade(np.linspace(0, 1, 30), ramp).astype(float) @ (0.2126, 0.7152, 0.0722)
    changes = np.diff(lightness)
    assert (changes > 0).all() or (changes < 0).all()


def test_levels_of_errors():
    assert error_level(np.array([0.0, 1e-4, 0.3])) == pytest.approx([0, 0, 1])


def test_numbers_that_are_not_finite_are_drawn_as_gaps():
    run = run_record()
    everything = {place: np.full_like(figures, np.nan) for place, figures in run.trace.sparse.items()}
    broken = replace(run, trace=replace(run.trace, sparse=everything), density=None, estimated_error=None)
    with np.errstate(all="raise"):
        image = np.asarray(figure(broken, run.trace.maps[0], 4, 700))
    assert not np.array_equal(image, np.asarray(figure(run, run.trace.maps[0], 4, 700)))


@pytest.mark.parametrize("grid", [(20, 1, 1000), (3, 1000, 1), (1, 1, 1)])
def test_a_thin_video_is_drawn(grid):
    recorded = routing_map(grid=grid)
    assert figure(run_record((recorded,)), recorded, 4, 1400).width == 1400
