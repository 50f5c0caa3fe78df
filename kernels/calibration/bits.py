"""Tables of bits: eight to a byte, counted in planes, compared."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

ONES = numpy.array([bin(byte).count("1") for byte in range(256)], dtype=numpy.uint8)


def pack(bits: Tensor) -> Tensor:
    """Bool ``[..., n]`` to uint8 ``[..., ceil(n / 8)]``, the first bit lowest."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded << torch.arange(8, device=bits.device, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """uint8 ``[..., ceil(count / 8)]`` to bool ``[..., count]``."""
    bits = packed[..., None] >> torch.arange(8, device=packed.device, dtype=torch.uint8) & 1
    return bits.flatten(-2)[..., :count].bool()


def popcount(packed: numpy.ndarray) -> numpy.ndarray:
    """int64: ones in the last two axes of uint8 ``[..., n, m]``."""
    return ONES[packed].sum(axis=(-2, -1), dtype=numpy.int64)


def jaccard(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Common ones over ones in either of two packed tables ``[n, m]``; one for two empty tables."""
    either = popcount(first | second)
    return float(popcount(first & second) / either) if either else 1.0


class VoteCounts:
    """How many tables had each bit set, in planes of packed bits: memory grows with the logarithm of the votes.

    Attributes:
        votes: tables added so far.
        planes: uint8 arrays of one shape, from the lowest binary digit up.
    """

    def __init__(self):
        self.votes = 0
        self.planes: list[numpy.ndarray] = []

    def add(self, packed: numpy.ndarray) -> None:
        """Count one more table, which is not kept."""
        self.votes += 1
        if self.votes.bit_length() > len(self.planes):
            self.planes.append(numpy.zeros_like(packed))
        carry = packed
        for place, plane in enumerate(self.planes):
            self.planes[place], carry = plane ^ carry, plane & carry

    def at_least(self, least: int) -> numpy.ndarray:
        """The packed table of the bits that ``least`` votes or more had set."""
        above = numpy.zeros_like(self.planes[0])
        equal = ~above
        for place in range(max(len(self.planes), least.bit_length()) - 1, -1, -1):
            plane = self.planes[place] if place < len(self.planes) else numpy.zeros_like(above)
            if least >> place & 1:
                equal = equal & plane
            else:
                above = above | equal & plane
                equal = equal & ~plane
        return above | equal

    def majority(self) -> numpy.ndarray:
        """The bits that at least half of the votes had set; in a row without any, those with the most votes."""
        kept = self.at_least(-(-self.votes // 2))
        for least in range(-(-self.votes // 2) - 1, 0, -1):
            bare = ~kept.any(-1)
            if not bare.any():
                break
            kept = numpy.where(bare[..., None], self.at_least(least), kept)
        return kept

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(plane.nbytes for plane in self.planes)
