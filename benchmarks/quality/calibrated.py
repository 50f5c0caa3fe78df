"""Attention as a calibration says, for the demo model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from .. import pack
from ..demo_model import sample
from ..host import Settings, sparse_attention
from .methods import CountedAttention, Method, Scale

pack.load()
from svg_ear.kernels import BlockRouting  # noqa: E402
from svg_ear.kernels.blocks import BLOCK  # noqa: E402
from svg_ear.kernels.calibration import Profile, read_profile  # noqa: E402

CALIBRATED, COMPENSATED = Settings(method="calibrated", compensate=False), Settings(method="calibrated")
PLAIN_MEANS = Settings(method="calibrated", weighted_centroids=False)


class CalibratedAttention(CountedAttention):
    """The blocks of a profile.

    Args:
        profile: what to compute.
        settings: whether and how the rest is compensated.
        steps: of the sampler.
    """

    def __init__(self, profile: Profile, settings: Settings, steps: int):
        super().__init__()
        self._profile, self._settings, self._sigmas = profile, settings, sample.sigmas(steps).tolist()

    def __call__(self, layer: int, step: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        blocks = self._blocks(layer, step, query, key)
        result = sparse_attention(query, key, value, self._settings, blocks=blocks)
        exact = result.statistics.density.mean().item()
        self.spent.append((exact, exact + blocks_cost(self._settings)))
        return result.output

    def _blocks(self, layer: int, step: int, query: Tensor, key: Tensor) -> BlockRouting:
        return self._profile.routing((layer, 0), self._sigmas[step], query.device)


def blocks_cost(settings: Settings) -> float:
    """What a call costs beside its exact pairs, as a share of all pairs: a centroid in each block, and the probe that weights it."""
    return 0.0 if not settings.compensates else (2 if settings.weights_centroids else 1.5) / BLOCK


def calibrated_methods(path: Path, scale: Scale) -> list[Method]:
    """The profile of ``path`` followed, with and without compensation; ValueError for one of another size."""
    profile = read_profile(path)
    if profile.grid != scale.grid:
        raise ValueError(f"{path} was calibrated for {profile.grid} tokens, and clips have {scale.grid}; calibrate at that size")
    followed = (("calibrated", CALIBRATED), ("calibrated, compensated", COMPENSATED))
    return [Method(name, "", partial(CalibratedAttention, profile, settings, scale.steps)) for name, settings in followed]
