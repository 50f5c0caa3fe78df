"""How much attention the kept blocks must hold, by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Up to so many steps the published values for 4 steps hold, above those for 50.
FEW_STEPS = 8


@dataclass(frozen=True)
class Thresholds:
    """``eps(t) = A + (C - A) exp(-k t / T)`` of CalibAtt: from ``first`` (C) down to ``last`` (A) at a rate of k.

    Raises ValueError for shares outside 0 to 1, a ``last`` above ``first``, or a rate that is not positive.

    Attributes:
        last, first: shares of a block row's attention.
        rate: how fast the threshold falls over the denoising.
    """

    last: float
    first: float
    rate: float

    def __post_init__(self):
        if not 0 < self.last <= self.first <= 1 or not 0 < self.rate < math.inf:
            raise ValueError(f"{self}: the shares must lie between 0 and 1, last not above first, and the rate must be positive")

    @classmethod
    def published(cls, tokens: int, steps: int) -> Thresholds:
        """The published values for ``tokens`` video tokens and a denoising of ``steps`` steps."""
        if steps <= FEW_STEPS:
            return cls(0.763, 0.863, 5.64)
        return cls(min(0.99, 0.796 + 1.41e-6 * tokens), 0.99, 16.0)

    def ending_at(self, last: float) -> Thresholds:
        """The same with another share at the end; ``first`` rises where it would be below."""
        return Thresholds(last, max(self.first, last), self.rate)

    def at(self, progress: float) -> float:
        """The threshold at a share ``progress`` of the denoising, 0 at its start."""
        return self.last + (self.first - self.last) * math.exp(-self.rate * progress)
