"""What stands for a key cluster where it is not computed exactly."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..tuning import launched
from ..types import SortedKeys, Summaries
from .launches import Kernel

SUMMARIZE = launched(ROWS=32, STAGES=3, num_warps=4)


@Kernel
@triton.jit(do_not_specialize=["tokens", "clusters"], do_not_specialize_on_alignment=["offsets", "norms", "dots"])
def _summarize(
    v, offsets, means, log_sizes, norms, dots,
    tokens, clusters,
    D: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The mean value and log size of one cluster of one head, and the products of its values with themselves and with the mean."""
    i_c, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_start = tl.load(offsets + i_h * (clusters + 1) + i_c)
    i_stop = tl.load(offsets + i_h * (clusters + 1) + i_c + 1)
    o_d = tl.arange(0, D)  # [D]
    b_sum = tl.zeros([ROWS, D], tl.float32)  # [R, D]
    for i_r in tl.range(i_start, i_stop, ROWS, num_stages=STAGES):
        o_r = i_r + tl.arange(0, ROWS)  # [R]
        m_r = o_r < i_stop  # [R]
        b_v = tl.load(v + (i_h * tokens + o_r)[:, None] * D + o_d, m_r[:, None], other=0.0).to(tl.float32)  # [R, D]
        tl.store(norms + i_h * tokens + o_r, tl.sum(b_v * b_v, 1), m_r)
        b_sum += b_v
    b_mean = tl.sum(b_sum, 0) / tl.maximum(i_stop - i_start, 1).to(tl.float32)  # [D]
    tl.store(means + (i_h * clusters + i_c) * D + o_d, b_mean)
    n_rows = (i_stop - i_start).to(tl.float32)
    tl.store(log_sizes + i_h * clusters + i_c, tl.where(n_rows > 0, tl.log(n_rows), float("-inf")))
    for i_r in tl.range(i_start, i_stop, ROWS, num_stages=STAGES):
        o_r = i_r + tl.arange(0, ROWS)  # [R]
        m_r = o_r < i_stop  # [R]
        b_v = tl.load(v + (i_h * tokens + o_r)[:, None] * D + o_d, m_r[:, None], other=0.0).to(tl.float32)  # [R, D]
        tl.store(dots + i_h * tokens + o_r, tl.sum(b_v * b_mean[None, :], 1), m_r)


def summarize(sorted_keys: SortedKeys) -> Summaries:
    """Mean key and value of every cluster, log sizes, and products of each value with itself and with the mean, all in float32."""
    clusters, values = sorted_keys.clusters, sorted_keys.values
    batch, heads, length, dim = values.shape
    count = clusters.sizes.shape[-1]
    value_means = values.new_empty(batch, heads, count, dim, dtype=torch.float32)
    log_sizes = values.new_empty(batch, heads, count, dtype=torch.float32)
    value_norms, value_dots = values.new_empty(2, batch, heads, length, dtype=torch.float32).unbind()
    _summarize[(count, batch * heads)](
        values, clusters.offsets, value_means, log_sizes, value_norms, value_dots,
        length, count,
        D=dim, **SUMMARIZE,
    )  # fmt: skip
    return Summaries(
        key_means=clusters.centroids,
        value_means=value_means,
        log_sizes=log_sizes,
        value_norms=value_norms,
        value_dots=value_dots,
    )
