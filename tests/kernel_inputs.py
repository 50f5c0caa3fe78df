"""Inputs that have the structure sparse attention lives on, and one call of every stage over them."""

from dataclasses import dataclass

import torch
from svg_ear.kernels import Settings
from svg_ear.kernels.torch_stages.cluster import cluster
from svg_ear.kernels.torch_stages.permute import permute
from svg_ear.kernels.torch_stages.probe import probe_tokens
from svg_ear.kernels.torch_stages.route import route
from svg_ear.kernels.torch_stages.summarize import summarize
from svg_ear.kernels.types import Conditioning


def clustered(tokens, batch=1, heads=2, dim=64, topics=12, spread=0.5, seed=0, dtype=torch.float64):
    """Random q, k, v ``[B, H, N, D]`` around shared topics, so that keys of a topic belong to its queries."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    topic = torch.randint(topics, (batch, heads, tokens), generator=generator)
    centers = normal(batch, heads, topics, dim) * 1.5
    shared = torch.take_along_dim(centers, topic[..., None], dim=2)
    q, k, v = (shared + spread * normal(batch, heads, tokens, dim) for _ in range(3))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def relative_error(value, expected):
    """Norm of the difference over the norm of what was expected."""
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


@dataclass
class Stages:
    """Every intermediate value of one call, computed by the stages under test."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    settings: Settings
    extra: int = 0
    group_count: int = 5
    key_count: int = 11

    def __post_init__(self):
        video = slice(0, self.q.shape[2] - self.extra)
        rest = slice(video.stop, None)
        self.scale = self.q.shape[-1] ** -0.5
        self.queries, self.keys, self.values = (tensor[:, :, video] for tensor in (self.q, self.k, self.v))
        self.conditioning = Conditioning(self.k[:, :, rest], self.v[:, :, rest])
        self.groups = cluster(self.queries, self.group_count, 3)
        self.clusters = cluster(self.keys, self.key_count, 3)
        self.sorted_keys = permute(self.keys, self.values, self.clusters)
        self.summaries = summarize(self.sorted_keys)
        self.probe = probe_tokens(
            self.groups.centroids, self.sorted_keys, self.conditioning, self.summaries, self.settings.weights_centroids, self.scale
        )
        self.routing = route(self.probe, self.clusters, self.settings)


def stages(settings=Settings(density=0.3), tokens=157, extra=0, **options):
    """Run all stages but the last on ``tokens`` video tokens and ``extra`` conditioning tokens behind them."""
    counts = {name: options.pop(name) for name in ("group_count", "key_count") if name in options}
    return Stages(*clustered(tokens + extra, **options), settings, extra, **counts)
