"""Tables of bits: eight to a byte, counted, compared."""

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
