"""Sparse attention on tensors: clustering, routing and attention, without any knowledge of ComfyUI."""

from .device import unavailable_reason
from .pipeline import sparse_attention
from .timing import StageTimer
from .types import AttentionResult, BlockRouting, ClusterState, RoutedHeads, SequenceLayout, Settings, Statistics

__all__ = [
    "AttentionResult",
    "BlockRouting",
    "ClusterState",
    "RoutedHeads",
    "SequenceLayout",
    "Settings",
    "StageTimer",
    "Statistics",
    "sparse_attention",
    "unavailable_reason",
]
