"""What a check of a GPU found, as a picture: the speed-up over dense attention by length, and where it begins."""

from __future__ import annotations

import math

from PIL import Image

from ..patch.findings import Findings, Timing
from .canvas import UNITS, Canvas
from .palette import DENSITY, ERROR, FAINT, INK, LINE, shade

MARGIN, TOP, HEIGHT, GAP = 50, 170, 360, 90
# Speed-ups that the panels show, and those that are written beside them.
RANGE, TICKS = (0.25, 16.0), (0.25, 0.5, 1, 2, 4, 8, 16)


def gpu_check_figure(findings: Findings | None, sentence: str, width: int) -> Image.Image:
    """Draw what was found: a panel for each number of heads, under ``sentence``; None draws the sentence alone."""
    panels = findings.heads if findings else []
    canvas = Canvas(width, TOP + HEIGHT + 130 if panels else 220)
    canvas.text(MARGIN, 34, "SVG-EAR GPU Check", 34)
    canvas.text(MARGIN, 84, sentence, 18, FAINT)
    if not panels:
        return canvas.image
    step = (UNITS - 2 * MARGIN + GAP) / len(panels)
    for place, heads in enumerate(panels):
        timings = sorted((timing for timing in findings.timings if timing.heads == heads), key=lambda timing: timing.tokens)
        _panel(canvas, MARGIN + place * step + 20, step - GAP, findings, heads, timings)
    x = MARGIN + 20
    for density in findings.densities:
        x = canvas.swatch(x, TOP + HEIGHT + 76, _color(findings, density), f"{density:.0%} exact")
    for name in _others(findings):
        x = canvas.swatch(x, TOP + HEIGHT + 76, _color_of_other(findings, name), name)
    return canvas.image


def _panel(canvas: Canvas, x: float, width: float, findings: Findings, heads: int, timings: list[Timing]) -> None:
    lengths = [timing.tokens for timing in timings]
    low, high = lengths[0], max(lengths[-1], 2 * lengths[0])

    def place(tokens: float, speed_up: float) -> tuple[float, float]:
        across = math.log(tokens / low) / math.log(high / low)
        up = math.log(min(max(speed_up, RANGE[0]), RANGE[1]) / RANGE[0]) / math.log(RANGE[1] / RANGE[0])
        return x + across * width, TOP + (1 - up) * HEIGHT

    canvas.text(x, TOP - 36, f"{heads} heads: speed-up over {findings.card.dense}", 18)
    canvas.frame(x, TOP, width, HEIGHT)
    for tick in TICKS:
        (_, y), is_even = place(low, tick), tick == 1
        canvas.line([(x, y), (x + width, y)], INK if is_even else LINE, 2 if is_even else 1)
        canvas.text(x - 8, y, f"{tick:g}", 14, FAINT, "rm")
    for tick in (2**power * 1024 for power in range(3, 12)):
        if low <= tick <= high:
            at, _ = place(tick, 1)
            canvas.line([(at, TOP + HEIGHT), (at, TOP + HEIGHT + 5)])
            canvas.text(at, TOP + HEIGHT + 8, f"{tick // 1024}k", 14, FAINT, "ma")
    canvas.text(x + width / 2, TOP + HEIGHT + 30, "tokens", 15, FAINT, "ma")
    for name in _others(findings):
        points = [place(timing.tokens, timing.dense / timing.others[name]) for timing in timings if name in timing.others]
        _curve(canvas, points, _color_of_other(findings, name))
    for density in findings.densities:
        color = _color(findings, density)
        points = [place(timing.tokens, timing.dense / timing.sparse[density]) for timing in timings if density in timing.sparse]
        _curve(canvas, points, color)
        begins = findings.measured(heads, density)
        if low < begins <= high:
            canvas.dot(*place(begins, 1), 7, color)


def _curve(canvas: Canvas, points: list[tuple[float, float]], color) -> None:
    if len(points) > 1:
        canvas.line(points, color, 3)
    for point in points:
        canvas.dot(*point, 3, color)


def _others(findings: Findings) -> list[str]:
    return list(dict.fromkeys(name for timing in findings.timings for name in timing.others))


def _color(findings: Findings, density: float) -> tuple[int, ...]:
    """Darker where more is exact."""
    densities = findings.densities
    return _shade((densities.index(density) + 1.5) / (len(densities) + 0.5), DENSITY)


def _color_of_other(findings: Findings, name: str) -> tuple[int, ...]:
    others = _others(findings)
    return _shade((others.index(name) + 1.5) / (len(others) + 0.5), ERROR)


def _shade(level: float, ramp) -> tuple[int, ...]:
    return tuple(int(part) for part in shade(level, ramp))
