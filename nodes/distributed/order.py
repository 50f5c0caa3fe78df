"""Which order an engine's gathered tokens have, of the models that are known."""

from __future__ import annotations

import math

from ..patch.sequence import Architecture
from ..recording.reasons import REPEATED_TOKENS, UNKNOWN_TOKENS, Reason
from .gathered import Gathered


def gathered_order(
    architecture: Architecture, grid: tuple[int, int, int], text: int, block_type: str | None, tokens: int, ranks: int
) -> Gathered | Reason:
    """The order of ``tokens`` gathered tokens of ``ranks`` ranks, or why it is not known.

    Args:
        grid: frames, rows and columns of the video's patches.
        text: tokens before the video, where the architecture has them in the sequence.
        block_type: ``single`` for blocks whose text and video are one stream.
    """
    video = math.prod(grid)
    if architecture.video_tokens in ("all", "only"):
        streams = (video,)
    elif architecture.video_tokens == "last":
        streams = (text + video,) if block_type == "single" else (text, video)
    else:
        return UNKNOWN_TOKENS
    order = Gathered(streams, ranks)
    if tokens > len(order):
        return REPEATED_TOKENS
    return order if tokens == len(order) else UNKNOWN_TOKENS


def text_tokens(diffusion_model, context, txt_byt5=None, clip_fea=None) -> int:
    """Tokens that a HunyuanVideo model puts before the video, from the conditionings that it is given."""
    given = [context]
    if getattr(diffusion_model, "byt5_in", None) is not None:
        given.append(txt_byt5)
    given.append(clip_fea)
    return sum(tensor.shape[1] for tensor in given if tensor is not None)
