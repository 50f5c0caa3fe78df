"""What kernels share that multiply queries and keys in int8.

From a product of int8 :data:`START` is taken, which is negative. Its bits, read as float32, are then :data:`ZERO` plus the integer, which
is exact below 2^22 and takes no conversion: 128 products of 127 times 127 are half of that. Where :data:`UNSEEN` is taken the same bits are
some -1.7e38, whatever the integer: a key that nobody sees.
"""

import triton
import triton.language as tl

START = tl.constexpr(-0x4B400000)
ZERO = tl.constexpr(12582912.0)
UNSEEN = tl.constexpr(0x01000000)
# Least factor of a product: the logit of a key that nobody sees must stay far below all others.
LEAST = tl.constexpr(1.0e-30)


@triton.jit
def factor_of(b_scale):
    """``b_scale``, or the least factor that can be told from nothing; what is no number stays."""
    return tl.where(b_scale < LEAST, LEAST, b_scale)


@triton.jit
def multiply(b_q, b_k, b_start):
    """Products of int8 q [R, D] and k [K, D] from minus ``b_start`` [K] on, as float32 [R, K] around ZERO."""
    # Taken off behind the product: what is added Triton takes for what the product begins with, and where another product is still on
    # its way ptxas then waits for every wgmma by itself.
    return (tl.dot(b_q, tl.trans(b_k), out_dtype=tl.int32) - b_start[None, :]).to(tl.float32, bitcast=True)
