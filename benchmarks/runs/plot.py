"""The picture of the rows: what a clip takes, by model and method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import plot
from .rows import CLIP_STEPS, Row
from .spec import DENSE, SOL
from .table import title

# Methods in the order of the bars, how they are called, and their colour; what the rows lack is left out.
SERIES = {
    DENSE: ("dense", "#9a9a9a"),
    "dense-cudnn": ("dense, cuDNN", "#9a9a9a"),
    "dense-int8": ("dense, int8", "#9a9a9a"),
    SOL: ("sol_attn", "#e0a458"),
    "quality": ("quality", "#4a90d9"),
    "balanced": ("balanced", "#4a90d9"),
    "fast": ("fast", "#4a90d9"),
    "few-step": ("few-step", "#4a90d9"),
}
DENSE_STEPS = "#d5d5d5"
WIDTH = 3.2


def draw(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Write ``stem`` with ``.png`` and ``.svg``; returns their paths. A panel for each clip, bars split in dense and sparse steps.

    Raises ValueError without any row of a whole clip.
    """
    rows = [row for row in rows if row.get("clip_s") and row["method"] in SERIES]
    clips = list(dict.fromkeys(map(title, rows)))
    if not clips:
        raise ValueError("no row has a whole clip: run the bench first, or name the file of its results")
    with plot.panels(stem, len(clips), WIDTH, "runs") as (figure, axes):
        for axis, clip in zip(axes, clips):
            _bars(axis, [row for row in rows if title(row) == clip])
            axis.set_title(clip, fontsize=9)
        axes[0].set_ylabel(f"seconds for {CLIP_STEPS} steps; grey: dense steps")
        figure.suptitle(f"{rows[0]['hardware']}, torch {rows[0]['torch']}, ComfyUI {rows[0]['comfyui']}, random weights", fontsize=9)
    return plot.paths(stem)


def _bars(axis, rows: Sequence[Row]) -> None:
    found = {row["method"]: row for row in rows}
    shown = [(found[method], label, colour) for method, (label, colour) in SERIES.items() if method in found]
    dense = [float(row["clip_dense_s"]) for row, _, _ in shown]
    sparse = [float(row["clip_sparse_s"]) for row, _, _ in shown]
    places = range(len(shown))
    axis.bar(places, dense, color=[colour if not seconds else DENSE_STEPS for (_, _, colour), seconds in zip(shown, sparse)])
    tops = axis.bar(places, sparse, bottom=dense, color=[colour for _, _, colour in shown])
    axis.bar_label(tops, [f"{low + high:.3g}" for low, high in zip(dense, sparse)], fontsize=8, padding=1)
    axis.set_xticks(places, [label for _, label, _ in shown], rotation=40, ha="right")
    axis.spines[["top", "right"]].set_visible(False)
