"""One check of a GPU: which tiles suit it, how long calls take, and from which length on sparse ones are the faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import geometric_mean

from ...kernels import tuning
from ..patch.failures import first_line
from ..patch.findings import Card, Findings, Timing
from ..patch.memory import is_out_of_memory
from ..recording.words import counted, duration
from .measure import Measure
from .plan import DENSITIES, Plan, Size, to_refine

# Tiles take the place of the table's when their time is this share of its or less on average, and nowhere more than that one.
FASTER, SLOWER = 0.98, 1.01
KERNELS = {"attend": tuning.attend_choices, "probe": tuning.probe_choices}

Times = Mapping[Hashable, float | Exception]


@dataclass(frozen=True)
class Checked:
    """What a check found, and sentences on what it left out."""

    findings: Findings
    left_out: tuple[str, ...]


class Check:
    """Measures a plan.

    Args:
        card: what is measured.
        measure: measures calls on it.
        plan: what to measure.
        tell: told the share that is done and what comes next; may raise to stop the check.
        earlier: what is known of the card: its tiles are kept where the plan tries none.
    """

    def __init__(self, card: Card, measure: Measure, plan: Plan, tell: Callable[[float, str], None], earlier: Findings | None = None):
        self._measure, self._plan, self._tell = measure, plan, tell
        self._names = list(measure.attentions)
        self._findings = Findings(card, (), earlier and earlier.attend, earlier and earlier.probe)
        self._left_out: dict[str, None] = {}
        self._failed: set[Hashable] = set()
        self._began = time.perf_counter()
        # Refinements are reckoned with one size each; a bar that jumps a little at the end is no harm.
        self._sizes = len(plan.trials) * len(KERNELS) + sum(len(group) + plan.refinements for group in plan.sizes)
        self._done = 0

    def run(self) -> Checked:
        """The whole check. What does not fit, takes too long or fails is said and left out."""
        self._try_tiles()
        tuning.use(self._measure.device, self._findings.attend, self._findings.probe)
        for group in self._plan.sizes:
            for size in group:
                self._guarded(size, partial(self._time, size, self._names))
            for _ in range(self._plan.refinements):
                for size in to_refine(self._findings.timings):
                    self._guarded(size, partial(self._time, size, self._names[:1]))
        self._tell(1.0, "Done")
        return Checked(self._findings, tuple(self._left_out))

    def _try_tiles(self) -> None:
        if not self._plan.trials:
            return
        chosen = {}
        for kernel, choices in KERNELS.items():
            tried: list[Times] = []
            for size in self._plan.trials:
                self._guarded(size, lambda: tried.append(self._trial(kernel, size, choices(self._measure.device))))
            chosen[kernel] = best(tried)
        self._findings = replace(self._findings, **chosen)

    def _trial(self, kernel: str, size: Size, choices: Sequence[Hashable]) -> Times:
        def begin(choice: Hashable) -> None:
            self._say(f"trying tiles of {kernel}", size)

        found = self._measure.trials(kernel, *size, choices, begin)
        for choice, outcome in found.items():
            if isinstance(outcome, Exception):
                self._leave_out(f"{kernel} with {choice}", first_line(outcome))
        return found

    def _time(self, size: Size, names: Sequence[str]) -> None:
        heads, tokens = size
        methods = [method for method in (*names, *DENSITIES) if method not in self._failed]
        found = self._measure.times(heads, tokens, methods, lambda method: self._say(called(method), size))
        for method, outcome in found.items():
            if isinstance(outcome, Exception):
                self._failed.add(method)
                self._leave_out(called(method), first_line(outcome))
        times = {method: outcome for method, outcome in found.items() if not isinstance(outcome, Exception)}
        dense = times.pop(self._names[0], None)
        if dense is None:
            return
        sparse = {method: times.pop(method) for method in DENSITIES if method in times}
        timing = Timing(heads, tokens, dense, sparse, times)
        self._findings = replace(self._findings, timings=(*self._findings.timings, timing))

    def _guarded(self, size: Size, run: Callable[[], object]) -> None:
        """Run what measures one size, unless that asks for too much."""
        reason = self._too_much(size)
        if reason is None:
            try:
                run()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = "out of memory"
        if reason is not None:
            self._leave_out(in_words(size), reason)
        self._done += 1

    def _too_much(self, size: Size) -> str | None:
        """Why a size is not measured, None when it is."""
        if self._names[0] in self._failed:
            return "without dense attention there is nothing to compare with"
        if not self._measure.fits(*size):
            return "not enough free memory"
        if time.perf_counter() - self._began > self._plan.seconds:
            return f"{duration(self._plan.seconds)} are over"
        work = size[0] * size[1] ** 2
        known = [timing.dense * work / (timing.heads * timing.tokens**2) for timing in self._findings.timings[-1:]]
        if known and known[0] > self._plan.longest:
            return f"a dense call would take about {duration(known[0] / 1000)}"
        return None

    def _say(self, what: str, size: Size) -> None:
        self._tell(min(self._done / self._sizes, 1.0), f"{what}, {in_words(size)}")

    def _leave_out(self, what: str, reason: str) -> None:
        self._left_out[f"{what}: {reason}"] = None


def best(tried: Sequence[Times]) -> Hashable | None:
    """The choice to take, from the times of each at some sizes, that of the table first; None keeps the table's.

    One that failed anywhere is no choice, and it takes more than chance to be better than the table's.
    """
    if not tried:
        return None
    working = [choice for choice in tried[0] if all(isinstance(times.get(choice), float) for times in tried)]
    table = next(iter(tried[0]))
    if table not in working:
        return min(working, key=lambda choice: geometric_mean(times[choice] for times in tried), default=None)
    ratios = {choice: [times[choice] / times[table] for times in tried] for choice in working}
    found = min(working, key=lambda choice: geometric_mean(ratios[choice]))
    return found if geometric_mean(ratios[found]) <= FASTER and max(ratios[found]) <= SLOWER else table


def called(method: str | float) -> str:
    """What texts call a method: dense attention by its name, sparse calls by their density."""
    return f"{method:.0%} exact" if isinstance(method, float) else method


def in_words(size: Size) -> str:
    """A size in words."""
    return f"{counted(size[0], 'head')}, {counted(size[1], 'token')}"
