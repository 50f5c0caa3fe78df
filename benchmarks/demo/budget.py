"""The time that the demo keeps to: measured while it runs, spent on the largest clip that fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .clips import Scale

# Time of a step beside a dense one; clustering takes a larger part on a busy machine, which is found out as steps are measured.
DENSE_STEP, SPARSE_STEP = 1.0, 2.5


class TooSlow(Exception):
    """The clips of a scale would take longer than the budget, and a smaller scale helps.

    Attributes:
        seconds: what the clips that were begun would have taken.
        smaller: the scale to take instead.
    """

    def __init__(self, seconds: float, smaller: Scale):
        super().__init__(f"would take {seconds:.0f} s")
        self.seconds, self.smaller = seconds, smaller


class Budget:
    """Estimates, after each step, when the demo would end.

    Args:
        seconds: from now until all clips are there.
        scales: to choose from, the largest first.
        clock: seconds that pass.
    """

    def __init__(self, seconds: float, scales: Sequence[Scale], clock: Callable[[], float] = time.perf_counter):
        self.scales, self.clock = scales, clock
        self.end = clock() + seconds

    def begin(self, scale: Scale, sparse: Sequence[bool], done: int = 0) -> None:
        """Begin the clips of ``scale``: for each in turn, whether it has sparse steps. The first ``done`` are there already."""
        self.scale = scale
        self.smaller = self.scales[self.scales.index(scale) + 1 :]
        clips = [
            [SPARSE_STEP if is_sparse and step >= scale.dense_steps else DENSE_STEP for step in range(scale.steps)] for is_sparse in sparse
        ]
        self.ahead = sum(clips[done:], [])
        self.all = sum(self.ahead)
        self.cost = scale.cost * self.all / sum(map(sum, clips))
        self.began = self.clock()

    def step(self) -> None:
        """Count a step that is done; raise TooSlow where a smaller scale ends in time, or at least in half of the time."""
        self.ahead.pop(0)
        left, now = sum(self.ahead), self.clock()
        whole = (now - self.began) * self.all / (self.all - left)
        end = self.began + whole
        if end <= self.end or not self.smaller:
            return
        pace = whole / self.cost
        takes = {scale: pace * scale.cost for scale in self.smaller}
        in_time = [scale for scale in self.smaller if now + takes[scale] <= self.end]
        smallest = self.smaller[-1]
        if in_time or 2 * takes[smallest] < end - now:
            raise TooSlow(whole, in_time[0] if in_time else smallest)
