"""Precision and safe arithmetic."""

import math

import torch
from torch import Tensor

# Kernels take exponentials in base 2.
LOG2_E = math.log2(math.e)
# A row that leaves far more to compensation than its centroid does is unlike it: beyond this many times the centroid's
# share its correction stops growing. Without a bound, a centroid that compensates almost nothing is extrapolated
# without limit (a relative error of 2.4 instead of 0.33 at logits of 60).
RESIDUAL_REACH = 4.0
# A centroid that compensates less than this part of its softmax has nothing to correct.
SMALLEST_SHARE = 1e-18


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of all arithmetic: float64 for float64 input, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def inverse_or_zero(values: Tensor) -> Tensor:
    """``1 / values``, zero where ``values`` are next to nothing, so that products with the result do not overflow."""
    return torch.where(values > torch.finfo(values.dtype).tiny ** 0.5, 1 / values, 0)
