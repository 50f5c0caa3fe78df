"""Time per stage, without making the GPU wait while it is measured."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager

import torch


class StageTimer:
    """Adds up the time of named stages over any number of calls.

    On CUDA each stage is bracketed by events, read only in :meth:`seconds`; on CPU by ``time.perf_counter``.
    """

    def __init__(self):
        self._elapsed: dict[str, float] = defaultdict(float)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

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
        else:
            began = time.perf_counter()
            yield
            self._elapsed[name] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Seconds per stage in order of first use. Waits for the GPU stages measured so far."""
        for name, start, end in self._pending:
            end.synchronize()
            self._elapsed[name] += start.elapsed_time(end) / 1000
        self._pending.clear()
        return dict(self._elapsed)
