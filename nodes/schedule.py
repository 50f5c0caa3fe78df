"""Which steps and layers stay dense."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .reasons import LAST_STEPS, OUTSIDE_WINDOW, UNKNOWN_STEP, WARM_UP_STEP, Reason

if TYPE_CHECKING:
    from .options import Options

# Samplers recompute sigmas through logarithms; steps are much further apart than this share.
ROUNDING = 1e-5


@dataclass(frozen=True)
class BlockSelection:
    """Layers by number, inclusive ranges; negative numbers count from the last layer (-1)."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> BlockSelection:
        """Read text such as ``0, 1, 38-39`` or ``-2--1``; empty text selects nothing.

        Raises ValueError naming the part that was not understood.
        """
        ranges = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = re.fullmatch(r"(-?\d+)(?:\s*-\s*(-?\d+))?", part)
            span = (int(match[1]), int(match[2] or match[1])) if match else None
            # A range from a positive to a negative number can only be judged when the number of layers is known.
            if span is None or (span[0] > span[1] and (span[0] < 0) == (span[1] < 0)):
                raise ValueError(
                    f"dense_blocks has {part!r}; write layer numbers and rising ranges separated by commas, "
                    "such as 0, 1, 38-39, where -1 is the last layer, or leave it empty"
                )
            ranges.append(span)
        return cls(tuple(ranges))

    def selects(self, layer: int, layers: int) -> bool:
        """Whether layer number ``layer`` of ``layers`` is meant."""

        def position(number):
            return number + layers if number < 0 else number

        return any(position(first) <= layer <= position(last) for first, last in self.ranges)


class Schedule:
    """The dense steps of one sampler call.

    Steps are found from sigma: second-order samplers evaluate between the steps of the schedule, or twice, and caches
    skip evaluations. A sigma between two steps belongs to the earlier one.

    Dense steps count from the start of the whole denoising, of which a sampler may do a part: the second expert of
    Wan 2.2, or a video redrawn from less than full noise. Where its part lies is read from its first and last sigma
    through the model's percent scale, and the steps before and after are estimated at its own step width. So a second
    expert that starts half-way has its warm-up behind it.
    """

    def __init__(self, sigmas: list[float] | None, percent_to_sigma: Callable[[float], float], options: Options):
        self._sigmas = sigmas or []
        self._is_known = len(self._sigmas) > 1 and all(a >= b for a, b in zip(self._sigmas, self._sigmas[1:]))
        self.steps = max(len(self._sigmas) - 1, 0)
        self._start = float(percent_to_sigma(options.start_percent)) if options.start_percent > 0 else None
        self._end = float(percent_to_sigma(options.end_percent)) if options.end_percent < 1 else None

        self._warm_up = options.warm_up_steps(self.steps)
        self._tail = options.dense_last_steps
        if self._is_known:
            first, last = (_percent(sigma, percent_to_sigma) for sigma in (self._sigmas[0], self._sigmas[-1]))
            steps_per_percent = self.steps / max(last - first, 1e-6)
            self._warm_up -= round(first * steps_per_percent)
            self._tail -= round((1 - last) * steps_per_percent)

    def dense_reason(self, sigma: float | None) -> Reason | None:
        """Why an evaluation at ``sigma`` stays dense, or None when it may run sparse."""
        if sigma is None or not self._is_known:
            needs_step = self._warm_up > 0 or self._tail > 0 or self._start is not None or self._end is not None
            return UNKNOWN_STEP if needs_step else None
        if self._start is not None and sigma * (1 - ROUNDING) > self._start:
            return OUTSIDE_WINDOW
        if self._end is not None and sigma * (1 + ROUNDING) < self._end:
            return OUTSIDE_WINDOW
        step = self.step(sigma)
        if step < self._warm_up:
            return WARM_UP_STEP
        if step >= self.steps - self._tail:
            return LAST_STEPS
        return None

    def step(self, sigma: float) -> int:
        """The step that ``sigma`` belongs to, counted from 0."""
        reached = sum(start >= sigma * (1 - ROUNDING) for start in self._sigmas)
        return min(max(reached - 1, 0), self.steps - 1)


def _percent(sigma: float, percent_to_sigma: Callable[[float], float]) -> float:
    """How far the denoising is at ``sigma``, 0 to 1; ``percent_to_sigma`` falls, so bisection inverts it."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if float(percent_to_sigma(middle)) > sigma:
            low = middle
        else:
            high = middle
    return high
