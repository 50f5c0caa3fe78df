"""One clip of the trained demo model with one method, and the sizes of clips to choose from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from ..demo_model import sample
from ..host import AttentionHost, PackAttention, RoutedHeads, Settings

SVG_EAR = Settings(density=0.1)
PUBLISHED = replace(SVG_EAR, weighted_centroids=False, key_metric=False, kmeans_candidates=0)
SVG2 = replace(PUBLISHED, method="svg2")


@dataclass(frozen=True)
class Scale:
    """How large a clip is.

    Attributes:
        grid: tokens ``(t, h, w)``.
        steps: of denoising.
        dense_steps: first steps that stay dense.
        guidance: 1 is none.
        cost: time of the clips of all methods, beside those of the device's largest scale.
    """

    grid: tuple[int, int, int]
    steps: int
    dense_steps: int
    guidance: float
    cost: float

    def __str__(self):
        return f"{math.prod(self.grid):,} video tokens, {self.steps} steps ({self.dense_steps} of them and layer 0 dense)"


# Those of a device, the largest first.
SCALES = {
    "cpu": (
        Scale((9, 15, 26), 5, 2, 1.0, 1.0),
        Scale((7, 12, 18), 4, 1, 1.0, 0.41),
        Scale((5, 10, 14), 4, 1, 1.0, 0.18),
        Scale((3, 10, 14), 3, 1, 1.0, 0.08),
    ),
    "cuda": (Scale(sample.MEDIUM_GRID, 12, 3, 1.0, 1.0),),
}


@dataclass(frozen=True)
class Clip:
    """A generated clip: uint8 frames ``[T, H, W, 3]`` and what it took."""

    frames: torch.Tensor
    density: float
    attention_seconds: float
    total_seconds: float


class KeyShareMap:
    """Mean share of queries that saw each token exactly, over all sparse layers, steps and heads."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def __call__(self, layer: int, step: int, routed: RoutedHeads) -> None:
        self.total = self.total + routed.key_shares().mean(0)
        self.count += 1

    def on_grid(self, grid: tuple[int, int, int]) -> np.ndarray:
        """The mean as float32 ``[t, h, w]``."""
        return (self.total / self.count).cpu().numpy().reshape(grid)


def generate(
    transformer,
    scale: Scale,
    seed: int,
    label: str,
    settings: Settings | None,
    observe=None,
    after_step: Callable[[], None] = lambda: None,
) -> Clip:
    """Sample one clip with a progress bar; dense without ``settings``."""
    attention = PackAttention(settings, observe) if settings else None
    host = AttentionHost(transformer, attention, scale.dense_steps, dense_blocks=(0,))
    with tqdm(total=scale.steps, desc=f"{label:<24}", unit="step", leave=True) as bar:

        def progress(step: int, steps: int) -> None:
            host.step = step
            bar.update()
            after_step()

        began = time.perf_counter()
        latents = sample.sample(transformer, seed, scale.grid, steps=scale.steps, guidance=scale.guidance, progress=progress)
        frames = sample.decode(latents)
    return Clip(frames, attention.density if attention else 1.0, host.seconds, time.perf_counter() - began)
