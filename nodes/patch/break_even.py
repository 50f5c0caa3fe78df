"""From which length on sparse attention is faster than dense, found in a few timings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

# Milliseconds of dense and of sparse calls of some length.
Point = tuple[float, float, float]


def break_even(points: Iterable[Point]) -> float:
    """Tokens from which on sparse is the faster one, interpolated in logarithms between ``(tokens, dense, sparse)``.

    The shortest length when sparse is faster everywhere, infinity when it is slower at the longest, or without any.
    """
    ordered = sorted(points)
    gains = [math.log(dense / sparse) for _, dense, sparse in ordered]
    slower = [place for place, gain in enumerate(gains) if gain < 0]
    if not slower:
        return ordered[0][0] if ordered else math.inf
    last = slower[-1]
    if last == len(ordered) - 1:
        return math.inf
    low, high = ordered[last][0], ordered[last + 1][0]
    return low * (high / low) ** (gains[last] / (gains[last] - gains[last + 1]))


def at_density(found: Sequence[tuple[float, float]], density: float) -> float:
    """The break-even at ``density`` from ``(density, tokens)`` at others, in logarithms of the tokens.

    Below the lowest it is that of the lowest; above the highest it grows with the density, as the exact pairs do.
    """
    found = sorted(found)
    (lowest, fewest), (highest, most) = found[0], found[-1]
    if density <= lowest:
        return fewest
    if density >= highest:
        return most * density / highest
    (low, before), (high, after) = next((left, right) for left, right in pairwise(found) if left[0] <= density <= right[0])
    return _between(before, after, (density - low) / (high - low))


def at_heads(found: Sequence[tuple[int, float]], heads: int) -> float:
    """The break-even at ``heads`` heads from ``(heads, tokens)`` at others, in logarithms of both.

    With more heads than the most it is that of the most. With fewer than the fewest it is the length at which they make up as many
    pairs, because what a call takes besides pairs does not get less.
    """
    found = sorted(found)
    (fewest, longest), (most, shortest) = found[0], found[-1]
    if heads <= fewest:
        return longest * math.sqrt(fewest / heads)
    if heads >= most:
        return shortest
    (low, before), (high, after) = next((left, right) for left, right in pairwise(found) if left[0] <= heads <= right[0])
    return _between(before, after, math.log(heads / low) / math.log(high / low))


def _between(before: float, after: float, share: float) -> float:
    """``share`` of the way from one length to another, in logarithms; infinity where either is, unless it lies at the other."""
    if share in (0, 1):
        return after if share else before
    return before ** (1 - share) * after**share
