"""What SVG-EAR GPU Check found out about a GPU: times of calls, and the tiles that suit it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch

from ...kernels.tuning import Tiles
from .break_even import at_density, at_heads, break_even
from .version import pack_version


@dataclass(frozen=True)
class Card:
    """What timings belong to: a GPU, the versions that ran on it, and the dense attention that was set."""

    name: str
    capability: str
    torch: str
    triton: str
    pack: str
    dense: str

    @classmethod
    def of(cls, device: torch.device, dense: str) -> Card:
        """The GPU ``device`` as it is now, and what dense attention is called."""
        capability = torch.cuda.get_device_capability(device)
        triton = import_module("triton").__version__ if find_spec("triton") else "none"
        return cls(torch.cuda.get_device_name(device), "{}.{}".format(*capability), torch.__version__, triton, pack_version(), dense)

    def is_same_gpu(self, other: Card) -> bool:
        """Whether both are of one kind of GPU with one dense attention, whatever versions ran on it."""
        return (self.name, self.capability, self.dense) == (other.name, other.capability, other.dense)

    def __str__(self):
        versions = f"torch {self.torch}, Triton {self.triton}, svg-ear {self.pack}"
        return f"{self.name} (compute capability {self.capability}), {versions}, dense attention {self.dense}"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of an attention call of one size, batch 1, head dimension 128.

    Attributes:
        heads, tokens: of the call.
        dense: dense attention as it was set.
        sparse: by density, those that were measured.
        others: other dense attention by name.
    """

    heads: int
    tokens: int
    dense: float
    sparse: dict[float, float]
    others: dict[str, float]


@dataclass(frozen=True)
class Findings:
    """What one check of a GPU found.

    Attributes:
        card: what it was found on.
        timings: by heads and tokens.
        attend, probe: the tiles that suit it, None where none were tried.
    """

    card: Card
    timings: tuple[Timing, ...]
    attend: tuple[Tiles, ...] | None = None
    probe: Tiles | None = None

    @property
    def heads(self) -> list[int]:
        """The numbers of heads that were measured."""
        return sorted({timing.heads for timing in self.timings if timing.sparse})

    @property
    def densities(self) -> list[float]:
        """The densities that were measured."""
        return sorted({density for timing in self.timings for density in timing.sparse})

    def longest(self, heads: int) -> int:
        """The longest length that was measured with so many heads."""
        return max(timing.tokens for timing in self.timings if timing.heads == heads and timing.sparse)

    def measured(self, heads: int, density: float) -> float:
        """The break-even with ``heads`` heads at ``density``, both of those that were measured; see :func:`break_even`."""
        return break_even(
            (timing.tokens, timing.dense, timing.sparse[density])
            for timing in self.timings
            if timing.heads == heads and density in timing.sparse
        )

    def least_tokens(self, heads: int, density: float, cautious: int) -> int:
        """Tokens from which on a call pays, between and beyond what was measured.

        Where dense was the faster one at every length, it stays so up to the longest, and at least up to ``cautious`` tokens.
        """
        lengths = []
        for some in self.heads:
            found = at_density([(share, self.measured(some, share)) for share in self.densities], density)
            lengths.append((some, max(self.longest(some) + 1, cautious) if math.isinf(found) else found))
        return math.ceil(at_heads(lengths, heads)) if lengths else cautious
