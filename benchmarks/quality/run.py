"""One clip of one method, compared with the dense clip of the same noise, conditioning and schedule."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..demo_model import sample
from ..host import AttentionHost
from .methods import Method, Scale
from .metrics import flicker_psnr, gradient_deviation, psnr, ssim

DENSE_BLOCKS = (0,)


class MeasuredHost(AttentionHost):
    """Compares every sparse call with dense attention on the same inputs, outside of its time, where ``compares``.

    Attributes:
        errors: layer, step, and norm of the difference over the norm of dense attention, on the device.
    """

    def __init__(self, transformer, method: Method, scale: Scale, compares: bool = True):
        attention = method.start() if method.start else None
        dense_steps = scale.dense_steps if method.dense_steps is None else method.dense_steps
        super().__init__(transformer, attention, dense_steps, DENSE_BLOCKS)
        self._plan, self._compares = method.plan, compares
        self.errors: list[tuple[int, int, Tensor]] = []

    def is_sparse(self, layer: int) -> bool:
        """As :class:`AttentionHost`, or as the method's plan says."""
        return super().is_sparse(layer) if self._plan is None else self._plan.share(layer, self.step) < 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
        """As :class:`AttentionHost`."""
        output = super().attend(layer, query, key, value, **options)
        if self._compares and self.is_sparse(layer):
            expected = self._dense_attention(query, key, value, **options).float()
            self.errors.append((layer, self.step, (output.float() - expected).norm() / expected.norm()))
        return output

    def costs(self) -> dict[str, float]:
        """Means over the sparse calls, and ``attention_cost``: all multiply-adds over those of the dense clip."""
        spent = self.attention.spent if self.attention else []
        exact, effective = (sum(column) for column in zip(*spent)) if spent else (0.0, 0.0)
        sparse = self.calls - self.dense_calls
        return {
            "exact_share": exact / sparse if sparse else 1.0,
            "effective_density": effective / sparse if sparse else 1.0,
            "attention_cost": (self.dense_calls + effective) / self.calls,
        }


@dataclass(frozen=True)
class Clip:
    """Frames ``[T, H, W, 3]`` of a generated clip on its device, and the host that attended."""

    frames: Tensor
    host: MeasuredHost
    seconds: float


def generate(transformer, method: Method, scale: Scale, seed: int, progress: Callable[[], None], compares: bool = True) -> Clip:
    """Sample one clip; ``progress`` is called after each step. For ``compares`` see :class:`MeasuredHost`."""
    host = MeasuredHost(transformer, method, scale, compares)

    def stepped(step: int, steps: int) -> None:
        host.step = step
        progress()

    began = time.perf_counter()
    latents = sample.sample(transformer, seed, scale.grid, steps=scale.steps, guidance=scale.guidance, progress=stepped)
    frames = sample.decode(latents)
    return Clip(frames.to(latents.device), host, time.perf_counter() - began)


def figures(clip: Clip, reference: Clip) -> dict[str, object]:
    """The measured columns of a row. Distances of the dense clip from itself stay empty."""
    found: dict[str, object] = {name: f"{value:.4f}" for name, value in clip.host.costs().items()}
    pair = clip.frames, reference.frames
    for distance, digits in ((psnr, 2), (ssim, 4), (gradient_deviation, 4), (flicker_psnr, 2)):
        name = f"{distance.__name__}_db" if distance in (psnr, flicker_psnr) else distance.__name__
        found[name] = "" if clip is reference else f"{distance(*pair):.{digits}f}"
    errors = [error for _, _, error in clip.host.errors]
    found["attention_error"] = f"{torch.stack(errors).mean().item():.4f}" if errors else ""
    return found | {"attention_seconds": f"{clip.host.seconds:.2f}", "total_seconds": f"{clip.seconds:.2f}"}


def errors_by_layer(clip: Clip) -> list[dict[str, object]]:
    """Relative errors of attention outputs: a row for each layer that ran sparse, a column for each step."""
    rows: dict[int, dict[str, object]] = {}
    for layer, step, error in clip.host.errors:
        rows.setdefault(layer, {"layer": layer})[f"step {step}"] = f"{error.item():.4f}"
    return list(rows.values())
