"""How long the calls of a run took, with what happens only once kept apart."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from ...kernels import StageTimer


@dataclass(frozen=True)
class RunTimes:
    """Seconds, over all devices. What cannot be told is None.

    Attributes:
        stages: of the sparse calls by stage, first calls left out.
        sparse: of all sparse calls, as if the first of each kind had been like the others.
        once: what happens but once: waiting for kernels that are compiled, and what the first calls took more than the others.
        dense: what dense attention would have taken in their place, from the dense calls of the same shape that were timed.
        dense_steps: of the evaluations of the model in the dense steps, on the device where they took longest.
        devices: how many worked at the same time.
    """

    stages: dict[str, float] = field(default_factory=dict)
    sparse: float | None = None
    once: float = 0.0
    dense: float | None = None
    dense_steps: float | None = None
    devices: int = 1

    @property
    def speed_up(self) -> float | None:
        """How many times faster a sparse call was than a dense one of the same shape."""
        return self.dense / self.sparse if self.dense and self.sparse else None

    @property
    def saved(self) -> float | None:
        """What the run took less than a dense one would have, first calls counted; below 0 where it took more."""
        return None if self.dense is None or self.sparse is None else (self.dense - self.sparse - self.once) / self.devices


class RunTimer:
    """Times the calls of a run. Safe for one thread per device."""

    def __init__(self):
        self._sparse = _Kinds()
        self._dense = _Kinds()
        self._steps: dict[torch.device, StageTimer] = {}
        self._waited = 0.0
        self._lock = threading.Lock()

    def sparse(self, device: torch.device, shape: Hashable, kind: Hashable) -> StageTimer:
        """The timer of a sparse call; counts it. Calls of one ``shape`` and ``kind`` run the same kernels."""
        return self._sparse.timer(device, shape, kind)

    def dense(self, device: torch.device, shape: Hashable) -> StageTimer:
        """The timer of a dense call that could have run sparse; counts it."""
        return self._dense.timer(device, shape, None)

    def dense_step(self, device: torch.device) -> StageTimer:
        """The timer of an evaluation of the model in a dense step."""
        with self._lock:
            return self._steps.setdefault(device, StageTimer())

    def wait_for_kernels(self, seconds: float) -> None:
        """Count time in which nothing ran because kernels were being compiled."""
        with self._lock:
            self._waited += seconds

    def finish(self) -> RunTimes:
        """All times; waits for the devices."""
        steps = [sum(timer.seconds().values()) for timer in self._steps.values()]
        stages, usual, once = self._sparse.finish()
        of_dense = self._dense.finish()[1]
        # A call of a shape that never ran dense cannot be compared.
        dense = (
            sum(count * of_dense[place][1] for place, (count, _) in usual.items()) if usual and usual.keys() <= of_dense.keys() else None
        )
        return RunTimes(
            stages=stages,
            sparse=sum(count * seconds for count, seconds in usual.values()) if usual else None,
            once=once + self._waited,
            dense=dense,
            dense_steps=max(steps, default=None),
            devices=len({device for device, _ in usual}) or 1,
        )


class _Kinds:
    """Timers by device, shape and kind; the first call of each has one of its own."""

    def __init__(self):
        self._timers: dict[Hashable, tuple[StageTimer, StageTimer]] = defaultdict(lambda: (StageTimer(), StageTimer()))
        self._calls: Counter = Counter()
        self._lock = threading.Lock()

    def timer(self, device: torch.device, shape: Hashable, kind: Hashable) -> StageTimer:
        with self._lock:
            key = (device, shape, kind)
            self._calls[key] += 1
            return self._timers[key][self._calls[key] > 1]

    def finish(self) -> tuple[dict[str, float], dict[Hashable, tuple[int, float]], float]:
        """Seconds by stage, by (device, shape) the number of calls and the mean seconds of one, and the excess of first calls."""
        stages: Counter = Counter()
        counts, seconds, once = Counter(), Counter(), 0.0
        for (device, shape, kind), (first, others) in self._timers.items():
            calls = self._calls[device, shape, kind]
            # Where there was one call only, nothing tells what of it happens but once.
            found = others.seconds() if calls > 1 else first.seconds()
            stages.update(found)
            mean = sum(found.values()) / max(calls - 1, 1)
            once += max(sum(first.seconds().values()) - mean, 0.0) if calls > 1 else 0.0
            counts[device, shape] += calls
            seconds[device, shape] += calls * mean
        return dict(stages), {place: (count, seconds[place] / count) for place, count in counts.items()}, once
