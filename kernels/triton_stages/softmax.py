"""The step that every attention loop shares."""

import triton
import triton.language as tl

from ..numerics import LOG2_E

# Inside kernels, which see no plain numbers of a module.
TO_BASE_2 = tl.constexpr(LOG2_E)


@triton.jit
def softmax_step(b_q, b_k, b_v, b_bias, scale, b_acc, b_peak, b_sum):
    """One tile of keys in the online softmax, in base 2: q [R, D]; k, v [K, D]; bias [K]; acc [R, D]; peak, sum [R]."""
    b_s = tl.dot(b_q, tl.trans(b_k)) * scale + b_bias[None, :]  # [R, K]
    return softmax_add(b_s, b_v, b_acc, b_peak, b_sum)


@triton.jit
def awaited(b_acc):
    """``b_acc``, for which Triton waits.

    No instruction, but Triton lets no product run on whose result is used otherwise. Where ptxas finds an accumulator in use that is still
    on its way, it has every wgmma wait for the one before.
    """
    return b_acc.to(tl.int32, bitcast=True).to(tl.float32, bitcast=True)


@triton.jit
def softmax_add(b_s, b_v, b_acc, b_peak, b_sum):
    """The same from the logits [R, K] on."""
    b_new = tl.maximum(b_peak, tl.max(b_s, 1))  # [R]
    b_p = tl.exp2(b_s - b_new[:, None])  # [R, K]
    b_shrink = tl.exp2(b_peak - b_new)  # [R]
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_shrink[:, None])  # [R, D]
    return b_acc, b_new, b_sum * b_shrink + tl.sum(b_p, 1)
