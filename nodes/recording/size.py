"""How large a video is, in tokens and in pixels, and how large it would have to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .words import Text, counted


@dataclass(frozen=True)
class VideoSize:
    """The video that a model works on.

    Attributes:
        grid: frames, rows and columns of tokens.
        token: frames, rows and columns of pixels that a token stands for; the first of all tokens stands for one frame.
        rhythm: frames that the tokens stand for one after the other, over and over, where they are not all alike.
    """

    grid: tuple[int, int, int]
    token: tuple[int, int, int]
    rhythm: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, grid: tuple[int, int, int] | None, patch: Sequence[int] | None, latent_format, rhythm: tuple[int, ...] = ()
    ) -> VideoSize | None:
        """The size of a video of ``grid`` tokens; None where the latent format does not tell what a latent pixel is."""
        spatial, temporal = (getattr(latent_format, f"{name}_downscale_ratio", None) for name in ("spacial", "temporal"))
        if grid is None or patch is None or len(patch) != 3 or not spatial or not temporal:
            return None
        return cls(tuple(grid), (temporal * patch[0], spatial * patch[1], spatial * patch[2]), rhythm)

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    def in_words(self) -> Text:
        """Pixels and frames."""
        height, width = (count * step for count, step in zip(self.grid[1:], self.token[1:]))
        return Text("{width} x {height}, {frames}", width=width, height=height, frames=counted(self.frames, "frame"))

    @property
    def frames(self) -> int:
        """Frames of the video."""
        if self.rhythm:
            return sum(self.rhythm[place % len(self.rhythm)] for place in range(self.grid[0]))
        return (self.grid[0] - 1) * self.token[0] + 1

    def reaching(self, tokens: int) -> tuple[VideoSize, VideoSize]:
        """The smallest sizes of at least ``tokens`` tokens: one of as many frames, one of the same resolution."""
        frames, rows, columns = self.grid
        longer = math.ceil(tokens / (rows * columns))
        wanted = tokens / frames
        # The narrower side decides, so that both keep the proportions as nearly as whole tokens allow.
        wider = next(count for count in range(columns, columns + tokens + 1) if max(round(rows * count / columns), 1) * count >= wanted)
        return (
            replace(self, grid=(frames, max(round(rows * wider / columns), 1), wider)),
            replace(self, grid=(longer, rows, columns)),
        )
