"""Which steps stay dense, and the density of the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from ..recording.reasons import LAST_STEPS, OUTSIDE_WINDOW, UNKNOWN_STEP, WARM_UP_STEP, Reason

if TYPE_CHECKING:
    from .options import Options

# Samplers recompute sigmas through logarithms; steps are much further apart than this share.
ROUNDING = 1e-5


class Schedule:
    """The dense steps of one sampler call, and the density of its others.

    Steps are found from sigma: second-order samplers evaluate between the steps of the schedule, or twice, and caches
    skip evaluations. A sigma between two steps belongs to the earlier one.

    Dense steps count from the start of the whole denoising, of which a sampler may do a part: the second expert of
    Wan 2.2, or a video redrawn from less than full noise. Where its part lies is read from its first and last sigma
    through the model's percent scale, and the steps before and after are estimated at its own step width. So a second
    expert that starts half-way has its warm-up behind it.

    Args:
        sigmas: the noise levels between the steps, None where the sampler does not tell.
        percent_to_sigma: the model's scale.
        options: what the user set.
        begins: whether the sampler begins the denoising wherever its schedule begins, as ddim_uniform's does, a little below
            full noise.
    """

    def __init__(self, sigmas: list[float] | None, percent_to_sigma: Callable[[float], float], options: Options, begins: bool = False):
        self._sigmas, self._percent_to_sigma = sigmas or [], percent_to_sigma
        self._is_known = len(self._sigmas) > 1 and all(a >= b for a, b in zip(self._sigmas, self._sigmas[1:]))
        self.steps = max(len(self._sigmas) - 1, 0)
        window = options.schedule
        self._start = float(percent_to_sigma(window.start_percent)) if window.start_percent > 0 else None
        self._end = float(percent_to_sigma(window.end_percent)) if window.end_percent < 1 else None

        self._warm_up = options.warm_up_steps(self.steps)
        self._tail = window.dense_last_steps
        self._first, self._last = options.first_density(), options.settings().density
        # Steps of the denoising that other samplers do, or nobody.
        self._before = self._after = 0
        if self._is_known:
            first, last = (_percent(sigma, percent_to_sigma) for sigma in (self._sigmas[0], self._sigmas[-1]))
            steps_per_percent = self.steps / max(last - first, 1e-6)
            self._before, self._after = 0 if begins else round(first * steps_per_percent), round((1 - last) * steps_per_percent)
            self._warm_up -= self._before
            self._tail -= self._after

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

    def density(self, sigma: float | None) -> float | None:
        """Share of exact pairs at ``sigma``; None where it is that of the settings in all steps.

        It falls by the same factor in every step of the whole denoising. Where the step is not known it is that of the first, which is
        the closest to dense.
        """
        if self._first is None:
            return None
        place = (self._before + self.step(sigma)) / max(self._before + self.steps + self._after - 1, 1)
        return falling(self._first, self._last, min(place, 1.0))

    @property
    def whole_steps(self) -> int:
        """Steps of the whole denoising, 0 where they are not known."""
        return self._before + self.steps + self._after

    @cached_property
    def sparse_steps(self) -> tuple[int, ...]:
        """The steps that may run sparse."""
        return tuple(step for step, sigma in enumerate(self._sigmas[:-1]) if self.dense_reason(sigma) is None)

    @cached_property
    def progress(self) -> tuple[float, ...]:
        """Where in the whole denoising each step begins, 0 to 1."""
        return tuple(_percent(sigma, self._percent_to_sigma) for sigma in self._sigmas[:-1])

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels between the steps, none where the schedule is not known."""
        return tuple(self._sigmas) if self._is_known else ()

    def step(self, sigma: float | None) -> int:
        """The step that ``sigma`` belongs to, counted from 0; 0 where the schedule is not known."""
        if sigma is None or not self._is_known:
            return 0
        reached = sum(start >= sigma * (1 - ROUNDING) for start in self._sigmas)
        return min(max(reached - 1, 0), self.steps - 1)


def falling(first: float, last: float, place: float) -> float:
    """The density at ``place``, 0 in the first step and 1 in the last, from step to step by the same factor."""
    return first * (last / first) ** place


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
