"""Where the Triton tests run and what they run on: a GPU, or Triton's interpreter on the CPU."""

import pytest
import torch
from kernel_inputs import clustered

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# The interpreter computes bfloat16 wrongly.
DTYPES = (torch.float16, torch.float32, *((torch.bfloat16,) if GPU else ()))
# The last takes several tiles; the interpreter a second for every hundred tokens.
LENGTHS = (1, 63, 64, 65, 1000 if GPU else 300)
LAYOUTS = ("heads first", "tokens first", "apart")

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
lengths = pytest.mark.parametrize("tokens", LENGTHS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def inputs(tokens, dtype=torch.float16, **options):
    """q, k, v of :func:`clustered` on the device under test."""
    return [tensor.to(DEVICE) for tensor in clustered(tokens, dtype=dtype, **options)]


def arranged(tensor, layout):
    """The same ``[B, H, N, D]`` in the memory layout of a caller."""
    if layout == "tokens first":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "apart":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    return tensor.contiguous()


def separated(tokens, dtype, points=15, heads=2, batch=2, dim=64):
    """Tokens ``[B, H, N, D]`` around ``points`` ``[B, H, C, D]``, far enough apart for any precision."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape):
        return torch.randn(batch, heads, *shape, dim, generator=generator, dtype=torch.float64)

    centres = 4 * normal(points)
    choice = torch.randint(points, (batch, heads, tokens), generator=generator)
    members = torch.take_along_dim(centres, choice[..., None], dim=2) + 0.1 * normal(tokens)
    return members.to(DEVICE, dtype), centres.to(DEVICE, torch.float32)
