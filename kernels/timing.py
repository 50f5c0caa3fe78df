"""Time per stage, without making the GPU wait while it is measured."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import contextmanager

import torch

# Calls on the GPU that may wait to be read before finished ones are added up.
PENDING_CALLS = 50


class StageTimer:
    """Adds up the time of named stages over any number of calls.

    On CUDA an event lies between two stages, read only in :meth:`seconds` and used again; on CPU a reading of ``time.perf_counter``.
    """

    def __init__(self):
        self._elapsed: dict[str, float] = defaultdict(float)
        self._pending: deque[_Marks] = deque()
        self._free: dict[torch.device, list[torch.cuda.Event]] = defaultdict(list)

    def start(self, device: torch.device) -> Callable[[str], None]:
        """Begin a call of several stages, one after the other.

        Returns:
            A function to be called with its name when a stage is done, which is when the next one begins.
        """
        if device.type != "cuda":
            return self._start_on_cpu()
        if len(self._pending) > PENDING_CALLS and self._pending[0].events[-1].query():
            self._collect(self._pending.popleft())
        marks = _Marks(device, self._free[device])
        self._pending.append(marks)
        return marks.add

    @contextmanager
    def stage(self, name: str, device: torch.device):
        """Count the body of the ``with`` block towards ``name``."""
        done = self.start(device)
        yield
        done(name)

    def seconds(self) -> dict[str, float]:
        """Seconds per stage in order of first use. Waits for the GPU stages measured so far."""
        while self._pending:
            self._pending[0].events[-1].synchronize()
            self._collect(self._pending.popleft())
        return dict(self._elapsed)

    def _start_on_cpu(self) -> Callable[[str], None]:
        began = time.perf_counter()

        def done(name: str) -> None:
            nonlocal began
            now = time.perf_counter()
            self._elapsed[name] += now - began
            began = now

        return done

    def _collect(self, marks: _Marks) -> None:
        for name, start, end in zip(marks.names, marks.events, marks.events[1:]):
            self._elapsed[name] += start.elapsed_time(end) / 1000
        self._free[marks.device] += marks.events


class _Marks:
    """Events of one device and stream: before the first stage of a call, and behind each."""

    def __init__(self, device: torch.device, free: list[torch.cuda.Event]):
        self.device, self.names, self.events, self._free = device, [], [], free
        self._stream = torch.cuda.current_stream(device.index)
        self._record()

    def add(self, name: str) -> None:
        """The end of stage ``name``."""
        self.names.append(name)
        self._record()

    def _record(self) -> None:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        self.events.append(event)
