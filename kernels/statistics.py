"""What a call did, from values that its stages computed anyway."""

from __future__ import annotations

import torch

from .types import Clusters, Probe, Routing, Statistics


def measure(routing: Routing, probe: Probe, groups: Clusters) -> Statistics:
    """Density spent, and the relative error that the probe expects of the skipped blocks."""
    density = (routing.shares * groups.sizes).sum(-1) / groups.labels.shape[-1]
    error = (probe.errors * ~routing.exact).sum(-1)
    tiny = torch.finfo(error.dtype).tiny
    relative = (error * groups.sizes).sum(-1) / (probe.output_norms * groups.sizes).sum(-1).clamp(min=tiny)
    return Statistics(density.float(), routing.shares.float(), relative.sqrt().float())


def join(parts: dict[tuple[int, int], Statistics], batch: int) -> Statistics:
    """Statistics of all heads from those of the chunks, which are keyed by (batch item, first head)."""

    def joined(name: str) -> torch.Tensor:
        items = [[getattr(part, name) for (b, _), part in sorted(parts.items()) if b == item] for item in range(batch)]
        return torch.cat([torch.cat(chunks, dim=1) for chunks in items])

    return Statistics(*(joined(name) for name in ("density", "group_shares", "estimated_error")))
