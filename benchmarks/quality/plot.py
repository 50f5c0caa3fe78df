"""The picture of a quality CSV: PSNR over effective density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import plot
from .methods import MORTON, OURS, PUBLISHED, RASTER, SOL, SVG2, SVG2_COMPENSATED
from .rows import Summary

# Method, colour and marker, in the order of the legend.
SERIES = {
    OURS: ("#1d4f8c", "o"),
    PUBLISHED: ("#4a90d9", "s"),
    SVG2_COMPENSATED: ("#7fb77e", "^"),
    SVG2: ("#9a9a9a", "v"),
    SOL: ("#e0a458", "D"),
    MORTON: ("#b5651d", "P"),
    RASTER: ("#d9b38c", "X"),
    "calibrated": ("#8e6bbf", "v"),
    "calibrated, compensated": ("#8e6bbf", "^"),
}
PARTS = {"standard": "dense first steps", "few-step": "few steps", "warm-up": "fewer dense first steps"}


def draw(summaries: Sequence[Summary], stem: Path) -> list[Path]:
    """Write ``stem`` with ``.png`` and ``.svg``: a panel for each part and guidance. Returns their paths.

    Raises ValueError without any row to draw.
    """
    summaries = [summary for summary in summaries if summary.psnr is not None]
    panels = list(dict.fromkeys((summary.part, summary.steps, summary.guidance) for summary in summaries))
    if not panels:
        raise ValueError("no row compares a clip with a dense one: run the bench first, or name the file of its results")
    with plot.panels(stem, len(panels), 5.2, "quality") as (figure, axes):
        for axis, panel in zip(axes, panels):
            shown = [summary for summary in summaries if (summary.part, summary.steps, summary.guidance) == panel]
            _points(axis, shown)
            part, steps, guidance = panel
            axis.set_title(f"{steps} steps, guidance {guidance:g}, {PARTS.get(part, part)}", fontsize=9)
        handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(SERIES), frameon=False, fontsize=8)
        figure.suptitle(f"{summaries[0].hardware}, {summaries[0].grid} tokens, mean of {summaries[0].clips} clips", fontsize=9)
    return plot.paths(stem)


def _points(axis, summaries: Sequence[Summary]) -> None:
    """All settings of each method, and a line along those that nothing of the same method beats."""
    for name, (colour, marker) in SERIES.items():
        points = sorted((summary.attention_cost, summary.psnr) for summary in summaries if summary.method == name)
        if not points:
            continue
        axis.scatter(*zip(*points), color=colour, marker=marker, s=22, label=name)
        front = [point for place, point in enumerate(points) if point[1] > max((other[1] for other in points[:place]), default=-1)]
        axis.plot(*zip(*front), color=colour, linewidth=0.8)
    axis.set_xlabel("multiply-adds of attention over those of the dense clip")
    axis.set_ylabel("PSNR against the dense clip, dB")
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
