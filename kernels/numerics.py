"""Precision and safe arithmetic."""

import math

import torch
from torch import Tensor

# Kernels take exponentials in base 2.
LOG2_E = math.log2(math.e)
# The other sign has one more, which is left out.
LARGEST_INT8 = 127


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of all arithmetic: float64 for float64 input, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def weighed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What values of ``dtype`` become where queries and keys are int8.

    The kernel's weights are then relative to what is expected of them, and float16 holds none that is far from that. On a CPU, whose
    interpreter of kernels computes no bfloat16, float32 takes its place.
    """
    if dtype != torch.float16:
        return dtype
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def inverse_or_zero(values: Tensor) -> Tensor:
    """``1 / values``, zero where ``values`` are next to nothing, so that products with the result do not overflow."""
    return torch.where(values > torch.finfo(values.dtype).tiny ** 0.5, 1 / values, 0)


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """The largest relative error of an input of a product: GPUs multiply float32 as tf32, which has 10 bits."""
    if dtype == torch.float32:
        return 2.0**-11 if device.type == "cuda" else 2.0**-20
    return torch.finfo(dtype).eps / 2


def ceil_div(value: int, step: int) -> int:
    """How many steps cover ``value``. Triton's own takes two microseconds, which a call pays dozens of times."""
    return -(-value // step)
