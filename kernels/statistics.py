"""What a call did, from values that its stages computed anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .types import Clusters, Probe, Routing, Statistics

# No estimate of an error says more than "useless" above: where hardly any output is left to compare with, or no number.
LARGEST_ERROR = 1000.0
_LARGEST = torch.tensor(LARGEST_ERROR)


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
        # Not a product, which is no number where an exact block has no finite error.
        errors = probe.errors.masked_fill(routing.exact, 0).sum(-1) if routing.skipped_errors is None else routing.skipped_errors
        return cls(routing.shares, groups.sizes, errors, probe.output_norms)

    @classmethod
    def all_of(cls, tensors: Sequence[Tensor]) -> list[Measured]:
        """What :meth:`tensors` of several, one behind the other, are of."""
        each = len(fields(cls))
        return [cls(*tensors[first : first + each]) for first in range(0, len(tensors), each)]

    def tensors(self) -> list[Tensor]:
        """All that is kept."""
        return [getattr(self, entry.name) for entry in fields(self)]


def measure(parts: Sequence[Measured], batch: int, tokens: int) -> Statistics:
    """Density spent, and the relative error that the probe expects, of ``batch`` items in chunks of heads, one after the other."""
    figures, sizes = (
        torch.cat([getattr(part, name) for name in names for part in parts], dim=1).view(len(names), batch, -1, parts[0].sizes.shape[-1])
        for names in (("shares", "errors", "norms"), ("sizes",))
    )
    density, errors, norms = (figures * sizes).sum(-1)
    relative = (errors / norms.clamp(min=torch.finfo(errors.dtype).tiny)).sqrt_()
    # The number of the two where the other is none.
    return Statistics((density / tokens).float(), figures[0].float(), torch.fmin(relative, _LARGEST).float())
