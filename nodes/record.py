"""What the sampler runs of one patched model did, for the nodes behind the sampler."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import StageTimer, Statistics
from .reasons import Reason

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


class Run:
    """A sampler run in progress. Safe for one thread per device; statistics stay on their devices until the end."""

    def __init__(self):
        self.architecture: str | None = None
        self.steps = 0
        self.state_bytes = 0
        self._began = time.perf_counter()
        self._sparse_calls = 0
        self._dense_calls: Counter[Reason] = Counter()
        self._sums: dict[torch.device, Tensor] = {}
        self._timers: dict[torch.device, StageTimer] = {}
        self._lock = threading.Lock()

    def timer(self, device: torch.device) -> StageTimer:
        """The timer of one device."""
        with self._lock:
            return self._timers.setdefault(device, StageTimer())

    def count_sparse(self, statistics: Statistics):
        """Count one sparse call."""
        values = torch.stack((statistics.density.mean(), statistics.estimated_error.mean())).double()
        with self._lock:
            self._sparse_calls += 1
            known = self._sums.get(values.device)
            self._sums[values.device] = values if known is None else known + values

    def count_dense(self, reason: Reason) -> bool:
        """Count one dense call; whether it is the first for this reason."""
        with self._lock:
            self._dense_calls[reason] += 1
            return self._dense_calls[reason] == 1

    def finish(self, result: Tensor | None) -> RunRecord:
        """Close the run; ``result`` is the sampler's latent, None when it did not get that far."""
        density = error = latent = None
        stages: Counter[str] = Counter()
        # After an error the device may be unusable, and reading from it would hide the first error.
        if result is not None:
            latent = latent_digest(result)
            if self._sparse_calls:
                totals = torch.stack([total.cpu() for total in self._sums.values()]).sum(0)
                density, error = (totals / self._sparse_calls).tolist()
            for timer in self._timers.values():
                stages.update(timer.seconds())
        return RunRecord(
            architecture=self.architecture,
            steps=self.steps,
            seconds=time.perf_counter() - self._began,
            sparse_calls=self._sparse_calls,
            dense_calls=dict(self._dense_calls.most_common()),
            density=density,
            estimated_error=error,
            stage_seconds=dict(stages),
            state_bytes=self.state_bytes,
            completed=result is not None,
            latent=latent,
        )


class Recorder:
    """The last few runs of one patched model, newest last. Attached to the MODEL, it survives clones."""

    def __init__(self):
        self._runs: deque[RunRecord] = deque(maxlen=KEPT_RUNS)

    def add(self, run: RunRecord):
        """Keep a finished run; the oldest goes when there are too many."""
        self._runs.append(run)

    def newest(self) -> RunRecord | None:
        """The run that finished last."""
        return self._runs[-1] if self._runs else None

    def find(self, latent: Tensor) -> RunRecord | None:
        """The newest run whose result was ``latent``."""
        digest = latent_digest(latent)
        return next((run for run in reversed(self._runs) if run.latent == digest), None)


def latent_digest(latent: Tensor) -> str:
    """Name a latent by its contents, in half precision because ComfyUI may pass latents on in that."""
    return hashlib.blake2b(latent.detach().half().cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()
