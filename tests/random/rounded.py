"""What int8 leaves of queries and keys, in float64, and how far from it another order of sums may take them."""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127
# Roundings of a scale and of its inverse.
OF_SCALES = 16


def rotation(dim):
    """Sylvester's Hadamard matrices ``[dim, dim]`` along the diagonal, as large as the powers of two that divide ``dim``, orthogonal."""
    block = torch.ones(1, 1, dtype=torch.float64)
    while dim % (2 * len(block)) == 0:
        block = torch.cat((torch.cat((block, block), 1), torch.cat((block, -block), 1))) * 0.5**0.5
    return torch.block_diag(*[block] * (dim // len(block)))


@dataclass(frozen=True)
class Turned:
    """Rows ``[..., N, D]`` times the rotation, and how far rounding may have taken each element."""

    rows: Tensor
    off: Tensor

    @classmethod
    def of(cls, rows, work):
        turn = rotation(rows.shape[-1])
        return cls(rows @ turn, 2 * (rows.shape[-1] + 4) * work * (rows.abs() @ turn.abs()))

    def minus(self, other, work):
        """Without ``other`` of one row."""
        rows = self.rows - other.rows
        return Turned(rows, self.off + other.off + work * rows.abs())


@dataclass(frozen=True)
class Rounded:
    """Rows as int8 leaves them ``[..., N, D]``, how far off an element may be, and what an integer is worth ``[..., N or 1, 1]``."""

    rows: Tensor
    off: Tensor
    steps: Tensor

    @classmethod
    def of(cls, turned, scales, scales_off):
        """With ``scales``, which may be off by ``scales_off``."""
        inverse = torch.where(scales > 0, 1 / scales, 0)
        exact = turned.rows * inverse
        # Where a scale may be nothing at all, so may all integers be any.
        unsure = torch.where(scales > 2 * scales_off, (turned.off + exact.abs() * 2 * scales_off) * inverse, torch.inf)
        lowest, found, highest = (_integers(value) for value in (exact - unsure, exact, exact + unsure))
        off = (highest - found).maximum(found - lowest) * (scales + scales_off) + LARGEST * scales_off
        return cls(found * scales, off, scales + scales_off)


def _integers(values):
    return values.round().clamp(-LARGEST, LARGEST)


def middle_of(keys, work):
    """The middle of what :class:`Turned` keys reach in every direction, one row; a head's scale around it, and how far off that is."""
    high, low, off = keys.rows.amax(2, keepdim=True), keys.rows.amin(2, keepdim=True), keys.off.amax(2, keepdim=True)
    middle = Turned((high + low) / 2, off + work * (high.abs() + low.abs()))
    scales = (high - low).amax(-1, keepdim=True) / (2 * LARGEST)
    return middle, scales, 2 * middle.off.amax(-1, keepdim=True) / LARGEST + OF_SCALES * work * scales


def by_row(turned, work):
    """Rows with a scale for each."""
    scales = turned.rows.abs().amax(-1, keepdim=True) / LARGEST
    return Rounded.of(turned, scales, turned.off.amax(-1, keepdim=True) / LARGEST + OF_SCALES * work * scales)


def logits_off(queries, keys, visible):
    """How far a product of :class:`Rounded` queries and keys may be off, for each query ``[..., N, 1]``; of keys that are ``visible``."""
    found = queries.rows.abs() @ keys.off.mT + queries.off @ (keys.rows.abs() + keys.off).mT
    # A product is taken from a number that is large, and kept to an integer of it.
    found = found + 2 * queries.steps * keys.steps.mT
    return torch.where(visible, found, 0).amax(-1, keepdim=True)
