"""What a check found, in words."""

from __future__ import annotations

import math

from ...kernels.tuning import Tiles
from ..patch.findings import Findings
from .check import Checked, called

# Heads, what has them, and how many tokens it has.
CLIPS = (
    (12, "Wan 2.1 1.3B at 832 x 480 and 81 frames", 32760),
    (24, "Wan 2.2 5B at 1280 x 704 and 121 frames", 27280),
    (24, "HunyuanVideo at 1280 x 720 and 129 frames", 118800),
    (40, "Wan 14B at 832 x 480 and 81 frames", 32760),
    (40, "Wan 14B at 1280 x 720 and 81 frames", 75600),
)
TYPICAL = 0.1


def status(findings: Findings) -> str:
    """The check in one line, for the node."""
    if not findings.heads or TYPICAL not in findings.densities:
        return "Nothing could be compared"
    heads = findings.heads[-1]
    return f"{called(TYPICAL)} {_beats(findings, heads, TYPICAL)}"


def report(checked: Checked, commit: str = "") -> str:
    """The check in full, to be read and to be pasted; ``commit`` says which state of the pack was measured."""
    findings = checked.findings
    lines = [f"SVG-EAR GPU Check: {findings.card}" + (f", commit {commit}" if commit else "")]
    lines += ["", *_sentences(findings)]
    if findings.heads:
        lines += ["", "Break-even: tokens from which on sparse beats dense", *_break_evens(findings)]
        lines += ["", "Milliseconds of a call; x is the speed-up over dense as it is set", *_times(findings)]
    lines += ["", f"Tiles of attend: {_tiles(findings.attend)}", f"Tiles of probe: {_tiles(findings.probe and (findings.probe,))}"]
    if checked.left_out:
        lines += ["", "Left out:", *(f"  {sentence}" for sentence in checked.left_out)]
    return "\n".join(lines)


def _sentences(findings: Findings) -> list[str]:
    lines = []
    for heads in findings.heads:
        if TYPICAL in findings.densities:
            clips = "; ".join(f"{name} has {tokens:,}" for count, name, tokens in CLIPS if count == heads)
            lines.append(f"{called(TYPICAL)} {_beats(findings, heads, TYPICAL)}." + (f" {clips}." if clips else ""))
    longest = max(findings.timings, key=lambda timing: (bool(timing.others), timing.tokens), default=None)
    if longest is not None and longest.others:
        name, least = min(longest.others.items(), key=lambda item: item[1])
        if least < longest.dense:
            lines.append(
                f"{name} is {longest.dense / least:.1f}x as fast as the dense attention that is set ({longest.heads} heads, "
                f"{longest.tokens:,} tokens). To use it, set it in ComfyUI and run this check again."
            )
    return lines or ["Nothing could be compared, see below."]


def _beats(findings: Findings, heads: int, density: float) -> str:
    found, lengths = findings.measured(heads, density), [timing.tokens for timing in findings.timings if timing.heads == heads]
    if math.isinf(found):
        return f"was slower than dense at {heads} heads up to {max(lengths):,} tokens"
    if found <= min(lengths):
        return f"beat dense at {heads} heads at every length from {min(lengths):,} tokens on"
    return f"beats dense from {_rounded(found)} tokens on at {heads} heads"


def _break_evens(findings: Findings) -> list[str]:
    rows = [["heads", *(called(density) for density in findings.densities)]]
    for heads in findings.heads:
        shortest = min(timing.tokens for timing in findings.timings if timing.heads == heads)
        cells = []
        for density in findings.densities:
            found = findings.measured(heads, density)
            text = f"over {findings.longest(heads):,}" if math.isinf(found) else _rounded(found)
            cells.append(f"{shortest:,} or less" if found <= shortest else text)
        rows.append([str(heads), *cells])
    return _table(rows)


def _times(findings: Findings) -> list[str]:
    others = list(dict.fromkeys(name for timing in findings.timings for name in timing.others))
    rows = [["heads", "tokens", findings.card.dense, *others, *(called(density) for density in findings.densities)]]
    for timing in sorted(findings.timings, key=lambda timing: (timing.heads, timing.tokens)):
        times = [timing.others.get(name) for name in others] + [timing.sparse.get(density) for density in findings.densities]
        cells = ["-" if time is None else f"{_milliseconds(time)} ({timing.dense / time:.2f}x)" for time in times]
        rows.append([str(timing.heads), f"{timing.tokens:,}", _milliseconds(timing.dense), *cells])
    return _table(rows)


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def _milliseconds(time: float) -> str:
    return f"{time:.2f}" if time < 10 else f"{time:.1f}" if time < 100 else f"{time:,.0f}"


def _rounded(tokens: float) -> str:
    return f"{round(tokens, -2):,.0f}"


def _tiles(shapes: tuple[Tiles, ...] | None) -> str:
    if shapes is None:
        return "those of the table, no others were tried"
    return " and ".join(
        f"{tiles.rows} x {tiles.keys}, {tiles.warps} warps, {tiles.stages} stages"
        + (f", {tiles.registers} registers" if tiles.registers else "")
        for tiles in shapes
    )
