"""Keys into cluster order as int8, and queries as int8, so that their products take half the time.

No softmax notices that one vector, the same for all keys of a head, is taken from them, nor products of queries and keys that both
are rotated. The vector is the middle of what the keys reach in each direction, so that a scale for each head loses the least; the
rotation spreads what a few channels have over all.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..behind import followed_by_zeros
from ..numerics import LARGEST_INT8, compute_dtype, inverse_or_zero, weighed_in
from ..types import Clusters, Conditioning, Quantized, SortedKeys, Summaries
from .chunks import row_slices
from .cluster import gather_rows


def quantize(queries: Tensor, keys: Tensor, values: Tensor, clusters: Clusters, extra: Tensor, groups: Clusters) -> SortedKeys:
    """Keys in int8 and values into cluster order, and in int8 whatever else products of queries and keys are made of.

    Values of float16 become bfloat16 on a GPU, see :func:`~..numerics.weighed_in`.

    Args:
        queries, keys, values: ``[B, H, N, D]``, any strides; queries may be fewer or more.
        clusters: of the keys.
        extra: conditioning keys ``[B, H, T, D]``.
        groups: of the queries.
    """
    dtype = compute_dtype(keys.dtype)
    middles, scales = _ranges(keys, dtype)
    sorted_keys = torch.empty_like(keys, dtype=torch.int8, memory_format=torch.contiguous_format)
    for rows in row_slices(keys.shape[2], keys[:, :, :1].numel(), keys.device):
        some = rotated(gather_rows(keys, clusters.order[:, :, rows]), dtype) - middles
        sorted_keys[:, :, rows] = _rounded(some, scales[:, :, None, None])
    queries_8, query_scales = queries.new_empty(queries.shape, dtype=torch.int8), queries.new_empty(queries.shape[:3], dtype=dtype)
    for rows in row_slices(queries.shape[2], queries[:, :, :1].numel(), queries.device):
        queries_8[:, :, rows], query_scales[:, :, rows] = quantized_rows(rotated(queries[:, :, rows], dtype))
    key_means = rotated(clusters.rounded_to(keys.dtype), dtype) - middles
    products = Quantized(
        *(_rounded(key_means, scales[:, :, None, None]), scales),
        *quantized_rows(rotated(extra, dtype) - middles),
        *quantized_rows(rotated(groups.rounded_to(keys.dtype), dtype)),
        *(queries_8, query_scales),
    )
    sorted_values = gather_rows(values, clusters.order).to(weighed_in(values.dtype, values.device))
    return SortedKeys(followed_by_zeros(sorted_keys), followed_by_zeros(sorted_values), clusters, products)


def rotated(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """``rows`` ``[..., D]`` times an orthogonal matrix of Walsh-Hadamard blocks, as large as the powers of two that divide D."""
    dim = rows.shape[-1]
    place = torch.arange(dim, device=rows.device)
    size = dim & -dim
    common = place[:, None] & place & (size - 1)
    parity = torch.zeros_like(common)
    for bit in range(size.bit_length()):
        parity ^= common >> bit & 1
    within = place[:, None] // size == place // size
    return rows.to(dtype) @ (within * (1 - 2 * parity)).to(dtype) * size**-0.5


def quantized_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of ``rows`` ``[..., D]``, and the scale of each."""
    scales = rows.abs().amax(-1) / LARGEST_INT8
    return _rounded(rows, scales[..., None]), scales


def dequantized(
    mean_queries: Tensor, sorted_keys: SortedKeys, conditioning: Conditioning, summaries: Summaries
) -> tuple[Tensor, Conditioning, Summaries]:
    """The arguments of the stages behind with what int8 leaves of mean queries, keys of the conditioning, and mean keys.

    They are given back as they are where keys are in full precision.
    """
    quantized = sorted_keys.quantized
    if quantized is None:
        return mean_queries, conditioning, summaries
    key_means = quantized.key_means * quantized.key_scales[:, :, None, None]
    extra = quantized.extra * quantized.extra_scales[..., None]
    mean_queries = quantized.mean_queries * quantized.mean_query_scales[..., None]
    return mean_queries, replace(conditioning, keys=extra), replace(summaries, key_means=key_means)


def _ranges(keys: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The middle of all rotated ``keys`` in every direction, ``[B, H, 1, D]``, and the scale of the farthest from it, ``[B, H]``."""
    high, low = (keys.new_full((*keys.shape[:2], 1, keys.shape[3]), sign * torch.inf, dtype=dtype) for sign in (-1, 1))
    for rows in row_slices(keys.shape[2], keys[:, :, :1].numel(), keys.device):
        some = rotated(keys[:, :, rows], dtype)
        high, low = high.maximum(some.amax(2, keepdim=True)), low.minimum(some.amin(2, keepdim=True))
    return (high + low) / 2, (high - low).amax((2, 3)) / (2 * LARGEST_INT8)


def _rounded(rows: Tensor, scales: Tensor) -> Tensor:
    # A cluster without members keeps a centroid that need not lie within the range.
    return (rows * inverse_or_zero(scales)).round().clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8)
