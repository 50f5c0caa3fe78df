"""The picture of the rows: what a clip takes, by model and method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.patches import Patch

from .. import plot
from .rows import CLIP_STEPS, Row
from .spec import AGAINST, DENSE, DENSE_CUDNN, DENSE_INT8, SOL
from .table import title

ASKED, IN_INT8 = ":precision=", ", int8"
# What bars show, in their order, how it is called, and its colour; what the rows lack is left out.
SERIES = {
    DENSE: ("dense, as ComfyUI is", "#8a8a8a"),
    DENSE_CUDNN: ("dense, cuDNN", "#a8a8a8"),
    DENSE_INT8: ("dense, comfy_kitchen int8", "#c7c7c7"),
    SOL: ("sol_attn tau 1.3", "#e0a458"),
    f"{AGAINST}balanced": ("balanced, before", "#dba6b6"),
    "quality": ("quality", "#a9c9ea"),
    "balanced": ("balanced", "#4a90d9"),
    f"balanced{IN_INT8}": ("balanced, int8", "#2f9e8f"),
    f"{AGAINST}fast": ("fast, before", "#a8587a"),
    "fast": ("fast", "#1d4f8c"),
    f"fast{IN_INT8}": ("fast, int8", "#176258"),
    "few-step": ("few-step", "#8e6bbf"),
}
INCHES, FEWEST_INCHES = 1.9, 5.5
# Clips in a line; more go into further lines.
MOST_CLIPS = 6
# Of the distance between two clips.
ROOM = 0.9
HATCH = {"hatch": "////", "edgecolor": "white", "linewidth": 0}
LEGEND = {"frameon": False, "fontsize": 7, "loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}


def draw(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Write ``stem`` with ``.png`` and ``.svg``; returns their paths.

    A group of bars for each clip, as shares of what ComfyUI's dense attention takes; the hatched part is dense steps.

    Raises ValueError without any row of a whole clip beside its dense one.
    """
    rows = [row for row in rows if row.get("clip_s") and series(row) in SERIES]
    dense = {title(row): float(row["clip_s"]) for row in rows if row["method"] == DENSE}
    rows = [row for row in rows if title(row) in dense]
    if not rows:
        raise ValueError("no row has a whole clip beside a dense one: run the bench first, or name the file of its results")
    shown = [name for name in SERIES if any(series(row) == name for row in rows)]
    width = ROOM / max(len({series(row) for row in rows if title(row) == clip}) for clip in dense)
    lines = [list(dense)[first : first + MOST_CLIPS] for first in range(0, len(dense), MOST_CLIPS)]
    with plot.panels(stem, len(lines), max(FEWEST_INCHES, INCHES * len(lines[0])), "runs", below=True) as (figure, axes):
        for axis, clips in zip(axes, lines):
            for name in shown:
                found = [row for row in rows if series(row) == name and title(row) in clips]
                if not found:
                    continue
                positions = [clips.index(title(row)) + _place(row, rows, shown) * width for row in found]
                _bars(axis, positions, width, found, [dense[title(row)] for row in found], *SERIES[name])
            axis.set_xticks(range(len(clips)), [_in_lines(clip) for clip in clips])
            axis.set_xlim(-0.5, len(clips) - 0.5)
            axis.set_ylim(0, 1.1)
            axis.set_ylabel(f"time of {CLIP_STEPS} steps over dense; seconds above")
            axis.spines[["top", "right"]].set_visible(False)
        named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
        hatched = Patch(facecolor="#d5d5d5", label="of it dense steps", **HATCH)
        axes[0].legend([*named.values(), hatched], [*named, hatched.get_label()], **LEGEND, ncols=4)
        first = rows[0]
        figure.suptitle(f"{first['hardware']}, torch {first['torch']}, ComfyUI {first['comfyui']}", fontsize=8)
    return plot.paths(stem)


def series(row: Row) -> str:
    """The bar that a row belongs to: its method without the precision that was asked for, and whether sparse calls were in int8."""
    method, _, asked = row["method"].partition(ASKED)
    return method + (IN_INT8 if "int8" in (asked, row.get("precision")) else "")


def _place(row: Row, rows: Sequence[Row], shown: Sequence[str]) -> float:
    """Where the bar of ``row`` stands among those of its clip, in widths of one from their middle."""
    beside = [name for name in shown if any(series(other) == name and title(other) == title(row) for other in rows)]
    return beside.index(series(row)) - (len(beside) - 1) / 2


def _in_lines(clip: str) -> str:
    """The title of a clip on lines of its model, size and guidance."""
    model, _, guidance = clip.partition(", ")
    return "\n".join((*model.rsplit(" ", 1), guidance)).strip()


def _bars(axis, positions: list[float], width: float, rows: Sequence[Row], dense: list[float], label: str, colour: str) -> None:
    """One method's bars: dense steps below, sparse ones above, as shares of the seconds in ``dense``."""
    low, high = ([float(row[column]) / whole for row, whole in zip(rows, dense)] for column in ("clip_dense_s", "clip_sparse_s"))
    axis.bar(positions, low, width, color=colour, **(HATCH if any(high) else {}))
    tops = axis.bar(positions, high, width, bottom=low, color=colour, label=label)
    axis.bar_label(tops, [f"{float(row['clip_s']):.3g}" for row in rows], fontsize=6, padding=1)
