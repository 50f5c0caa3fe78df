"""Clusters kept between steps, keyed so that nothing collides."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

from ...kernels import ClusterState, SequenceLayout

# More than the clusters of one evaluation of a 14B model at 720p with guidance, about 1.6 GB.
KEPT_BYTES = 4 * 2**30


@dataclass(frozen=True)
class StateKey:
    """What must agree for one call to start from the clusters of another.

    A batch of uncond and cond and the two as separate calls are different branches, so a run that falls from one to
    the other for want of memory clusters anew instead of mixing them.

    Attributes:
        device: where the call runs.
        block_type, block_index: the layer; None where the model does not say.
        ordinal: number of the self-attention call within the layer (VACE blocks report the index of the main
            block before them), or within the model where the layer is not known.
        branch: ``cond_or_uncond`` and ``uuids`` of the batch, and the blocks that a guidance replaced.
        context_window: frames of the window, empty without context windows.
        shape: batch, heads, tokens, head dimension.
        layouts: which tokens are routed.
    """

    device: torch.device
    block_type: str | None
    block_index: int | None
    ordinal: int
    branch: tuple
    context_window: tuple
    shape: tuple[int, ...]
    layouts: tuple[SequenceLayout, ...]


class StateStore:
    """The cluster states of one run. Safe for one thread per device.

    Above ``limit`` bytes the states that were used longest ago make room for new ones: context windows that move every
    step would otherwise leave the clusters of every window behind.
    """

    def __init__(self, limit: int = KEPT_BYTES):
        self._states: OrderedDict[StateKey, ClusterState] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def get(self, key: StateKey) -> ClusterState:
        """The state of ``key``, new at first use."""
        with self._lock:
            if key not in self._states:
                held = sum(state.nbytes() for state in self._states.values())
                while held > self._limit:
                    held -= self._states.popitem(last=False)[1].nbytes()
                self._states[key] = ClusterState()
            self._states.move_to_end(key)
            return self._states[key]

    def clear(self):
        """Forget all states, which frees their device memory."""
        with self._lock:
            self._states.clear()

    def nbytes(self) -> int:
        """Bytes of device memory held."""
        with self._lock:
            return sum(state.nbytes() for state in self._states.values())

    def __len__(self):
        return len(self._states)
