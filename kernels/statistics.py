"""What a call did, from values that its stages computed anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .types import Clusters, Probe, Routing, Statistics


@dataclass(frozen=True)
class Measured:
    """What is kept of some heads of one batch item. All ``[1, H, G]``.

    Attributes:
        shares: float, exact share of each query group.
        sizes: integer, its queries.
        errors: float, the squared error that the probe expects of its skipped blocks.
        norms: float, the squared norm of its mean query's output.
    """

    shares: Tensor
    sizes: Tensor
    errors: Tensor
    norms: Tensor

    @classmethod
    def of(cls, routing: Routing, probe: Probe, groups: Clusters) -> Measured:
        """From the results of the stages, whose tables are not kept."""
        return cls(routing.shares, groups.sizes, (probe.errors * ~routing.exact).sum(-1), probe.output_norms)


def measure(parts: Sequence[Sequence[Measured]], tokens: int) -> Statistics:
    """Density spent, and the relative error that the probe expects, of each batch item's chunks of heads."""
    shares, sizes, errors, norms = (
        torch.cat([torch.cat([getattr(part, name) for part in item], dim=1) for item in parts])
        for name in ("shares", "sizes", "errors", "norms")
    )
    density = (shares * sizes).sum(-1) / tokens
    relative = (errors * sizes).sum(-1) / (norms * sizes).sum(-1).clamp(min=torch.finfo(errors.dtype).tiny)
    return Statistics(density.float(), shares.float(), relative.sqrt().float())
