"""How many blocks of every row are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from .selection import densest_blocks, sufficient_blocks

# Up to so many steps the published values for 4 steps hold, above those for 50.
FEW_STEPS = 8


class Budget(Protocol):
    """What decides which blocks are kept, and what a shape of blocks is judged by. ``str`` says what is kept, in words.

    Attributes:
        name: of its kind, in files.
    """

    name: ClassVar[str]

    def select(self, energies: Tensor, progress: float) -> Tensor:
        """The blocks to keep, bool like ``energies`` ``[..., n, n]``, at a share ``progress`` of the denoising."""

    def cost(self, energies: Tensor, kept: Tensor) -> Tensor:
        """Float ``[...]``: what a head pays when the ``kept`` blocks are computed; the shape with the lowest is the best one."""


@dataclass(frozen=True)
class Density:
    """The same share of every row, of its blocks of highest energy.

    Raises ValueError for a share outside 0 to 1.

    Attributes:
        share: of the blocks of a row; at least one is kept.
    """

    name: ClassVar[str] = "density"
    share: float

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it is a share of the blocks and must lie between 0 and 1")

    def __str__(self):
        return f"{self.share:.3g} of the blocks of every row"

    def select(self, energies: Tensor, progress: float) -> Tensor:
        """The same at any ``progress``."""
        return densest_blocks(energies, max(1, round(self.share * energies.shape[-1])))

    def cost(self, energies: Tensor, kept: Tensor) -> Tensor:
        """The attention that is left out."""
        return (energies * ~kept).sum(-1).mean(-1)


@dataclass(frozen=True)
class Thresholds:
    """The fewest blocks that hold ``eps(t) = A + (C - A) exp(-k t / T)`` of a row's attention (CalibAtt, arXiv 2603.05503).

    Falls from ``first`` (C) to ``last`` (A) at a rate of k. Raises ValueError for shares outside 0 to 1, a ``last`` above
    ``first``, or a rate that is not positive.

    Attributes:
        last, first: shares of a block row's attention.
        rate: how fast the threshold falls over the denoising.
    """

    name: ClassVar[str] = "energy"
    last: float
    first: float
    rate: float

    def __post_init__(self):
        if not 0 < self.last <= self.first <= 1 or not 0 < self.rate < math.inf:
            raise ValueError(f"{self!r}: the shares must lie between 0 and 1, last not above first, and the rate must be positive")

    def __str__(self):
        return f"{self.first:.3g} of the attention in the first step, {self.last:.3g} in the last"

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

    def select(self, energies: Tensor, progress: float) -> Tensor:
        """The fewest blocks that hold the threshold at ``progress``."""
        return sufficient_blocks(energies, self.at(progress))

    def cost(self, energies: Tensor, kept: Tensor) -> Tensor:
        """The share of the blocks that are kept."""
        return kept.to(energies.dtype).mean((-2, -1))
