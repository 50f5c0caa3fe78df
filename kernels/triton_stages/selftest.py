"""Whether Triton can compile and run anything here."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..tuning import launched


@triton.jit
def _double(x, SIZE: tl.constexpr):
    o_x = tl.arange(0, SIZE)
    tl.store(x + o_x, 2 * tl.load(x + o_x))


def failure(device: torch.device) -> str | None:
    """What goes wrong with a small kernel on ``device``, None when it gives the right result.

    Triton compiles at run time, with a C compiler for its launcher: whether that works on a machine shows only by trying.
    """
    x = torch.ones(16, device=device)
    try:
        with torch.cuda.device(device):
            _double[(1,)](x, **launched(SIZE=16, num_warps=4))
    except Exception as error:
        return f"Triton {triton.__version__} cannot compile or run a kernel: {type(error).__name__}: {error}"
    return None if bool((x == 2).all()) else f"Triton {triton.__version__} gives wrong results on this GPU"
