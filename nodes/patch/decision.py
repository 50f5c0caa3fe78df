"""Whether one attention call runs sparse, or why it stays dense."""

from __future__ import annotations

import math

from ..recording import reasons
from ..recording.reasons import Reason
from .blocks import running_block
from .call import AttentionCall
from .evaluation import Evaluation
from .options import Options
from .state import StateKey


def decide(
    call: AttentionCall, evaluation: Evaluation, transformer_options: dict, options: Options, least_tokens: int
) -> Reason | StateKey:
    """Why a call stays dense, or the key of its state when it can run sparse.

    Calls of fewer than ``least_tokens`` tokens are too short. What the model or the input rules out comes before the schedule, so that
    strict mode complains at the first step.
    """
    architecture, video = evaluation.architecture, math.prod(evaluation.own_grid)
    is_of_video, is_part = evaluation.is_of_video(call, transformer_options), evaluation.is_part(call)
    if architecture.is_other_stream(call.shape, video, evaluation.model):
        return reasons.OTHER_STREAM
    if not is_of_video:
        return reasons.CROSS_ATTENTION
    reason = call.dense_reason(is_part)
    if reason is reasons.CROSS_ATTENTION and call.key_tokens > call.tokens and call.key_tokens >= max(video, least_tokens):
        return reasons.PARTIAL_QUERIES
    if reason is not None:
        return reason
    if running_block(transformer_options)[1] is None:
        is_video = not architecture.names_blocks and call.tokens >= max(video, least_tokens)
        return reasons.UNKNOWN_BLOCK if is_video else reasons.TOKEN_REFINER
    if evaluation.guides and is_part and call.tokens != video:
        return reasons.GUIDE_QUERIES
    if evaluation.length_of(call) < least_tokens:
        return reasons.SHORT_SEQUENCE
    routed = evaluation.routed(call)
    if isinstance(routed, Reason):
        return routed
    evaluation.block = block = evaluation.locate(transformer_options, is_part)
    reason = call.unsupported_reason() or evaluation.step_reason
    if reason is not None:
        return reason
    if options.dense_layers().selects(block.layer, block.layers):
        return reasons.DENSE_BLOCK
    return StateKey(
        device=call.q.device,
        block_type=block.type,
        block_index=block.index,
        ordinal=block.ordinal,
        branch=evaluation.branch,
        context_window=evaluation.context_window,
        shape=call.shape,
        dtype=call.q.dtype,
        layouts=routed.layouts,
    )
