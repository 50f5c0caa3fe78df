"""The tokens around the video: exact as keys for every query, dense as queries."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .settings import SequenceLayout
from .types import Conditioning


def conditioning_of(k: Tensor, v: Tensor, layout: SequenceLayout, biases: Tensor | None = None) -> Conditioning:
    """Keys and values ``[B, H, L, D]`` of the tokens around the video that every query sees, and their ``biases`` ``[B, H, L]``."""
    return Conditioning(*(_tokens(tensor, layout.conditioning) for tensor in (k, v)), _biases(biases, layout.conditioning))


def attend_surroundings(
    q: Tensor, k: Tensor, v: Tensor, biases: Tensor | None, layout: SequenceLayout, stages: ModuleType, scale: float, output: Tensor
) -> None:
    """Dense attention of the queries around the video over all visible keys; all ``[B, H, L, D]``, writes ``output``."""
    visible = sorted((layout.video, *layout.conditioning), key=lambda span: span.start)
    keys, values, biases = _tokens(k, visible), _tokens(v, visible), _biases(biases, visible)
    routed = layout.routed_queries
    for outside in (slice(0, routed.start), slice(routed.stop, q.shape[2])):
        if outside.start < outside.stop:
            stages.attend_dense(q[:, :, outside], keys, values, biases, scale, output[:, :, outside])


def _biases(biases: Tensor | None, spans: Sequence[range]) -> Tensor | None:
    return None if biases is None else _tokens(biases, spans)


def _tokens(tensor: Tensor, spans: Sequence[range]) -> Tensor:
    """The tokens of ascending ``spans`` from ``[B, H, L, ...]``, without a copy where they are one run."""
    if not spans:
        return tensor[:, :, :0]
    runs: list[range] = []
    for span in spans:
        if runs and runs[-1].stop == span.start:
            runs[-1] = range(runs[-1].start, span.stop)
        elif len(span):
            runs.append(span)
    parts = [tensor[:, :, run.start : run.stop] for run in runs]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0] if parts else tensor[:, :, :0]
