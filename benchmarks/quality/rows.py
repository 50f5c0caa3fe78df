"""What the rows of a quality CSV say together: means over clips, and the bars that they are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from .methods import CORE_AUG, CORE_TAU, IN_INT8, OUR_KMEANS, OURS, PRESET, PUBLISHED, SOL

KEY = ("part", "grid", "steps", "guidance", "method", "setting")
# dB that ours has to be above the published routing at the same effective density, and above sol_attn with ComfyUI's defaults.
ABOVE_PUBLISHED, ABOVE_SOL = 4.0, 10.0
# dB that presets may lose in int8, in the mean.
LOST_IN_INT8 = 0.2
# Settings count as of one effective density within this.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Summary:
    """Means over the clips of one method and setting; None where nothing was compared."""

    part: str
    grid: str
    steps: int
    guidance: float
    method: str
    setting: str
    hardware: str
    clips: int
    exact_share: float
    effective_density: float
    attention_cost: float
    psnr: float | None
    ssim: float | None
    gradient_deviation: float | None
    flicker_psnr: float | None
    attention_error: float | None
    attention_seconds: float

    @property
    def label(self) -> str:
        """Method and setting."""
        return f"{self.method}, {self.setting}" if self.setting else self.method

    def __str__(self):
        if self.psnr is None:
            distances = f"{'-':>7}{'-':>8}{'-':>8}{'-':>9}{'-':>8}"
        else:
            distances = f"{self.psnr:7.2f}{self.ssim:8.4f}{self.gradient_deviation:8.4f}{self.flicker_psnr:9.2f}{self.attention_error:8.4f}"
        costs = f"{self.exact_share:7.3f}{self.effective_density:8.3f}{self.attention_cost:7.3f}"
        return f"{self.label:<84}{costs}{distances}{self.attention_seconds:9.2f}"


@dataclass(frozen=True)
class Bar:
    """A figure and the bound it is held to; ``passed`` is None where something was not measured."""

    what: str
    passed: bool | None
    detail: str

    def __str__(self):
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[self.passed]
        return f"{verdict}: {self.what}; {self.detail}"


def summarize(rows: Sequence[Mapping[str, object]]) -> list[Summary]:
    """One summary for each method and setting, in the order of their first rows."""
    found: dict[tuple, list[Mapping[str, object]]] = {}
    for row in rows:
        found.setdefault(tuple(str(row[name]) for name in KEY), []).append(row)
    return [_summary(group) for group in found.values()]


def table(summaries: Sequence[Summary]) -> str:
    """For the terminal: a block for each part and guidance."""
    header = f"{'method':<84}{'exact':>7}{'effect.':>8}{'cost':>7}{'PSNR':>7}{'SSIM':>8}{'edges':>8}{'flicker':>9}{'error':>8}{'attn s':>9}"
    lines = []
    for part, grid, steps, guidance in dict.fromkeys(map(_panel, summaries)):
        shown = [summary for summary in summaries if _panel(summary) == (part, grid, steps, guidance)]
        lines += ["", f"{part}: {grid} tokens, {steps} steps, guidance {guidance:g}, mean of {shown[0].clips} clips", header]
        lines += [str(summary) for summary in shown]
    return "\n".join(lines)


def markdown(rows: Sequence[Mapping[str, object]], summaries: Sequence[Summary], verdicts: Sequence[Bar]) -> str:
    """The same for a document, with what it was measured on and the bars."""
    lines = [origin_of(rows)]
    for part, grid, steps, guidance in dict.fromkeys(map(_panel, summaries)):
        shown = [summary for summary in summaries if _panel(summary) == (part, grid, steps, guidance)]
        lines += ["", f"## {part.capitalize()}: {steps} steps, guidance {guidance:g}, {grid} tokens, mean of {shown[0].clips} clips", ""]
        lines += ["| method | exact share | effective density | attention cost | PSNR dB | SSIM | gradient deviation | flicker PSNR dB |"]
        lines[-1] += " error of attention | attention s |"
        lines += ["|---|" + "---:|" * 9]
        for summary in shown:
            costs = (summary.exact_share, summary.effective_density, summary.attention_cost)
            distances = (summary.psnr, summary.ssim, summary.gradient_deviation, summary.flicker_psnr, summary.attention_error)
            cells = [f"{cost:.3f}" for cost in costs]
            cells += ["-" if value is None else f"{value:{form}}" for value, form in zip(distances, (".2f", ".4f", ".4f", ".2f", ".4f"))]
            lines.append(f"| {summary.label} | {' | '.join(cells)} | {summary.attention_seconds:.2f} |")
    return "\n".join([*lines, "", *(f"- {bar}" for bar in verdicts), ""])


def origin_of(rows: Sequence[Mapping[str, object]]) -> str:
    """Which clips, and what they were measured on."""
    seeds, commits = (", ".join(dict.fromkeys(str(row[name]) for row in rows)) for name in ("seed", "commit"))
    return f"Clips {seeds} on {rows[0]['hardware']}, torch {rows[0]['torch']}, triton {rows[0]['triton']}, commit {commits}."


def bars(summaries: Sequence[Summary]) -> list[Bar]:
    """Ours against the published routing and against sol_attn, for each guidance; presets in int8 against those in full precision."""
    found = []
    standard = [summary for summary in summaries if summary.part == "standard" and summary.psnr is not None]
    for guidance in dict.fromkeys(summary.guidance for summary in standard):
        here = [summary for summary in standard if summary.guidance == guidance]
        for name, best in (("published", _best(here, PUBLISHED, 0.13)), ("published routing of our clusters", _near(here, 0.13))):
            what = f"guidance {guidance:g}: ours at {{}} above {name} at 0.13"
            found.append(_above(what.format("0.13"), _best(here, OURS, 0.13), best, ABOVE_PUBLISHED))
            found.append(_above(what.format("0.10"), _best(here, OURS, 0.10), best, 0.0))
        sol = next(
            (summary for summary in here if (summary.method, summary.setting) == (SOL, f"tau {CORE_TAU}, token_aug {CORE_AUG}")), None
        )
        cheaper = [summary for summary in _defaults(here) if sol and summary.exact_share <= sol.exact_share]
        ours = max(cheaper, key=lambda summary: summary.psnr, default=None)
        found.append(_above(f"guidance {guidance:g}: ours above sol_attn for no more exact share", ours, sol, ABOVE_SOL))
    return found + _few_step(summaries) + _in_int8(summaries)


def _panel(summary: Summary) -> tuple[str, str, int, float]:
    return summary.part, summary.grid, summary.steps, summary.guidance


def _few_step(summaries: Sequence[Summary]) -> list[Bar]:
    few = [summary for summary in summaries if summary.part == "few-step" and summary.psnr is not None]
    ours = next((summary for summary in few if summary.method == OURS and summary.setting.startswith("preset")), None)
    published = [summary for summary in few if summary.method == PUBLISHED]
    dearer = [summary for summary in published if ours and summary.attention_cost > ours.attention_cost]
    if not few:
        return []
    what = "few-step, nothing dense, above published after 2 dense steps that costs more"
    return [_above(what, ours, max(dearer, key=lambda summary: summary.psnr, default=None), 0.0)]


def _in_int8(summaries: Sequence[Summary]) -> list[Bar]:
    """What presets lose in int8, those of each part and guidance together, and all."""
    losses: dict[str, list[float]] = {}
    named = {(*_panel(summary), summary.setting): summary for summary in summaries if summary.psnr is not None and summary.method == OURS}
    for (*panel, setting), full in named.items():
        int8 = named.get((*panel, setting + IN_INT8))
        # Means over other clips say nothing.
        if setting.startswith(PRESET) and int8 is not None and int8.clips == full.clips:
            losses.setdefault(f"{panel[0]}, guidance {panel[3]:g}", []).append(full.psnr - int8.psnr)
    if losses:
        losses["all"] = [loss for some in losses.values() for loss in some]
    what = "presets lose at most {} dB in int8, in the mean"
    return [
        Bar(
            f"{where}: {what.format(LOST_IN_INT8)}",
            fmean(lost) <= LOST_IN_INT8,
            f"{fmean(lost):.3f} of {', '.join(f'{x:.2f}' for x in lost)}",
        )
        for where, lost in losses.items()
    ]


def _best(summaries: Sequence[Summary], method: str, density: float) -> Summary | None:
    known = _defaults(summaries) if method == OURS else [s for s in summaries if s.method == method and OUR_KMEANS not in s.setting]
    near = [s for s in known if abs(s.effective_density - density) < TOLERANCE and "top-p" not in s.setting]
    return max(near, key=lambda summary: summary.psnr, default=None)


def _near(summaries: Sequence[Summary], density: float) -> Summary | None:
    """The published routing with our k-means."""
    found = (s for s in summaries if s.method == PUBLISHED and OUR_KMEANS in s.setting and abs(s.effective_density - density) < TOLERANCE)
    return next(found, None)


def _defaults(summaries: Sequence[Summary]) -> list[Summary]:
    """Ours with the automatic counts, in full precision."""
    ours = (summary for summary in summaries if summary.method == OURS)
    return [summary for summary in ours if "queries a group" not in summary.setting and not summary.setting.endswith(IN_INT8)]


def _above(what: str, ours: Summary | None, other: Summary | None, margin: float) -> Bar:
    if ours is None or other is None:
        return Bar(what, None, "one of the two is missing")
    detail = f"{ours.psnr:.2f} dB ({ours.setting}) against {other.psnr:.2f} dB ({other.setting}), {margin:g} dB asked"
    return Bar(what, ours.psnr >= other.psnr + margin, detail)


def _summary(rows: Sequence[Mapping[str, object]]) -> Summary:
    first = rows[0]

    def mean(column: str) -> float | None:
        values = [float(row[column]) for row in rows if row.get(column) not in (None, "")]
        return fmean(values) if values else None

    return Summary(
        part=str(first["part"]),
        grid=str(first["grid"]),
        steps=int(first["steps"]),
        guidance=float(first["guidance"]),
        method=str(first["method"]),
        setting=str(first["setting"]),
        hardware=str(first["hardware"]),
        clips=len(rows),
        psnr=mean("psnr_db"),
        ssim=mean("ssim"),
        gradient_deviation=mean("gradient_deviation"),
        flicker_psnr=mean("flicker_psnr_db"),
        **{name: mean(name) for name in ("exact_share", "effective_density", "attention_cost", "attention_error", "attention_seconds")},
    )
