"""Whether what a check found holds: its tiles against the table's at every size, its break-evens against lengths close by."""

from __future__ import annotations

from collections.abc import Callable

from .. import pack

pack.load()
from svg_ear.kernels import tuning  # noqa: E402
from svg_ear.nodes.checking.measure import Measure  # noqa: E402
from svg_ear.nodes.patch.break_even import break_even  # noqa: E402
from svg_ear.nodes.patch.findings import Findings  # noqa: E402
from svg_ear.nodes.patch.lengths import cautious_tokens  # noqa: E402

SLOWER, APART = 1.03, 0.1
TYPICAL = 0.1
# Lengths around a break-even, as shares of it.
AROUND = (0.8, 0.9, 1.0, 1.1, 1.25)
GRAIN = 64
SIZES = ((12, 8192), (12, 16384), (24, 16384), (12, 32768), (24, 32768), (40, 32768), (12, 65536), (40, 75600), (24, 131072))


def verify(measure: Measure, findings: Findings, dense: str, say: Callable[[str], None]) -> int:
    """0 when everything holds, 1 otherwise."""
    held = [*tiles_hold(measure, findings, say), *break_evens_hold(measure, findings, dense, say)]
    say(f"{sum(held)} of {len(held)} hold")
    return 0 if all(held) else 1


def tiles_hold(measure: Measure, findings: Findings, say: Callable[[str], None]) -> list[bool]:
    """For each size whether a call with the tiles that were found takes at most 3 % more than with the table's."""
    device, held = measure.device, []
    tables = {"attend": tuning.attend_choices(device)[0], "probe": tuning.probe_choices(device)[0]}
    for name, table in tables.items():
        say(f"tiles of {name}: found {getattr(findings, name)}, in the table {table}")
    if (findings.attend, findings.probe) == tuple(tables.values()):
        say("ok     the tiles found are those of the table")
        return [True]
    for heads, tokens in SIZES:
        times = {"found": [], "table": []}
        for _ in range(2):
            for name, tiles in (("found", (findings.attend, findings.probe)), ("table", ())):
                tuning.use(device, *tiles)
                times[name].append(measure.times(heads, tokens, [TYPICAL], lambda method: None)[TYPICAL])
        ratio = min(times["found"]) / min(times["table"])
        held.append(ratio <= SLOWER)
        say(f"{'ok    ' if held[-1] else 'MISSED'} {heads} heads, {tokens:,} tokens: {ratio:.3f} of the table's time (at most {SLOWER})")
    tuning.use(device, findings.attend, findings.probe)
    return held


def break_evens_hold(measure: Measure, findings: Findings, dense: str, say: Callable[[str], None]) -> list[bool]:
    """For each number of heads and density whether ``min_tokens`` is within a tenth of the break-even among lengths around it."""
    held = []
    for heads in findings.heads:
        shortest = min(timing.tokens for timing in findings.timings if timing.heads == heads)
        for density in findings.densities:
            automatic = findings.least_tokens(heads, density, cautious_tokens(measure.device))
            points = []
            for share in AROUND:
                tokens = round(automatic * share / GRAIN) * GRAIN
                times = measure.times(heads, tokens, [dense, density], lambda method: None)
                points.append((tokens, times[dense], times[density]))
            measured = break_even(points)
            # Where sparse was the faster one at the shortest length already, that length is the answer.
            always = automatic <= shortest and measured <= automatic * (1 + APART)
            held.append(always or (measured > points[0][0] and abs(automatic / measured - 1) <= APART))
            curve = ", ".join(f"{tokens:,}: {dense_ms / sparse_ms:.2f}x" for tokens, dense_ms, sparse_ms in points)
            mark = "ok    " if held[-1] else "MISSED"
            say(f"{mark} {heads} heads, {density:.0%}: min_tokens {automatic:,}, measured {measured:,.0f} ({curve})")
    return held
