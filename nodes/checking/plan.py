"""Which sizes a check measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..patch.break_even import break_even
from ..patch.findings import Timing

DENSITIES = (0.05, 0.1, 0.2, 0.3)
# Lengths of a break-even are multiples of this, and further apart from each other than by this factor.
GRAIN, APART = 256, 1.04
# A break-even between two lengths less apart than this is known well enough, if sparse still is the faster one so much above it: times
# rise in steps, dense ones as well, so that the first crossing need not be the last.
CLOSE, ABOVE = 1.2, 1.12

Size = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What a check measures.

    Attributes:
        sizes: heads and tokens, in groups; after each group the lengths around a break-even follow.
        refinements: how often, at most, after each group.
        trials: sizes at which tiles are tried; none tries no tiles.
        longest: milliseconds that a dense call may take; longer sizes are left out.
        seconds: after which no further size is begun, kernels that were compiled meanwhile included.
    """

    sizes: tuple[tuple[Size, ...], ...]
    refinements: int
    trials: tuple[Size, ...]
    longest: float
    seconds: float


SHORT = tuple((heads, tokens) for tokens in (8192, 16384, 32768) for heads in (12, 24, 40))
# Among them 1280 x 720 and 81 frames of Wan 14B.
LONG = ((12, 65536), (40, 75600), (24, 131072))
QUICK = Plan((SHORT,), refinements=1, trials=(), longest=500, seconds=60)
FULL = Plan((SHORT, LONG), refinements=4, trials=((24, 16384), (24, 32768), (24, 65536)), longest=4000, seconds=240)


def to_refine(timings: Sequence[Timing]) -> list[Size]:
    """The sizes to measure next, so that every break-even lies between two lengths that are close, or at one that was measured."""
    found: list[Size] = []
    for heads in sorted({timing.heads for timing in timings}):
        known = sorted((timing for timing in timings if timing.heads == heads), key=lambda timing: timing.tokens)
        lengths = [timing.tokens for timing in known]
        for density in DENSITIES:
            for tokens in _crossings([timing for timing in known if density in timing.sparse], density):
                if all(not 1 / APART < tokens / other < APART for other in lengths):
                    lengths.append(tokens)
                    found.append((heads, tokens))
    return found


def _crossings(known: Sequence[Timing], density: float) -> list[int]:
    """Where the last crossing of dense and sparse should be, unless it is known well enough."""
    gains = [timing.dense / timing.sparse[density] for timing in known]
    between = [(left, right) for left, right in pairwise(range(len(known))) if gains[left] < 1 <= gains[right]]
    if not between:
        return []
    left, right = (known[place] for place in between[-1])
    crossing = break_even((timing.tokens, timing.dense, timing.sparse[density]) for timing in (left, right))
    if right.tokens / left.tokens >= CLOSE:
        return [max(GRAIN, round(crossing / GRAIN) * GRAIN)]
    confirmed = any(ABOVE / APART <= timing.tokens / crossing <= CLOSE for timing in known)
    return [] if confirmed else [round(crossing * ABOVE / GRAIN) * GRAIN]
