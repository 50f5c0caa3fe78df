"""Wan-Animate-2: a call for each frame of the video, whose queries see the keys of all frames and those of the pose in that frame."""

from __future__ import annotations

import math

from ...kernels import SequenceLayout
from ..recording.reasons import UNKNOWN_TOKENS, Reason

Grid = tuple[int, int, int]


def is_frame(queries: int, keys: int, grid: Grid) -> bool:
    """Whether a call of so many queries and keys is of one frame of the video."""
    frames, *size = grid
    frame = math.prod(size)
    return frames > 1 and queries == frame and keys in (frames * frame, (frames + 1) * frame)


def frames_layout(queries: int, keys: int, grid: Grid) -> SequenceLayout | Reason:
    """Split the keys of a call of a model that works on ``grid``.

    The keys of the video are routed, and are the same for all frames; those of the pose are exact: they are few, and other ones in
    every frame. The first frame is the reference image, which has no pose, so the pose's own attention has one frame less; without a pose
    all of the video comes in one call.
    """
    video, frame = math.prod(grid), math.prod(grid[1:])
    if is_frame(queries, keys, grid):
        return SequenceLayout(range(video), (range(video, keys),) if keys > video else (), range(queries))
    return SequenceLayout(range(keys)) if queries == keys and keys in (video, video - frame) else UNKNOWN_TOKENS


def length_of(queries: int, keys: int) -> int:
    """Tokens of a whole call that gains about as much from being sparse as a call of a part of the queries.

    What calls of one block find out of their keys they find once, so that a quarter of the pairs is enough.
    """
    return keys if queries == keys else min(keys, 2 * math.isqrt(queries * keys))
