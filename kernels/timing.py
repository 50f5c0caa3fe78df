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

    On CUDA each stage is bracketed by events, read only in :meth:`seconds` and used again; on CPU by ``time.perf_counter``.
    """

    def __init__(self):
        self._elapsed: dict[str, float] = defaultdict(float)
        self._pending: deque[_Measurement] = deque()
        self._free: dict[torch.device, list[_Measurement]] = defaultdict(list)

    @contextmanager
    def stage(self, name: str, device: torch.device):
        """Count the body of the ``with`` block towards ``name``."""
        if device.type == "cuda":
            free, stream = self._free[device], torch.cuda.current_stream(device.index)
            measurement = free.pop() if free else _Measurement(device)
            measurement.name = name
            measurement.start.record(stream)
            yield
            measurement.end.record(stream)
            self._pending.append(measurement)
            if len(self._pending) > PENDING_STAGES and self._pending[0].end.query():
                self._collect(self._pending.popleft())
        else:
            began = time.perf_counter()
            yield
            self._elapsed[name] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Seconds per stage in order of first use. Waits for the GPU stages measured so far."""
        while self._pending:
            self._pending[0].end.synchronize()
            self._collect(self._pending.popleft())
        return dict(self._elapsed)

    def _collect(self, measurement: _Measurement) -> None:
        self._elapsed[measurement.name] += measurement.start.elapsed_time(measurement.end) / 1000
        self._free[measurement.device].append(measurement)


class _Measurement:
    """One run of a stage, between two events of one device."""

    def __init__(self, device: torch.device):
        self.name, self.device = "", device
        self.start, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
