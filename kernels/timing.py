"""Time per stage, without making the GPU wait while it is measured."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from contextlib import contextmanager

import torch

# Stages on the GPU that may wait to be read before finished ones are added up.
PENDING_STAGES = 1000


class StageTimer:
    """Adds up the time of named stages over any number of calls.

    On CUDA each stage is bracketed by events, read only in :meth:`seconds`; on CPU by ``time.perf_counter``.
    """

    def __init__(self):
        self._elapsed: dict[str, float] = defaultdict(float)
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def stage(self, name: str, device: torch.device):
        """Count the body of the ``with`` block towards ``name``."""
        if device.type == "cuda":
            with torch.cuda.device(device):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                yield
                end.record()
            self._pending.append((name, start, end))
            if len(self._pending) > PENDING_STAGES and self._pending[0][2].query():
                self._collect(self._pending.popleft())
        else:
            began = time.perf_counter()
            yield
            self._elapsed[name] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Seconds per stage in order of first use. Waits for the GPU stages measured so far."""
        while self._pending:
            self._pending[0][2].synchronize()
            self._collect(self._pending.popleft())
        return dict(self._elapsed)

    def _collect(self, stage: tuple[str, torch.cuda.Event, torch.cuda.Event]) -> None:
        name, start, end = stage
        self._elapsed[name] += start.elapsed_time(end) / 1000
