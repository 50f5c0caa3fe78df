"""A run as one picture: where the exact blocks are, what each layer and step spent, and where in the video it went."""

from __future__ import annotations

import numpy
from PIL import Image

from ..recording.record import RunRecord
from ..recording.trace import RoutingMap
from ..recording.words import counted, duration
from .arrange import arranged
from .canvas import UNITS, Canvas
from .palette import DENSE, DENSITY, ERROR, ERROR_RANGE, EXACT, FAINT, INK, LINE, PAPER, SHARE, error_level, shade

MARGIN = 50
PLOT_TOP = 178
MAP_SIZE = 600
TABLE_X, TABLE_HEIGHT = 800, 226
FRAMES_TOP = 930
FRAME_GAP = 14
TALLEST_FRAME, THINNEST_FRAME = 300, 12


def figure(run: RunRecord | None, recorded: RoutingMap | None, frames: int, width: int) -> Image.Image:
    """Draw a run and one of its routing maps.

    Args:
        run: None draws what to connect.
        recorded: None says that no routing was recorded.
        frames: frames of the video to paint, evenly spread.
        width: pixels.
    """
    if run is None or not run.trace.sparse:
        return _empty(run, width)
    shown = None if recorded is None else arranged(recorded)
    columns = _frame_columns(shown, frames)
    canvas = Canvas(width, FRAMES_TOP + (columns[1] + 120 if columns else 60))
    _title(canvas, run, shown)
    _routing(canvas, shown)
    branch = shown.branch if shown else run.trace.branches[0]
    _table(canvas, PLOT_TOP, run, branch, 0, "(b) Share of the pairs computed exactly", DENSITY)
    _table(canvas, PLOT_TOP + TABLE_HEIGHT + 148, run, branch, 1, "(c) Estimated error of the output, by plain averages", ERROR)
    _video(canvas, shown, columns)
    return canvas.image


def _title(canvas: Canvas, run: RunRecord, shown: RoutingMap | None) -> None:
    canvas.text(MARGIN, 34, "SVG-EAR: what was computed exactly", 34)
    dense = sum(run.dense_calls.values())
    facts = f"{run.architecture or 'Unknown model'}, {counted(run.steps, 'step')} in {duration(run.seconds)}. "
    density = "not finite" if run.density is None else f"{run.density:.1%}"
    facts += f"{counted(run.sparse_calls, 'attention call')} sparse (mean density {density}), {dense} dense. "
    if shown is not None:
        facts += f"Shown: {_where(shown)}."
    canvas.text(MARGIN, 84, facts, 18, FAINT)


def _where(shown: RoutingMap) -> str:
    return f"layer {shown.layer}, step {shown.step}, head {shown.head}, {shown.branch}"


def _routing(canvas: Canvas, shown: RoutingMap | None) -> None:
    x, y, size = MARGIN + 38, PLOT_TOP, MAP_SIZE
    canvas.text(MARGIN, y - 46, "(a) Routing of one head: every block is a query group x a key cluster", 20)
    if shown is None:
        canvas.frame(x, y, size, size)
        canvas.text(x + size / 2, y + size / 2, "No routing was recorded for this run.", 18, FAINT, "mm")
        return
    colors = shade(error_level(shown.errors), ERROR)
    colors[shown.exact] = EXACT
    # One pixel for a few tokens: more than the picture can show, with the proportions of the blocks.
    rows, columns = (proportions(sizes, 2 * canvas.pixels(size)) for sizes in (shown.group_sizes, shown.cluster_sizes))
    canvas.paint(x, y, size, size, colors[rows][:, columns], smooth=True)
    canvas.text(x + size / 2, y + size + 10, f"{shown.exact.shape[1]} key clusters, width = keys in the cluster", 16, FAINT, "ma")
    canvas.text(MARGIN + 14, y + size / 2, f"{shown.exact.shape[0]} query groups, height = queries in the group", 16, FAINT, across=True)
    legend = y + size + 62
    canvas.swatch(x, legend - 1, EXACT, f"exact: {shown.density:.1%} of the pairs")
    low, high = (f"{end:.0%}" if end >= 0.01 else f"{end:.2%}" for end in ERROR_RANGE)
    title = "estimated from averages; error it adds to the output:"
    canvas.bar(x + 260, legend, 340, ERROR, f"{low} or less", f"{high} or more", title)


def proportions(sizes: numpy.ndarray, pixels: int) -> numpy.ndarray:
    """For each pixel of an axis the number of the group that lies there."""
    ends = numpy.cumsum(sizes)
    return numpy.searchsorted(ends, (numpy.arange(pixels) + 0.5) / pixels * ends[-1], side="right")


def _table(canvas: Canvas, y: float, run: RunRecord, branch: str, figure_number: int, title: str, ramp) -> None:
    trace, x = run.trace, TABLE_X
    width = UNITS - MARGIN - x
    steps = max(run.steps, 1 + max(step for _, _, step in trace.sparse))
    values = numpy.full((trace.layers, steps), numpy.nan)
    for (name, layer, step), figures in trace.sparse.items():
        if name == branch:
            values[layer, step] = figures[figure_number].mean()
    values[~numpy.isfinite(values)] = numpy.nan
    top = float(numpy.nan_to_num(values).max(initial=0))
    colors = shade(values / top if top > 0 else values, ramp)
    colors[numpy.isnan(values)] = DENSE
    canvas.text(x - 42, y - 46, f"{title} ({branch})", 20)
    canvas.paint(x, y, width, TABLE_HEIGHT, colors)
    for number, at in _ticks(trace.layers, TABLE_HEIGHT):
        canvas.text(x - 10, y + at, str(number), 14, FAINT, "rm")
    for number, at in _ticks(steps, width):
        canvas.text(x + at, y + TABLE_HEIGHT + 7, str(number), 14, FAINT, "ma")
    canvas.text(x - 46, y + TABLE_HEIGHT / 2, "layer", 16, FAINT, across=True)
    canvas.text(x + width / 2, y + TABLE_HEIGHT + 26, "step", 16, FAINT, "ma")
    _write_values(canvas, x, y, width, values, top)
    legend = y + TABLE_HEIGHT + 56
    canvas.bar(x, legend, 170, ramp, "0 %", f"{top:.1%}", "")
    reasons = list(dict.fromkeys(reason.name for reason in trace.dense.values()))
    kept = ", ".join(reasons[:2]) + (" ..." if len(reasons) > 2 else "")
    bad = not all(numpy.isfinite(figures).all() for figures in trace.sparse.values())
    meanings = ["not finite"] * bad + [f"dense: {kept}" if kept else "not evaluated"]
    canvas.swatch(x + 210, legend - 1, DENSE, " or ".join(meanings))


def _write_values(canvas: Canvas, x: float, y: float, width: float, values: numpy.ndarray, top: float) -> None:
    """Percentages in the cells, where they fit."""
    layers, steps = values.shape
    if width / steps < 58 or TABLE_HEIGHT / layers < 17:
        return
    for layer, step in zip(*numpy.nonzero(~numpy.isnan(values))):
        color = PAPER if values[layer, step] > 0.55 * top else INK
        at = (x + (step + 0.5) * width / steps, y + (layer + 0.5) * TABLE_HEIGHT / layers)
        canvas.text(*at, f"{values[layer, step]:.1%}", 14, color, "mm")


def _ticks(count: int, length: float) -> list[tuple[int, float]]:
    """Numbers to write along an axis of ``count`` cells, and the middle of each cell."""
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if length / count * step >= 26)
    return [(number, (number + 0.5) * length / count) for number in range(0, count, every)]


def _frame_columns(shown: RoutingMap | None, frames: int) -> tuple[list[int], float, float] | None:
    """The frames to paint, and the height and width of each; None where the grid is not known."""
    if shown is None or shown.grid is None:
        return None
    count, rows, columns = shown.grid
    chosen = sorted(set(numpy.linspace(0, count - 1, min(frames, count)).round().astype(int).tolist()))
    room = UNITS - 2 * MARGIN - FRAME_GAP * (len(chosen) - 1)
    height = min(room / len(chosen) * rows / columns, TALLEST_FRAME)
    # A video of one row or column is wide enough to be seen, at the cost of its proportions.
    return chosen, max(height, THINNEST_FRAME), max(height * columns / rows, THINNEST_FRAME)


def _video(canvas: Canvas, shown: RoutingMap | None, placed: tuple | None) -> None:
    title = "(d) Share of the queries that see each token of the video exactly"
    canvas.text(MARGIN, FRAMES_TOP - 40, title, 20)
    if placed is None:
        reason = "no routing was recorded" if shown is None else "the sequence holds more tokens than the video, whose places are not known"
        canvas.text(MARGIN, FRAMES_TOP, f"Not shown: {reason}.", 18, FAINT)
        return
    chosen, height, width = placed
    shares = shown.key_shares[shown.key_labels].reshape(shown.grid)
    top = max(float(numpy.quantile(shares, 0.99)), 1e-6)
    for place, frame in enumerate(chosen):
        x = MARGIN + place * (width + FRAME_GAP)
        canvas.paint(x, FRAMES_TOP, width, height, shade(shares[frame] / top, SHARE))
        canvas.text(x, FRAMES_TOP + height + 8, f"latent frame {frame + 1} of {shown.grid[0]}", 15, FAINT)
    rows, columns = shown.grid[1:]
    canvas.bar(MARGIN, FRAMES_TOP + height + 58, 340, SHARE, "0 %", f"{top:.0%} or more", "")
    canvas.text(MARGIN + 370, FRAMES_TOP + height + 65, f"one square is one token, {columns} x {rows} in a frame", 15, FAINT, "lm")


def _empty(run: RunRecord | None, width: int) -> Image.Image:
    canvas = Canvas(width, 300)
    lines = ["No run was recorded for this model.", "Connect the MODEL that the sampler used, and the sampler's LATENT."]
    if run is not None:
        lines = ["Nothing ran sparse in this run, so there is nothing to draw.", "SVG-EAR Report says why."]
        if not run.completed:
            lines[0] = "The run stopped early, so its figures were dropped."
    canvas.frame(MARGIN, 40, UNITS - 2 * MARGIN, 220, LINE)
    canvas.text(UNITS / 2, 130, lines[0], 28, anchor="mm")
    canvas.text(UNITS / 2, 178, lines[1], 20, FAINT, "mm")
    return canvas.image
