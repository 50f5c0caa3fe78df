"""Numbers that a user picks in one line of text, such as layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

AUTOMATIC = "auto"


@dataclass(frozen=True)
class Selection:
    """Numbers and inclusive ranges; negative numbers count from the end (-1 is the last)."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    @lru_cache
    def parse(cls, text: str, name: str) -> Selection:
        """Read text such as ``0, 1, 38-39`` or ``-2--1``; empty text selects nothing.

        Raises ValueError naming the input ``name`` and the part that was not understood.
        """
        ranges = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = re.fullmatch(r"(-?\d+)(?:\s*-\s*(-?\d+))?", part)
            span = (int(match[1]), int(match[2] or match[1])) if match else None
            # A range from a positive to a negative number can only be judged when the count is known.
            if span is None or (span[0] > span[1] and (span[0] < 0) == (span[1] < 0)):
                raise ValueError(
                    f"{name} has {part!r}; write numbers and rising ranges separated by commas, "
                    "such as 0, 1, 38-39, where -1 is the last one, or leave it empty"
                )
            ranges.append(span)
        return cls(tuple(ranges))

    @classmethod
    def parse_or_automatic(cls, text: str, name: str) -> Selection | None:
        """Like :meth:`parse`, but ``auto`` gives None."""
        return None if text.strip().lower() == AUTOMATIC else cls.parse(text, name)

    def selects(self, number: int, count: int) -> bool:
        """Whether ``number`` of ``count`` is meant."""

        def position(value):
            return value + count if value < 0 else value

        return any(position(first) <= number <= position(last) for first, last in self.ranges)

    def require(self, count: int, name: str) -> None:
        """Raise ValueError for what does not exist among ``count``, or for a range that falls; ``name`` is the input's."""
        for first, last in self.ranges:
            missing = next((number for number in (first, last) if not -count <= number < count), None)
            if missing is not None:
                raise ValueError(f"{name} has {missing}, which does not exist: write 0 to {count - 1}, or -1 to {-count} from the end")
            if first % count > last % count:
                raise ValueError(f"{name} has {first}-{last}, which of {count} is a falling range: write the smaller one first")
