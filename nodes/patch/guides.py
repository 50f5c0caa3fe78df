"""LTX's guides: images and clips that the video is to follow, as frames behind it in the latent and tokens behind it in the sequence."""

from __future__ import annotations

from torch import Tensor

from ...kernels import SequenceLayout
from ..recording.reasons import UNKNOWN_TOKENS, Reason


def guide_tokens(conditions: dict) -> int:
    """How many tokens of a latent are guides, from the conditions that the model is given with it."""
    positions = conditions.get("keyframe_idxs")
    return positions.shape[2] if isinstance(positions, Tensor) else 0


def guided_layout(queries: int, tokens: int, video: int, guides: int) -> SequenceLayout | Reason:
    """Split a sequence of ``tokens`` keys, and of ``queries`` that may be a part of them, of a latent of ``video`` patches with the guides.

    Guides are routed as further frames, which costs least and keeps what the probe finds to count. Those of a coarser grid have fewer
    tokens in the sequence than cells in the latent. Where guides are weakened or masked the model asks for the queries of the video and
    of the guides apart: then the guides' keys, which have weights, are exact for those of the video.
    """
    own = video - guides
    if not 0 < own < tokens <= video or queries not in (own, tokens):
        return UNKNOWN_TOKENS
    return SequenceLayout(range(tokens)) if queries == tokens else SequenceLayout(range(own), (range(own, tokens),), range(own))
