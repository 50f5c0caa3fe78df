"""The stages in order."""

from __future__ import annotations

from torch import Tensor

from .timing import StageTimer
from .types import AttentionResult, ClusterState, SequenceLayout, Settings


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: Settings = Settings(),
    *,
    layouts: SequenceLayout | list[SequenceLayout] | None = None,
    state: ClusterState | None = None,
    scale: float | None = None,
    memory_limit: int | None = None,
    timer: StageTimer | None = None,
) -> AttentionResult:
    """Attention with the video part routed by SVG-EAR or SVG2.

    Args:
        q, k, v: ``[B, H, L, D]``, one floating dtype and device, any strides, RoPE applied.
        settings: how blocks are chosen.
        layouts: which tokens are video and which are always exact, one for all batch items or one each;
            None routes all tokens.
        state: clusters of the previous denoising step; updated in place. None clusters from scratch.
        scale: factor of the logits; None is ``D ** -0.5``.
        memory_limit: bytes of working memory beyond the output that one chunk of heads should stay under (at least
            one head is processed at a time whatever it needs); None is half the size of q, k and v together.
        timer: adds up the time per stage.

    Returns:
        Output and statistics.

    Raises:
        ValueError: shapes, dtypes, devices or layouts that do not fit together, or a state of another shape.
    """
    raise NotImplementedError
