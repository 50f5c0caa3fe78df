"""What the sampler runs of one patched model did, for the nodes behind the sampler."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...kernels import StageTimer, Statistics
from .reasons import Reason
from .trace import MapChoice, Place, Trace, TraceRecord

# Attachment of a patched MODEL under which the Recorder is found.
ATTACHMENT = "svg_ear"
KEPT_RUNS = 8


@dataclass(frozen=True)
class RunRecord:
    """One finished sampler run.

    Attributes:
        architecture: name of the model family, None when no evaluation happened or the family is unknown.
        steps: steps of the sampler's schedule.
        seconds: wall time of the sampler, model loading included.
        sparse_calls: attention calls that ran sparse.
        dense_calls: the others by reason.
        density: mean share of the video pairs computed exactly in the sparse calls; None without any.
        estimated_error: mean relative error that the probe expected of the sparse calls; None without any.
        stage_seconds: time per stage of the sparse calls, over all devices.
        state_bytes: device memory that the kept clusters took at the end.
        completed: False after an error or an interrupt; density, error and times are then left out.
        latent: digest of the resulting latent, None unless completed.
        speed_up: how many times faster a sparse call was than a dense call of the same layers' attention; None without both.
        on_cpu: whether anything ran sparse on a CPU, where the stages are plain torch and not made for speed.
        trace: what happened where; empty unless completed.
    """

    architecture: str | None
    steps: int
    seconds: float
    sparse_calls: int
    dense_calls: dict[Reason, int]
    density: float | None = None
    estimated_error: float | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)
    state_bytes: int = 0
    completed: bool = True
    latent: str | None = None
    speed_up: float | None = None
    on_cpu: bool = False
    trace: TraceRecord = TraceRecord()


class Run:
    """A sampler run in progress. Safe for one thread per device; statistics stay on their devices until the end."""

    def __init__(self, choice: MapChoice | None = None):
        self.architecture: str | None = None
        self.steps = 0
        self.evaluations = 0
        # Evaluations in which the model asked for its attention, and whether it had to be compiled anew for that.
        self.asked = 0
        self.recompiled = False
        self.state_bytes = 0
        self.trace = Trace(choice)
        self._began = time.perf_counter()
        self._dense_calls: Counter[Reason] = Counter()
        self._timers: dict[torch.device, StageTimer] = {}
        self._dense_timers: dict[torch.device, StageTimer] = {}
        self._timed_dense_calls = 0
        self._lock = threading.Lock()

    def timer(self, device: torch.device) -> StageTimer:
        """The timer of one device."""
        with self._lock:
            return self._timers.setdefault(device, StageTimer())

    def dense_timer(self, device: torch.device) -> StageTimer:
        """The timer of the dense calls that could have run sparse, of one device; counts a call."""
        with self._lock:
            self._timed_dense_calls += 1
            return self._dense_timers.setdefault(device, StageTimer())

    def count_sparse(self, statistics: Statistics, place: Place):
        """Count one sparse call."""
        self.trace.count_sparse(statistics, place)

    def count_dense(self, reason: Reason) -> bool:
        """Count one dense call; whether it is the first for this reason."""
        with self._lock:
            self._dense_calls[reason] += 1
            return self._dense_calls[reason] == 1

    def finish(self, result: Tensor | None) -> RunRecord:
        """Close the run; ``result`` is the sampler's latent, None when it did not get that far."""
        density = error = latent = speed_up = None
        trace, stages, sparse_calls = TraceRecord(), Counter(), self.trace.sparse_calls
        # After an error the device may be unusable, and reading from it would hide the first error.
        if result is not None:
            latent = latent_digest(result)
            trace, means = self.trace.finish()
            for timer in self._timers.values():
                stages.update(timer.seconds())
            if sparse_calls:
                density, error = means.tolist()
                speed_up = self._speed_up(sum(stages.values()) / sparse_calls)
        # What was recorded is on the device until here.
        self.trace = Trace()
        return RunRecord(
            architecture=self.architecture,
            steps=self.steps,
            seconds=time.perf_counter() - self._began,
            sparse_calls=sparse_calls,
            dense_calls=dict(self._dense_calls.most_common()),
            density=density,
            estimated_error=error,
            stage_seconds=dict(stages),
            state_bytes=self.state_bytes,
            completed=result is not None,
            latent=latent,
            speed_up=speed_up,
            on_cpu=any(device.type == "cpu" for device in self._timers),
            trace=trace,
        )

    def _speed_up(self, sparse_seconds: float) -> float | None:
        dense_seconds = sum(sum(timer.seconds().values()) for timer in self._dense_timers.values())
        return dense_seconds / self._timed_dense_calls / sparse_seconds if dense_seconds and sparse_seconds else None


class Recorder:
    """The last few runs of one patched model, newest last. Attached to the MODEL, it survives clones.

    Routing maps of older runs are dropped until those of all runs take less than ``limit`` bytes.
    """

    def __init__(self, limit: int = 2**26):
        self._runs: deque[RunRecord] = deque(maxlen=KEPT_RUNS)
        self._limit = limit

    def add(self, run: RunRecord):
        """Keep a finished run; the oldest goes when there are too many."""
        self._runs.append(run)
        held = 0
        for place in reversed(range(len(self._runs))):
            kept = self._runs[place]
            held += kept.trace.nbytes()
            if held > self._limit and kept is not run:
                self._runs[place] = replace(kept, trace=replace(kept.trace, maps=(), maps_left_out=len(kept.trace.maps)))

    def runs(self) -> list[RunRecord]:
        """All kept runs, newest first."""
        return list(reversed(self._runs))

    def newest(self) -> RunRecord | None:
        """The run that finished last."""
        return self._runs[-1] if self._runs else None

    def find(self, latent: Tensor) -> RunRecord | None:
        """The newest run whose result was ``latent``."""
        digest = latent_digest(latent)
        return next((run for run in reversed(self._runs) if run.latent == digest), None)


def find_run(model, latent: dict) -> tuple[list[RunRecord], RunRecord | None, bool]:
    """All runs kept for a MODEL, newest first, the one that made a LATENT (or the newest), and whether it did make it."""
    recorder: Recorder | None = model.get_attachment(ATTACHMENT)
    if recorder is None:
        return [], None, False
    samples = latent["samples"]
    # Audio and video latents come packed in a type of ComfyUI's own.
    match = recorder.find(samples) if isinstance(samples, Tensor) else None
    return recorder.runs(), match or recorder.newest(), match is not None


def latent_digest(latent: Tensor) -> str:
    """Name a latent by its contents, in half precision because ComfyUI may pass latents on in that."""
    return hashlib.blake2b(latent.detach().half().cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()
