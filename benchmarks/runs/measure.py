"""One whole sampler run, timed step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import comfy.sample
import torch
from comfy import model_management
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from .methods import Method

SAMPLER, SCHEDULER, SEED = "euler", "simple", 0


@dataclass(frozen=True)
class Run:
    """What a sampler run took.

    Attributes:
        step_seconds: of each step, in order; the first begins where the model is called first.
        seconds: of the whole call, moving weights to the GPU included.
        evaluations: of the model.
        peak_bytes: allocated on the GPU at the most, weights included; None on a CPU.
        finite: whether every number of the latent is; None where the run was stopped.
    """

    step_seconds: tuple[float, ...]
    seconds: float
    evaluations: int
    peak_bytes: int | None
    finite: bool | None

    @property
    def stopped(self) -> bool:
        """Whether the deadline ended it before its last step."""
        return self.finite is None


class Clock:
    """Marks the first evaluation of a model and the end of every step. Makes the host wait for the GPU once a step.

    Args:
        deadline: ``time.perf_counter()`` after which sampling is interrupted; None for never.
        progress: called after each step.
    """

    def __init__(self, deadline: float | None, progress: Callable[[], object]):
        self.deadline, self.progress = deadline, progress
        self.began: float | None = None
        self.ends: list[float] = []
        self.evaluations = 0

    def evaluated(self, *_) -> None:
        """Before each evaluation of the model."""
        self.evaluations += 1
        if self.began is None:
            _synchronize()
            self.began = time.perf_counter()

    def stepped(self, *_) -> None:
        """After each step of the sampler."""
        _synchronize()
        self.ends.append(time.perf_counter())
        self.progress()
        if self.deadline is not None and self.ends[-1] > self.deadline:
            raise model_management.InterruptProcessingException()

    def step_seconds(self) -> tuple[float, ...]:
        """Of each step so far."""
        return tuple(end - start for start, end in zip([self.began, *self.ends], self.ends))


def run(method: Method, latent: Tensor | NestedTensor, conditionings: tuple, cfg: float, clock: Clock) -> Run:
    """Sample as ComfyUI's KSampler node does: euler, simple, from pure noise."""
    positive, negative = conditionings
    latent = comfy.sample.fix_empty_latent_channels(method.model, latent)
    noise = comfy.sample.prepare_noise(latent, SEED)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    network, samples = method.model.model.diffusion_model, None
    began = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(network.register_forward_pre_hook(clock.evaluated).remove)
        stack.enter_context(torch.inference_mode())
        stack.enter_context(method.active())
        try:
            samples = comfy.sample.sample(
                *(method.model, noise, method.steps, cfg, SAMPLER, SCHEDULER, positive, negative, latent),
                **{"denoise": 1.0, "callback": clock.stepped, "disable_pbar": True, "seed": SEED},
            )
            _synchronize()
        except model_management.InterruptProcessingException:
            pass  # the deadline: the steps so far count
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    finite = None if samples is None else all(bool(torch.isfinite(part).all()) for part in _streams(samples))
    return Run(clock.step_seconds(), seconds, clock.evaluations, peak, finite)


def _streams(samples: Tensor | NestedTensor) -> Sequence[Tensor]:
    return samples.unbind() if samples.is_nested else (samples,)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
