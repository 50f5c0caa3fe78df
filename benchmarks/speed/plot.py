"""The picture of a speed CSV: speed-up by model, and time by length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import plot
from .bars import DRAWN, FULL, INT8, Row, number, precision_of
from .inputs import MODELS, SWEEP
from .methods import BASELINE, FLASH, KITCHEN_INT8, OURS, sol_name

MODEL_LABELS = {
    "wan-720p": "Wan 14B 720p\n75,600 tokens",
    "hunyuan-720p": "HunyuanVideo 720p\n118,800 + 256",
    "wan-480p": "Wan 14B 480p\n32,760",
    "wan-5b-720p": "Wan 5B 720p\n27,280",
}
# Method, density, precision, label and colour of what is drawn; the others have the precision that their names say.
SERIES = (
    (FLASH, None, FULL, "SDPA flash, dense", "#c7c7c7"),
    (KITCHEN_INT8, None, FULL, "comfy_kitchen int8, dense", "#9a9a9a"),
    (sol_name(1.3), None, FULL, "sol_attn tau 1.3, aug 256", "#e0a458"),
    (OURS, 0.2, FULL, "SVG-EAR, 20 % exact", "#a9c9ea"),
    (OURS, 0.1, FULL, "SVG-EAR, 10 % exact", "#4a90d9"),
    (OURS, 0.1, INT8, "SVG-EAR, 10 % exact, int8", "#2f9e8f"),
    (OURS, 0.05, FULL, "SVG-EAR, 5 % exact", "#1d4f8c"),
)


def draw(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Write ``stem`` with ``.png`` and ``.svg``; returns their paths. Draws the structured data; what is absent is left out.

    Raises ValueError without any row to draw.
    """
    rows = [row for row in rows if row["part"] == "attention" and row["data"] == DRAWN and number(row, "ms")]
    models = [shape for shape in MODELS if any(row["shape"] == shape.name for row in rows)]
    lengths = [shape for shape in SWEEP if any(row["shape"] == shape.name for row in rows)]
    panels = [(_speedups, models), (_times, lengths)]
    panels = [(panel, shapes) for panel, shapes in panels if shapes]
    if not panels:
        raise ValueError("no row of a whole call on structured data: run the bench first, or name the folder of its results")
    with plot.panels(stem, len(panels), 6.2, "speed") as (figure, axes):
        for axis, (panel, shapes) in zip(axes, panels):
            panel(axis, rows, [shape.name for shape in shapes])
        figure.suptitle(f"{rows[0]['hardware']}, bfloat16, torch {rows[0]['torch']}", fontsize=9)
    return plot.paths(stem)


def _speedups(axis, rows: Sequence[Row], shapes: list[str]) -> None:
    drawn = []
    for *which, label, colour in SERIES:
        found = [(position, _figure(rows, shape, *which, "speedup")) for position, shape in enumerate(shapes)]
        if found := [(position, value) for position, value in found if value]:
            drawn.append((found, label, colour))
    width = 0.8 / max(len(drawn), 1)
    for place, (found, label, colour) in enumerate(drawn):
        offset = (place - (len(drawn) - 1) / 2) * width
        bars = axis.bar([position + offset for position, _ in found], [value for _, value in found], width, label=label, color=colour)
        axis.bar_label(bars, fmt="%.1f", fontsize=6, padding=1)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(shapes)), [MODEL_LABELS[shape] for shape in shapes])
    axis.set_ylabel("speed-up of an attention call over cuDNN SDPA")
    _finish(axis)


def _times(axis, rows: Sequence[Row], shapes: list[str]) -> None:
    for *which, label, colour in ((BASELINE, None, FULL, "SDPA cuDNN, dense", "black"), *SERIES):
        found = [(shape, _figure(rows, shape, *which, "ms")) for shape in shapes]
        points = [(_tokens(rows, shape), value) for shape, value in found if value]
        if points:
            axis.plot(*zip(*points), marker="o", markersize=3, label=label, color=colour)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks([_tokens(rows, shape) for shape in shapes], shapes)
    axis.set_xlabel("tokens (12 heads)")
    axis.set_ylabel("milliseconds of an attention call")
    _finish(axis)


def _finish(axis) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def _tokens(rows: Sequence[Row], shape: str) -> float:
    return next(number(row, "tokens") for row in rows if row["shape"] == shape)


def _figure(rows: Sequence[Row], shape: str, method: str, density: float | None, precision: str, column: str) -> float | None:
    """The value of one series at one shape, None where it was not measured."""
    which = (shape, method, density, precision)
    found = [row for row in rows if (row["shape"], row["method"], number(row, "density"), precision_of(row)) == which]
    return number(found[0], column) if found else None
