"""What the mean query of every group sees of every key cluster."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..numerics import LOG2_E, ceil_div
from ..strides import head_stride
from ..torch_stages.probe import probe_centroids
from ..tuning import launched, probe_tiles
from ..types import Conditioning, Probe, SortedKeys, Summaries, WeightedCentroids
from .int8 import START, UNSEEN, ZERO, factor_of, multiply
from .launches import Kernel
from .softmax import TO_BASE_2, awaited, softmax_add, softmax_step
from .tiles import cut, load_tile

__all__ = ["probe_centroids", "probe_tokens"]

# Key clusters that one program walks: enough to hide the loads of one behind another.
CLUSTERS_AT_ONCE = 8
DENOMINATORS = launched(GROUPS=16, CLUSTERS=64, num_warps=4, num_stages=2)
RELATE = launched(GROUPS=32, CLUSTERS=32, num_warps=4, num_stages=1)


@Kernel
@triton.jit(
    do_not_specialize=["scale", "groups", "clusters", "keys", "tile_count", "clusters_at_once"],
    do_not_specialize_on_alignment=["query_scales", "key_scales", "norms", "dots", "tiles", "tile_bounds"],
)
def _probe(
    centroids, query_scales, k, key_scales, v, norms, dots,
    tiles, tile_bounds,
    seen, own_values,
    scale, groups, clusters, keys, tile_count, clusters_at_once,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, OWN: tl.constexpr, STAGES: tl.constexpr,
    INT8: tl.constexpr,
):  # fmt: skip
    """ROWS mean queries of one head over some key clusters: sums over the keys of each and, if OWN, its weighted mean value.

    ``seen`` ``[H, C, 4, G]`` has the largest logit, and relative to it the sum of the weights, of squares and of products.

    With INT8 logits and their peaks are in units of ``b_factor`` and around ZERO until they are stored.

    One loop walks the tiles of all these clusters, so that the keys of the next are on their way while this one is computed.
    """
    i_tile, i_part, i_h = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_row = i_tile * ROWS + tl.arange(0, ROWS)  # [R]
    m_row = o_row < groups  # [R]
    o_d = tl.arange(0, D)  # [D]
    o_key = tl.arange(0, KEYS)  # [K]
    b_q = tl.load(centroids + (i_h * groups + o_row)[:, None] * D + o_d, m_row[:, None], other=0.0)  # [R, D]
    b_q = b_q.to(k.dtype.element_ty)
    if INT8:
        b_factor = tl.load(query_scales + i_h * groups + o_row, m_row, other=0.0) * scale * tl.load(key_scales + i_h)  # [R]
        b_factor = factor_of(b_factor)  # [R]
    p_k, p_v = k + i_h * keys * D, v + i_h * keys * D
    p_products = tl.where(tl.arange(0, 2) == 0, norms, dots) + i_h * keys  # [2]
    # What a head has of ``seen`` is addressed by 32 bits: wider indices cost registers.
    p_seen, p_own = seen + i_h * clusters * 4 * groups, own_values + i_h * groups * clusters * D
    p_bound = tile_bounds + i_h * (clusters + 1) + i_part * clusters_at_once
    i_first = tl.load(p_bound)
    i_end = tl.load(p_bound + tl.minimum(clusters_at_once, clusters - i_part * clusters_at_once))

    # Exponentials are relative to the largest logit of the cluster so far; a finite start, so that no keys are not inf - inf.
    b_peak = tl.full([ROWS], -1.0e30, tl.float32)  # [R]
    b_sum = tl.zeros([ROWS], tl.float32)  # [R], of exp(a)
    b_square = tl.zeros([ROWS], tl.float32)  # [R], of exp(2 a) |v|^2
    b_cross = tl.zeros([ROWS], tl.float32)  # [R], of exp(a) <v, mean v>
    b_acc = tl.zeros([ROWS, D], tl.float32)  # [R, D], of exp(a) v
    i_last = -1
    for i_t in tl.range(i_first, i_end, num_stages=STAGES):
        i_c, i_start, i_stop = load_tile(tiles + i_h * tile_count * 3, i_t)
        o_k = i_start + o_key  # [K]
        m_k = o_k < i_stop  # [K]
        # Both at once: fewer numbers than threads would be loaded by every thread that needs one.
        b_products = tl.load(p_products[None, :] + o_k[:, None], m_k[:, None], other=0.0)  # [K, 2]
        b_norm, b_dot = tl.split(b_products)  # [K], [K]
        # Whole, with what lies behind the cluster: there are rows behind the last.
        b_k = tl.load(p_k + o_k[:, None] * D + o_d)  # [K, D]
        if INT8:
            b_s = multiply(b_q, b_k, tl.where(m_k, START, UNSEEN))  # [R, K]
        else:
            b_s = tl.dot(b_q, tl.trans(b_k)) * scale + tl.where(m_k, 0.0, float("-inf"))[None, :]  # [R, K]
        b_peak = tl.where(i_c == i_last, b_peak, -1.0e30)  # [R]
        b_new = tl.maximum(b_peak, tl.max(b_s, 1))  # [R]
        if INT8:
            b_p = tl.exp2(b_s * b_factor[:, None] - (b_new * b_factor)[:, None])  # [R, K]
            b_shrink = tl.where(i_c == i_last, tl.exp2((b_peak - b_new) * b_factor), 0.0)  # [R]
        else:
            b_p = tl.exp2(b_s - b_new[:, None])  # [R, K]
            b_shrink = tl.where(i_c == i_last, tl.exp2(b_peak - b_new), 0.0)  # [R]
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_square = b_square * b_shrink * b_shrink + tl.sum(b_p * b_p * b_norm[None, :], 1)
        b_cross = b_cross * b_shrink + tl.sum(b_p * b_dot[None, :], 1)
        if OWN:
            b_v = tl.load(p_v + o_k[:, None] * D + o_d)  # [K, D]
            b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_shrink[:, None])  # [R, D]
            # In use where a cluster ends.
            b_acc = awaited(b_acc)
        b_peak = b_new
        i_last = i_c

        if i_start + KEYS >= i_stop:
            p_some = p_seen + i_c * 4 * groups + o_row  # [R]
            if INT8:
                tl.store(p_some, tl.where(b_sum > 0, (b_peak - ZERO) * b_factor, -1.0e30), m_row)
            else:
                tl.store(p_some, b_peak, m_row)
            tl.store(p_some + groups, b_sum, m_row)
            tl.store(p_some + 2 * groups, b_square, m_row)
            tl.store(p_some + 3 * groups, b_cross, m_row)
            if OWN:
                b_own = b_acc * (1 / tl.where(b_sum > 0, b_sum, 1.0))[:, None]  # [R, D]
                i_own = (o_row.to(tl.int64) * clusters + i_c)[:, None] * D  # [R, 1]
                tl.store(p_own + i_own + o_d, b_own.to(own_values.dtype.element_ty), m_row[:, None])


@Kernel
@triton.jit(
    do_not_specialize=["scale", "groups", "clusters", "extra", "biases_head"],
    do_not_specialize_on_alignment=["query_scales", "key_scales", "extra_scales", "sizes", "biases", "log_denominators", "output_norms"],
)
def _denominators(
    centroids, query_scales, key_means, key_scales, value_means, sizes,
    extra_k, extra_k_head, extra_k_row, extra_scales, extra_v, extra_v_head, extra_v_row, biases, biases_head,
    seen, log_denominators, output_norms,
    scale, groups, clusters, extra,
    D: tl.constexpr, GROUPS: tl.constexpr, CLUSTERS: tl.constexpr, WEIGHTED: tl.constexpr,
    INT8: tl.constexpr,
):  # fmt: skip
    """The denominators of dense attention for GROUPS groups of one head, and the norm of the output by plain mean values."""
    i_g, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_g = i_g * GROUPS + tl.arange(0, GROUPS)  # [G]
    m_g = o_g < groups  # [G]
    o_c = tl.arange(0, CLUSTERS)  # [C]
    o_d = tl.arange(0, D)  # [D]
    b_q = tl.load(centroids + (i_h * groups + o_g)[:, None] * D + o_d, m_g[:, None], other=0.0)  # [G, D]
    b_q = b_q.to(extra_k.dtype.element_ty)
    if INT8:
        b_scale = tl.load(query_scales + i_h * groups + o_g, m_g, other=0.0) * scale  # [G]
    b_peak = tl.full([GROUPS], -1.0e30, tl.float32)  # [G]
    b_sum = tl.zeros([GROUPS], tl.float32)  # [G]
    b_acc = tl.zeros([GROUPS, D], tl.float32)  # [G, D]
    for i_t in tl.range(0, extra, CLUSTERS, num_stages=1):
        m_t = i_t + o_c < extra  # [C]
        i_row = tl.where(m_t, i_t + o_c, 0).to(tl.int64)[:, None]  # [C, 1]
        b_k = tl.load(extra_k + i_h * extra_k_head + i_row * extra_k_row + o_d)  # [C, D]
        b_v = tl.load(extra_v + i_h * extra_v_head + i_row * extra_v_row + o_d)  # [C, D]
        b_bias = tl.where(m_t, 0.0, float("-inf"))  # [C]
        if biases is not None:
            b_bias += tl.load(biases + i_h * biases_head + i_t + o_c, m_t, other=0.0) * TO_BASE_2
        if INT8:
            b_factor = b_scale[:, None] * tl.load(extra_scales + i_h * extra + i_row.reshape([CLUSTERS]))[None, :]  # [G, C]
            b_s = tl.dot(b_q, tl.trans(b_k)).to(tl.float32) * b_factor + b_bias[None, :]  # [G, C]
            b_acc, b_peak, b_sum = softmax_add(b_s, b_v, b_acc, b_peak, b_sum)
        else:
            b_acc, b_peak, b_sum = softmax_step(b_q, b_k, b_v, b_bias, scale, b_acc, b_peak, b_sum)
    for i_c in range(0, clusters, CLUSTERS):
        m_c = i_c + o_c < clusters  # [C]
        m = m_g[:, None] & m_c[None, :]  # [G, C]
        p_cluster = i_h * clusters + i_c + o_c  # [C]
        p_seen = seen + p_cluster[None, :] * 4 * groups + o_g[:, None]  # [G, C]
        b_logit = tl.load(p_seen, m, other=-1.0e30)  # [G, C]
        b_new = tl.maximum(b_peak, tl.max(b_logit, 1))  # [G]
        b_shrink = tl.exp2(b_peak - b_new)  # [G]
        b_mass = tl.load(p_seen + groups, m, other=0.0) * tl.exp2(b_logit - b_new[:, None])  # [G, C]
        b_sum = b_sum * b_shrink + tl.sum(b_mass, 1)
        if not WEIGHTED:
            b_k = tl.load(key_means + p_cluster[:, None] * D + o_d, m_c[:, None], other=0.0).to(b_q.dtype)  # [C, D]
            if INT8:
                b_at_mean = tl.dot(b_q, tl.trans(b_k)).to(tl.float32) * factor_of(b_scale * tl.load(key_scales + i_h))[:, None]  # [G, C]
            else:
                b_at_mean = tl.dot(b_q, tl.trans(b_k)) * scale  # [G, C]
            b_at_mean -= b_new[:, None]
            b_size = tl.load(sizes + p_cluster, m_c, other=0).to(tl.float32)  # [C]
            # The mean of the logits is not above their peak. Without keys there is neither.
            b_mass = b_size[None, :] * tl.exp2(tl.where(b_size[None, :] > 0, b_at_mean, float("-inf")))
        b_v = tl.load(value_means + p_cluster[:, None] * D + o_d, m_c[:, None], other=0.0)  # [C, D]
        b_acc = tl.dot(b_mass, b_v, b_acc * b_shrink[:, None])
        b_peak = b_new
    b_out = b_acc / b_sum[:, None]  # [G, D]
    tl.store(log_denominators + i_h * groups + o_g, b_peak + tl.log2(b_sum), m_g)
    tl.store(output_norms + i_h * groups + o_g, tl.sum(b_out * b_out, 1), m_g)


@Kernel
@triton.jit(
    do_not_specialize=["scale", "groups", "clusters"],
    do_not_specialize_on_alignment=["query_scales", "key_scales", "sizes", "log_denominators", "errors", "masses", "log_weights"],
)
def _relate(
    keys, centroids, query_scales, key_means, key_scales, value_means, sizes, seen, log_denominators,
    errors, masses, log_weights,
    scale, groups, clusters,
    D: tl.constexpr, GROUPS: tl.constexpr, CLUSTERS: tl.constexpr, WEIGHTED: tl.constexpr,
    INT8: tl.constexpr,
):  # fmt: skip
    """Relate what some groups of one head saw of some clusters to the denominators, and turn it to group by cluster.

    Of ``keys`` only the dtype counts, to which the probe rounded the centroids.
    """
    i_c, i_g, i_h = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_c = i_c * CLUSTERS + tl.arange(0, CLUSTERS)  # [C]
    o_g = i_g * GROUPS + tl.arange(0, GROUPS)  # [G]
    o_d = tl.arange(0, D)  # [D]
    m_c, m_g = o_c < clusters, o_g < groups  # [C], [G]
    m = m_c[:, None] & m_g[None, :]  # [C, G]
    p_cluster, p_group = i_h * clusters + o_c, i_h * groups + o_g  # [C], [G]
    b_q = tl.load(centroids + p_group[:, None] * D + o_d, m_g[:, None], other=0.0)  # [G, D]
    b_k = tl.load(key_means + p_cluster[:, None] * D + o_d, m_c[:, None], other=0.0)  # [C, D]
    b_v = tl.load(value_means + p_cluster[:, None] * D + o_d, m_c[:, None], other=0.0)  # [C, D]
    b_size = tl.load(sizes + p_cluster, m_c, other=0).to(tl.float32)[:, None]  # [C, 1]
    p_seen = seen + p_cluster[:, None] * 4 * groups + o_g[None, :]  # [C, G]
    b_peak = tl.load(p_seen, m, other=0.0)  # [C, G]
    b_sum = tl.load(p_seen + groups, m, other=0.0)  # [C, G]
    b_square = tl.load(p_seen + 2 * groups, m, other=0.0)  # [C, G]
    b_cross = tl.load(p_seen + 3 * groups, m, other=0.0)  # [C, G]
    b_at_mean = tl.dot(b_k.to(keys.dtype.element_ty), tl.trans(b_q.to(keys.dtype.element_ty))).to(tl.float32)  # [C, G]
    if INT8:
        b_factor = tl.load(query_scales + p_group, m_g, other=0.0) * scale * tl.load(key_scales + i_h)  # [G]
        b_at_mean *= factor_of(b_factor)[None, :]
    else:
        b_at_mean *= scale
    # The mean of the logits is not above their peak. Without keys there is neither.
    b_weight = tl.exp2(tl.where(b_size > 0, b_at_mean - b_peak, float("-inf")))  # [C, G]
    b_error = b_square - 2 * b_weight * b_cross + b_size * b_weight * b_weight * tl.sum(b_v * b_v, 1)[:, None]  # [C, G]
    b_scale = tl.exp2(b_peak - tl.load(log_denominators + p_group, m_g, other=0.0)[None, :])  # [C, G]
    p_out = p_group[:, None] * clusters + o_c[None, :]  # [G, C]
    m_out = m_g[:, None] & m_c[None, :]  # [G, C]
    tl.store(errors + p_out, tl.trans(tl.maximum(b_error, 0.0) * b_scale * b_scale), m_out)
    if WEIGHTED:
        tl.store(log_weights + p_out, tl.trans((b_peak - b_at_mean + tl.log2(b_sum)) / TO_BASE_2), m_out)
        tl.store(masses + p_out, tl.trans(b_sum * b_scale), m_out)
    else:
        tl.store(masses + p_out, tl.trans(b_size * b_weight * b_scale), m_out)


def probe_tokens(
    centroids: Tensor, sorted_keys: SortedKeys, conditioning: Conditioning, summaries: Summaries, weighted: bool, scale: float
) -> Probe:
    """Squared error of compensating every key cluster by its plain means, from all its keys.

    Products in the dtype of the keys, those of weights and values in that of the values (tf32 for float32), sums and exponentials in
    float32. With ``weighted`` the same pass makes each group's own centroids. See the torch stage for the formula and the arguments.
    """
    keys, clusters, quantized = sorted_keys.keys, sorted_keys.clusters, sorted_keys.quantized
    _, heads, length, dim = keys.shape
    groups, count = centroids.shape[2], clusters.sizes.shape[2]
    tiles = probe_tiles(keys.device, sorted_keys.values.itemsize, quantized is not None)
    rows = cut(clusters, tiles.keys, fewest=1)

    def table(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=keys.device)

    # By cluster, then by group: a tile of the kernel holds many groups of one cluster.
    seen = table(heads, count, 4, groups)
    own_values = sorted_keys.values.new_empty(1, heads, groups, count, dim) if weighted else sorted_keys.values.new_empty(0)
    if quantized is None:
        query_scales = key_scales = extra_scales = None
        key_means, extra = summaries.key_means, conditioning.keys
    else:
        query_scales, key_scales, extra_scales = quantized.mean_query_scales, quantized.key_scales, quantized.extra_scales
        centroids, key_means, extra = quantized.mean_queries, quantized.key_means, quantized.extra
    _probe[(ceil_div(groups, tiles.rows), ceil_div(count, CLUSTERS_AT_ONCE), heads)](
        centroids, query_scales, keys, key_scales, sorted_keys.values, summaries.value_norms, summaries.value_dots,
        rows.table, rows.bounds,
        seen, own_values,
        scale * LOG2_E, groups, count, length, rows.count, CLUSTERS_AT_ONCE,
        D=dim, ROWS=tiles.rows, KEYS=tiles.keys, OWN=weighted, STAGES=tiles.stages,
        INT8=quantized is not None, **tiles.launch,
    )  # fmt: skip
    log_denominators, output_norms = table(2, 1, heads, groups).unbind()
    errors, masses, *log_weights = table(3 if weighted else 2, 1, heads, groups, count).unbind()
    log_weights = log_weights[0] if weighted else None
    known = (centroids, query_scales, key_means, key_scales, summaries.value_means, clusters.sizes)
    _denominators[(ceil_div(groups, DENOMINATORS["GROUPS"]), heads)](
        *known,
        extra, extra.stride(1), extra.stride(2), extra_scales,
        conditioning.values, conditioning.values.stride(1), conditioning.values.stride(2),
        conditioning.biases, head_stride(conditioning.biases),
        seen, log_denominators, output_norms,
        scale * LOG2_E, groups, count, extra.shape[2],
        D=dim, WEIGHTED=weighted, INT8=quantized is not None, **DENOMINATORS,
    )  # fmt: skip
    _relate[(ceil_div(count, RELATE["CLUSTERS"]), ceil_div(groups, RELATE["GROUPS"]), heads)](
        keys, *known, seen, log_denominators,
        errors, masses, log_weights,
        scale * LOG2_E, groups, count,
        D=dim, WEIGHTED=weighted, INT8=quantized is not None, **RELATE,
    )  # fmt: skip
    own = WeightedCentroids(own_values, log_weights) if weighted else None
    return Probe(errors, masses, output_norms, None if quantized is None else log_denominators, own)
