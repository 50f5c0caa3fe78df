"""Clusters kept between steps, keyed so that nothing collides."""

from __future__ import annotations

import threading
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
            block before them), or within the model where the layer is not known. Calls of a part of the queries are counted apart.
        branch: ``cond_or_uncond`` and ``uuids`` of the batch, and the blocks that a guidance replaced.
        context_window: frames of the window, empty without context windows.
        shape, dtype: batch, heads, tokens, head dimension, and the type of the tensors.
        layouts: which tokens are routed.
    """

    device: torch.device
    block_type: str | None
    block_index: int | None
    ordinal: int
    branch: tuple
    context_window: tuple
    shape: tuple[int, ...]
    dtype: torch.dtype
    layouts: tuple[SequenceLayout, ...]


class StateStore:
    """The cluster states of one run. Safe for one thread per device.

    Above ``limit`` bytes a new state takes the place of those that the last step and this one had no use for: context windows that
    move every step would otherwise leave the clusters of every window behind. Where all are in use, as with many windows that stay, the
    new one is not kept: to let the oldest go would let each go just before its next use.
    """

    def __init__(self, limit: int = KEPT_BYTES):
        self._states: dict[StateKey, ClusterState] = {}
        # For each state the number of the step that used it last, counted over the steps that were evaluated.
        self._used: dict[StateKey, int] = {}
        self._steps, self._last_step = 0, None
        self._limit = limit
        self._lock = threading.Lock()

    def get(self, key: StateKey, step: int) -> ClusterState:
        """The state of ``key`` for a call in ``step``, new at first use."""
        with self._lock:
            if step != self._last_step:
                self._steps, self._last_step = self._steps + 1, step
            if key not in self._states and not self._has_room():
                return ClusterState()
            self._used[key] = self._steps
            return self._states.setdefault(key, ClusterState())

    def _has_room(self) -> bool:
        held = self._bytes()
        for key in [key for key, used in self._used.items() if used < self._steps - 1] if held > self._limit else ():
            held -= self._states[key].nbytes()
            self._forget(key)
        return held <= self._limit

    def _forget(self, key: StateKey):
        del self._states[key], self._used[key]

    def clear(self, device: torch.device | None = None):
        """Forget the states of a device, or all, which frees their memory."""
        with self._lock:
            for key in [key for key in self._states if device in (None, key.device)]:
                self._forget(key)

    def nbytes(self) -> int:
        """Bytes of device memory held."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(state.nbytes() for state in self._states.values())

    def __len__(self):
        return len(self._states)
