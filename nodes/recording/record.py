"""What the sampler runs of one patched model did, for the nodes behind the sampler."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace

import torch

from ...kernels import StageTimer, Statistics
from .latents import latent_digest, stream_digests, streams
from .reasons import Reason
from .size import VideoSize
from .times import RunTimer, RunTimes
from .trace import MapChoice, Place, Trace, TraceRecord
from .words import Text, counted

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
        loading: those before the first evaluation of the model.
        sparse_calls: attention calls that ran sparse.
        dense_calls: the others by reason.
        dense_attention: those of the video's own attention by what computed them, in words.
        density: mean share of the video pairs computed exactly in the sparse calls; None without any.
        estimated_error: mean relative error that the probe expected of the sparse calls; None without any.
        times: how long the calls took.
        dense_steps: steps that stayed dense.
        skipped_steps: steps in which the model asked for no attention, because a cache took their place.
        tokens: of the video's own attention, the most of any call; None when there was none.
        min_tokens: what they must be at least to run sparse; min_tokens_origin: who says so, empty where it is the user.
        size: of the video; None when it is not known.
        settings: what the user chose, in words.
        warnings: what the user should know first.
        advice: what another setting would be for; None where nothing is to be said.
        state_bytes: device memory that the kept clusters took at the end.
        completed: False after an error or an interrupt; density, error and times are then left out.
        latent: digest of the resulting latent, None unless completed.
        streams: digests of its streams where it has several, video first.
        on_cpu: whether anything ran sparse on a CPU, where the stages are plain torch and not made for speed.
        narrowed: what float32 inputs were computed in instead, empty where none were.
        int8_calls: sparse calls that multiplied queries with keys in int8.
        trace: what happened where; empty unless completed.
    """

    architecture: str | None
    steps: int
    seconds: float
    sparse_calls: int
    dense_calls: dict[Reason, int]
    dense_attention: dict[str, int] = field(default_factory=dict)
    density: float | None = None
    estimated_error: float | None = None
    loading: float = 0.0
    times: RunTimes = RunTimes()
    dense_steps: int = 0
    skipped_steps: int = 0
    tokens: int | None = None
    min_tokens: int = 0
    min_tokens_origin: str = ""
    size: VideoSize | None = None
    settings: str = ""
    warnings: tuple[str, ...] = ()
    advice: Text | None = None
    state_bytes: int = 0
    completed: bool = True
    latent: str | None = None
    streams: tuple[str, ...] = ()
    on_cpu: bool = False
    narrowed: str = ""
    int8_calls: int = 0
    trace: TraceRecord = TraceRecord()


class Run:
    """A sampler run in progress. Safe for one thread per device; statistics stay on their devices until the end.

    Attributes:
        architecture, steps, settings: see :class:`RunRecord`.
        latent_shapes: of the streams of a packed latent, None for others.
        timer, trace: what takes times, and what happened where.
    """

    def __init__(self, choice: MapChoice | None = None):
        self.architecture: str | None = None
        self.steps = 0
        self.evaluations = 0
        # Evaluations in which the model asked for its attention, and whether it had to be compiled anew for that.
        self.asked = 0
        self.recompiled = False
        self.settings = ""
        self.latent_shapes = None
        self.state_bytes = 0
        self.timer = RunTimer()
        self.trace = Trace(choice)
        self._began = time.perf_counter()
        self._loading = 0.0
        self._dense_calls: Counter[Reason] = Counter()
        self._dense_attention: Counter[str] = Counter()
        self._dense_steps: set[int] = set()
        self._attended_steps: set[int] = set()
        self._failed: dict[torch.device, Reason] = {}
        self._seen: tuple[int, VideoSize | None, int, str] | None = None
        self._warnings: dict[str, None] = {}
        self._advice: Text | None = None
        self._is_guided = False
        self._on_cpu = False
        self._narrowed: torch.dtype | None = None
        self._int8_calls = 0
        self._lock = threading.Lock()

    def evaluate(self):
        """Take note of an evaluation of the model."""
        with self._lock:
            self.evaluations += 1
            if self.evaluations == 1:
                self._loading = time.perf_counter() - self._began

    def attend(self, step: int):
        """Take note of a step in which the model asked for attention."""
        with self._lock:
            self.asked += 1
            self._attended_steps.add(step)

    def see(self, tokens: int, size: VideoSize | None, min_tokens: int, origin: str):
        """Take note of a call of the video's own attention, with what it must have at least, and who says so."""
        with self._lock:
            if self._seen is None or tokens > self._seen[0]:
                self._seen = tokens, size, min_tokens, origin

    def warn(self, text: str) -> bool:
        """Tell the user something in the report; whether it is new."""
        with self._lock:
            is_new = text not in self._warnings
            self._warnings[text] = None
            return is_new

    def advise(self, text: Text | None, is_guided: bool):
        """Take note of advice for a run without guidance, in an evaluation that ``is_guided`` or not."""
        with self._lock:
            self._advice, self._is_guided = text, self._is_guided or is_guided

    def fail(self, device: torch.device, reason: Reason):
        """Note why nothing more can run sparse on ``device`` in this run."""
        with self._lock:
            self._failed.setdefault(device, reason)

    def failed(self, device: torch.device) -> Reason | None:
        """Why nothing more can run sparse on ``device``, None where it can."""
        return self._failed.get(device)

    def count_sparse(self, statistics: Statistics, place: Place, narrowed: torch.dtype | None = None, int8: bool = False):
        """Count one sparse call; ``narrowed`` is what float32 inputs were computed in instead, ``int8`` whether keys were in int8."""
        self._narrowed = self._narrowed or narrowed
        self._int8_calls += int8
        self._on_cpu = self._on_cpu or statistics.density.device.type == "cpu"
        self.trace.count_sparse(statistics, place)

    def count_dense(self, reason: Reason) -> bool:
        """Count one dense call; whether it is the first for this reason."""
        with self._lock:
            self._dense_calls[reason] += 1
            return self._dense_calls[reason] == 1

    def count_attention(self, name: str):
        """Count a dense call of the video's own attention by what computed it."""
        with self._lock:
            self._dense_attention[name] += 1

    def dense_step(self, step: int, device: torch.device) -> StageTimer:
        """Count a step that stays dense; the timer of its evaluation on ``device``."""
        with self._lock:
            self._dense_steps.add(step)
        return self.timer.dense_step(device)

    def _skipped_steps(self) -> int:
        """Steps without attention, up to the last with it: samplers that choose their own steps leave some out at the end."""
        return max(self._attended_steps, default=-1) + 1 - len(self._attended_steps)

    def finish(self, result) -> RunRecord:
        """Close the run; ``result`` is the sampler's latent of whatever kind, None when it did not get that far."""
        trace, times, sparse_calls, means = TraceRecord(), RunTimes(), self.trace.sparse_calls, None
        # After an error the device may be unusable, and reading from it would hide the first error.
        if result is not None:
            trace, means, not_finite = self.trace.finish()
            times = self.timer.finish()
            if not_finite:
                self.warn(
                    Text(
                        "{calls} not finite (NaN or infinite): the model's own numbers overflow. Choose another compute type for the "
                        "model; these calls are left out of all means.",
                        calls=counted(not_finite, "of the sparse calls was", "of the sparse calls were"),
                    )
                )
            if not all(part.isfinite().all() for part in streams(result)):
                self.warn(
                    Text("The resulting latent is not finite (NaN or infinite) everywhere: choose another compute type for the model.")
                )
        # What was recorded is on the device until here.
        self.trace, self.timer = Trace(), RunTimer()
        tokens, size, min_tokens, origin = self._seen or (None, None, 0, "")
        return RunRecord(
            architecture=self.architecture,
            steps=self.steps,
            seconds=time.perf_counter() - self._began,
            sparse_calls=sparse_calls,
            dense_calls=dict(self._dense_calls.most_common()),
            dense_attention=dict(self._dense_attention.most_common()),
            density=means and means[0],
            estimated_error=means and means[1],
            loading=self._loading,
            times=times,
            dense_steps=len(self._dense_steps & self._attended_steps),
            skipped_steps=self._skipped_steps() if result is not None else 0,
            tokens=tokens,
            min_tokens=min_tokens,
            min_tokens_origin=origin,
            size=size,
            settings=self.settings,
            warnings=tuple(self._warnings),
            advice=None if self._is_guided else self._advice,
            state_bytes=self.state_bytes,
            completed=result is not None,
            latent=latent_digest(result),
            streams=stream_digests(result, self.latent_shapes),
            on_cpu=self._on_cpu,
            int8_calls=self._int8_calls,
            narrowed=str(self._narrowed).removeprefix("torch.") if self._narrowed else "",
            trace=trace,
        )


class Recorder:
    """The last few runs of one patched model, newest last. Attached to the MODEL, it survives clones.

    Routing maps of older runs are dropped until those of all runs take less than ``limit`` bytes.

    Attributes:
        taken_over_by: name of the node behind this one that patches the MODEL in its place, since the last run.
    """

    def __init__(self, limit: int = 2**26):
        self.taken_over_by: str | None = None
        self._runs: deque[RunRecord] = deque(maxlen=KEPT_RUNS)
        self._limit = limit

    def add(self, run: RunRecord):
        """Keep a finished run; the oldest goes when there are too many."""
        self._runs.append(run)
        self.taken_over_by = None
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

    def find(self, latent) -> RunRecord | None:
        """The newest run whose result, or one of whose streams, was ``latent``."""
        digest = latent_digest(latent)
        return digest and next((run for run in reversed(self._runs) if digest in (run.latent, *run.streams)), None)


@dataclass(frozen=True)
class Found:
    """What is recorded of a MODEL and a LATENT.

    Attributes:
        runs: all runs kept for the MODEL, newest first.
        run: the one that made the LATENT, or else the newest.
        is_match: whether it did make it.
        is_patched: whether the MODEL comes from a node that records.
        taken_over_by: name of the node that took that node's place behind it, None without one.
    """

    runs: tuple[RunRecord, ...] = ()
    run: RunRecord | None = None
    is_match: bool = False
    is_patched: bool = False
    taken_over_by: str | None = None


def find_run(model, latent: dict) -> Found:
    """The run of a MODEL that made a LATENT."""
    recorder: Recorder | None = model.get_attachment(ATTACHMENT)
    if recorder is None:
        return Found()
    match = recorder.find(latent["samples"])
    return Found(tuple(recorder.runs()), match or recorder.newest(), match is not None, True, recorder.taken_over_by)
