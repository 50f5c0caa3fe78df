"""Sparse attention on tensors: clustering, routing and attention, without any knowledge of ComfyUI."""

from .device import unavailable_reason
from .hollow import HollowCall, HollowTensor
from .pipeline import sparse_attention
from .preparation import Preparation, prepare
from .selftest import SelfTest
from .settings import BlockRouting, SequenceLayout, Settings
from .shared_keys import SharedKeys
from .state import ClusterState
from .timing import StageTimer
from .types import AttentionResult, RoutedHeads, Statistics

__all__ = [
    "AttentionResult",
    "BlockRouting",
    "ClusterState",
    "HollowCall",
    "HollowTensor",
    "Preparation",
    "RoutedHeads",
    "SelfTest",
    "SequenceLayout",
    "Settings",
    "SharedKeys",
    "StageTimer",
    "Statistics",
    "prepare",
    "sparse_attention",
    "unavailable_reason",
]
