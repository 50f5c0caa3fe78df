"""What schedules cost and give: clip time against closeness, the presets among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from .schedules import FEW, SHARED, Plan, plans_before

PART = "schedules"
BEFORE, NOW, TRIED = "#b5651d", "#1d4f8c", "#9fb4cf"


@dataclass(frozen=True)
class Point:
    """Means over the clips of one schedule.

    Attributes:
        steps, guidance, setting: which.
        clips: how many.
        time: of the clip over the dense one, dense calls on cuDNN; flash_time: with FlashAttention 2, as ComfyUI has it by itself.
        psnr, ssim, flicker_psnr: against the dense clip.
    """

    steps: int
    guidance: float
    setting: str
    clips: int
    time: float
    flash_time: float
    psnr: float
    ssim: float
    flicker_psnr: float

    @property
    def now(self) -> str | None:
        """The preset that does this."""
        plans = {name: Plan.of_preset(name, self.steps) for name in plans_before(self.steps)}
        # With guidance the node shares clusters.
        if self.guidance != 1 and SHARED not in self.setting:
            return None
        return _name(self.setting.removesuffix(SHARED), plans, self.steps)

    @property
    def before(self) -> str | None:
        """The preset that did this."""
        return _name(self.setting, plans_before(self.steps), self.steps)


def points(rows: Sequence[Mapping[str, object]]) -> list[Point]:
    """One for each schedule of the rows; dense clips are left out."""
    found: dict[tuple, list[Mapping[str, object]]] = {}
    for row in rows:
        if row["part"] == PART and row.get("clip_time") not in (None, ""):
            found.setdefault((int(row["steps"]), float(row["guidance"]), str(row["setting"])), []).append(row)
    columns = ("clip_time", "clip_time_flash", "psnr_db", "ssim", "flicker_psnr_db")
    return [Point(*key, len(group), *(fmean(float(row[column]) for row in group) for column in columns)) for key, group in found.items()]


def table(found: Sequence[Point]) -> str:
    """For a document: a table for each number of steps and guidance, the quickest first."""
    lines = []
    for steps, guidance in dict.fromkeys((point.steps, point.guidance) for point in found):
        here = sorted((p for p in found if (p.steps, p.guidance) == (steps, guidance)), key=lambda point: point.time)
        lines += ["", f"## {steps} steps, guidance {guidance:g}", ""]
        lines += ["| schedule | preset | clips | clip time | with flash | PSNR dB | SSIM | flicker PSNR dB |", "|---|---|" + "---:|" * 6]
        for point in here:
            names = ", ".join([*([point.now] if point.now else []), *([f"{point.before} before"] if point.before else [])])
            figures = f"{point.time:.3f} | {point.flash_time:.3f} | {point.psnr:.2f} | {point.ssim:.4f} | {point.flicker_psnr:.2f}"
            lines.append(f"| {point.setting} | {names} | {point.clips} | {figures} |")
    return "\n".join(lines) + "\n"


def draw(found: Sequence[Point], stem: Path) -> list[Path]:
    """Write ``stem`` with ``.png`` and ``.svg``: a panel for each guidance that presets were measured with. Returns their paths."""
    from .. import plot

    most = max(point.steps for point in found)
    panels = sorted({point.guidance for point in found if point.steps == most and point.now})
    with plot.panels(stem, max(len(panels), 1), 4.6, "front") as (figure, axes):
        for axis, guidance in zip(axes, panels):
            here = [point for point in found if (point.steps, point.guidance) == (most, guidance)]
            # Fewer clips have another mean.
            here = [point for point in here if point.clips == max(other.clips for other in here)]
            _panel(axis, here)
            axis.set_title(f"{most} steps, guidance {guidance:g}, mean of {max(point.clips for point in here)} clips", fontsize=9)
        handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return plot.paths(stem)


def _panel(axis, found: Sequence[Point]) -> None:
    """Presets with their names, what they were before, and what else was tried."""
    tried = [(point.time, point.psnr) for point in found if not point.now]
    if tried:
        axis.scatter(*zip(*tried), color=TRIED, s=14, label="other schedules")
    now = sorted((point.time, point.psnr, point.now) for point in found if point.now)
    before = sorted((point.flash_time, point.psnr, point.before) for point in found if point.before)
    for colour, marker, style, shown, label in ((BEFORE, "s", "--", before, "presets before"), (NOW, "o", "-", now, "presets")):
        if not shown:
            continue
        times, decibels, names = zip(*shown)
        axis.plot(times, decibels, color=colour, marker=marker, linestyle=style, linewidth=1, markersize=6, label=label)
        for time, height, name in shown:
            place = ((-6, 5), "right") if colour == NOW else ((7, -9), "left")
            axis.annotate(name, (time, height), place[0], textcoords="offset points", ha=place[1], color=colour, fontsize=9)
    axis.margins(x=0.2, y=0.08)
    axis.set_xlabel("time of a Wan 14B clip at 720p over the dense one's")
    axis.set_ylabel("PSNR against the dense clip, dB")
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def _name(setting: str, plans: Mapping[str, Plan], steps: int) -> str | None:
    """The preset of those for models of ``steps`` steps whose plan is called ``setting``."""
    usual = [name for name in plans if (name == "few-step") == (steps <= FEW)]
    return next((name for name in usual if str(plans[name]) == setting), None)
