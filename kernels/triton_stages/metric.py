"""The distance by which queries are grouped."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..torch_stages.metric import KEY_WEIGHT
from ..tuning import PRECISE, launched
from ..types import Clusters
from .launches import Kernel

METRIC = launched(ROWS=32, num_warps=8, num_stages=1)


@Kernel
@triton.jit(do_not_specialize=["clusters", "key_weight"])
def _key_metric(
    centroids, sizes, metric,
    clusters, key_weight,
    D: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The covariance of the centroids of one head, of mean eigenvalue 1, mixed with the identity."""
    i_h = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, D)  # [D]
    p_centroids, p_sizes = centroids + i_h * clusters * D, sizes + i_h * clusters
    b_total = tl.zeros([ROWS], tl.float32)  # [R]
    b_sum = tl.zeros([ROWS, D], tl.float32)  # [R, D]
    for i_c in range(0, clusters, ROWS):
        o_c = i_c + tl.arange(0, ROWS)  # [R]
        m_c = o_c < clusters  # [R]
        b_size = tl.load(p_sizes + o_c, m_c, other=0).to(tl.float32)  # [R]
        b_sum += b_size[:, None] * tl.load(p_centroids + o_c[:, None] * D + o_d, m_c[:, None], other=0.0)
        b_total += b_size
    n_tokens = tl.sum(b_total, 0)
    b_mean = tl.sum(b_sum, 0) / n_tokens  # [D]

    b_cov = tl.zeros([D, D], tl.float32)  # [D, D]
    for i_c in range(0, clusters, ROWS):
        o_c = i_c + tl.arange(0, ROWS)  # [R]
        m_c = o_c < clusters  # [R]
        b_weight = tl.load(p_sizes + o_c, m_c, other=0).to(tl.float32) / n_tokens  # [R]
        b_c = tl.load(p_centroids + o_c[:, None] * D + o_d, m_c[:, None], other=0.0)  # [R, D]
        b_spread = tl.where(m_c[:, None], b_c - b_mean[None, :], 0.0)  # [R, D]
        b_cov = tl.dot(tl.trans(b_spread), b_spread * b_weight[:, None], b_cov, input_precision=PRECISION)
    m_same = o_d[:, None] == o_d[None, :]  # [D, D]
    scale = tl.sum(tl.sum(tl.where(m_same, b_cov, 0.0), 1), 0) / D
    b_identity = tl.where(m_same, 1.0, 0.0)  # [D, D]
    # Identical keys have no directions to prefer, and keys whose squares overflow have none that is known.
    has_scale = (scale > 0) & (scale < float("inf"))
    b_mixed = key_weight * b_cov / tl.where(has_scale, scale, 1.0) + (1 - key_weight) * b_identity  # [D, D]
    tl.store(metric + i_h * D * D + o_d[:, None] * D + o_d, tl.where(has_scale, b_mixed, b_identity))


def key_metric(keys: Clusters) -> Tensor:
    """Symmetric float32 ``[B, H, D, D]``: see the torch stage."""
    batch, heads, count, dim = keys.centroids.shape
    metric = torch.empty(batch, heads, dim, dim, dtype=torch.float32, device=keys.centroids.device)
    _key_metric[(batch * heads,)](keys.centroids, keys.sizes, metric, count, KEY_WEIGHT, D=dim, PRECISION=PRECISE, **METRIC)
    return metric
