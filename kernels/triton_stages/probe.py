"""What the mean query of every group sees of every key cluster."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..numerics import LOG2_E
from ..torch_stages.probe import output_norms, probe_centroids, scaled_logits
from ..tuning import probe_tiles
from ..types import Conditioning, Probe, SortedKeys, Summaries, WeightedCentroids
from .softmax import TO_BASE_2
from .tiles import cut

__all__ = ["probe_centroids", "probe_tokens"]

# Key clusters that one program walks: enough to hide the loads of one behind another.
CLUSTERS_AT_ONCE = 8
DENOMINATORS = {"GROUPS": 16, "CLUSTERS": 128, "num_warps": 4}
RELATE = {"GROUPS": 32, "CLUSTERS": 32, "num_warps": 4}


@triton.jit(do_not_specialize=["scale", "groups", "clusters", "keys", "tiles", "clusters_at_once"])
def _probe(
    centroids, k, v, norms, dots,
    tile_owners, tile_starts, tile_stops, tile_bounds,
    peaks, sums, squares, crosses, own_values,
    scale, groups, clusters, keys, tiles, clusters_at_once,
    D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, OWN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ROWS mean queries of one head over some key clusters: sums over the keys of each and, if OWN, its weighted mean value.

    One loop walks the tiles of all these clusters, so that the keys of the next are on their way while this one is computed.
    """
    i_tile, i_part, i_h = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_row = i_tile * ROWS + tl.arange(0, ROWS)  # [R]
    m_row = o_row < groups  # [R]
    o_d = tl.arange(0, D)  # [D]
    o_key = tl.arange(0, KEYS)  # [K]
    b_q = tl.load(centroids + (i_h * groups + o_row)[:, None] * D + o_d, m_row[:, None], other=0.0)  # [R, D]
    p_k, p_v, p_norms, p_dots = k + i_h * keys * D, v + i_h * keys * D, norms + i_h * keys, dots + i_h * keys
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
        i_c = tl.load(tile_owners + i_h * tiles + i_t)
        i_start = tl.load(tile_starts + i_h * tiles + i_t)
        i_stop = tl.load(tile_stops + i_h * tiles + i_t)
        o_k = i_start + o_key  # [K]
        m_k = o_k < i_stop  # [K]
        # Not i_start: behind the last key there is none, and zero times what lies there need not be zero.
        i_row = tl.where(m_k, o_k, 0)  # [K]
        b_norm = tl.load(p_norms + i_row)  # [K]
        b_dot = tl.load(p_dots + i_row)  # [K]
        b_k = tl.load(p_k + i_row[:, None] * D + o_d)  # [K, D]
        b_s = tl.dot(b_q, tl.trans(b_k)) * scale + tl.where(m_k, 0.0, float("-inf"))[None, :]  # [R, K]
        b_peak = tl.where(i_c == i_last, b_peak, -1.0e30)  # [R]
        b_new = tl.maximum(b_peak, tl.max(b_s, 1))  # [R]
        b_p = tl.exp2(b_s - b_new[:, None])  # [R, K]
        b_shrink = tl.where(i_c == i_last, tl.exp2(b_peak - b_new), 0.0)  # [R]
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_square = b_square * b_shrink * b_shrink + tl.sum(b_p * b_p * b_norm[None, :], 1)
        b_cross = b_cross * b_shrink + tl.sum(b_p * b_dot[None, :], 1)
        if OWN:
            b_v = tl.load(p_v + i_row[:, None] * D + o_d)  # [K, D]
            b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_shrink[:, None])  # [R, D]
        b_peak = b_new
        i_last = i_c

        if i_start + KEYS >= i_stop:
            p_block = (i_h * clusters + i_c) * groups + o_row  # [R]
            tl.store(peaks + p_block, b_peak, m_row)
            tl.store(sums + p_block, b_sum, m_row)
            tl.store(squares + p_block, b_square, m_row)
            tl.store(crosses + p_block, b_cross, m_row)
            if OWN:
                p_own = own_values + ((i_h * groups + o_row) * clusters + i_c)[:, None] * D + o_d  # [R, D]
                b_own = b_acc * (1 / tl.where(b_sum > 0, b_sum, 1.0))[:, None]  # [R, D]
                tl.store(p_own, b_own.to(own_values.dtype.element_ty), m_row[:, None])


@triton.jit(do_not_specialize=["groups", "clusters"])
def _denominators(
    peaks, sums, extra_log_sums, log_denominators,
    groups, clusters,
    GROUPS: tl.constexpr, CLUSTERS: tl.constexpr,
):  # fmt: skip
    """The denominators of dense attention for GROUPS groups of one head."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_g = i_tile * GROUPS + tl.arange(0, GROUPS)  # [G]
    m_g = o_g < groups  # [G]
    b_extra = tl.load(extra_log_sums + i_h * groups + o_g, m_g, other=float("-inf"))  # [G]
    b_max = tl.maximum(b_extra, -1.0e30)  # [G]
    b_total = tl.exp2(b_extra - b_max)  # [G]
    for i_c in range(0, clusters, CLUSTERS):
        o_c = i_c + tl.arange(0, CLUSTERS)[:, None]  # [C, 1]
        m = (o_c < clusters) & m_g[None, :]  # [C, G]
        p_in = (i_h * clusters + o_c) * groups + o_g[None, :]  # [C, G]
        b_peak = tl.load(peaks + p_in, m, other=-1.0e30)  # [C, G]
        b_sum = tl.load(sums + p_in, m, other=0.0)  # [C, G]
        b_new = tl.maximum(b_max, tl.max(b_peak, 0))  # [G]
        b_total = b_total * tl.exp2(b_max - b_new) + tl.sum(b_sum * tl.exp2(b_peak - b_new[None, :]), 0)
        b_max = b_new
    tl.store(log_denominators + i_h * groups + o_g, b_max + tl.log2(b_total), m_g)


@triton.jit(do_not_specialize=["groups", "clusters"])
def _relate(
    at_means, peaks, sums, squares, crosses, log_sizes, mean_norms, log_denominators,
    errors, masses, log_weights,
    groups, clusters,
    GROUPS: tl.constexpr, CLUSTERS: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Relate what some groups of one head saw of some clusters to the denominators, and turn it to group by cluster."""
    i_c, i_g, i_h = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_c = i_c * CLUSTERS + tl.arange(0, CLUSTERS)[:, None]  # [C, 1]
    o_g = i_g * GROUPS + tl.arange(0, GROUPS)[None, :]  # [1, G]
    m_c = o_c < clusters  # [C, 1]
    m_g = o_g < groups  # [1, G]
    m = m_c & m_g  # [C, G]
    p_in = (i_h * clusters + o_c) * groups + o_g  # [C, G]
    p_out = tl.trans((i_h * groups + o_g) * clusters + o_c)  # [G, C]
    m_out = tl.trans(m)  # [G, C]
    b_peak = tl.load(peaks + p_in, m, other=0.0)  # [C, G]
    b_at_mean = tl.load(at_means + p_in, m, other=0.0)  # [C, G]
    b_size = tl.exp(tl.load(log_sizes + i_h * clusters + o_c, m_c, other=float("-inf")))  # [C, 1]
    # The mean of the logits is not above their peak. Without keys there is neither.
    b_weight = tl.exp2(tl.where(b_size > 0, b_at_mean - b_peak, float("-inf")))  # [C, G]
    b_error = tl.load(squares + p_in, m, other=0.0) - 2 * b_weight * tl.load(crosses + p_in, m, other=0.0)  # [C, G]
    b_error += b_size * b_weight * b_weight * tl.load(mean_norms + i_h * clusters + o_c, m_c, other=0.0)
    b_scale = tl.exp2(b_peak - tl.load(log_denominators + i_h * groups + o_g, m_g, other=0.0))  # [C, G]
    tl.store(errors + p_out, tl.trans(tl.maximum(b_error, 0.0) * b_scale * b_scale), m_out)
    if WEIGHTED:
        b_sum = tl.load(sums + p_in, m, other=0.0)  # [C, G]
        tl.store(log_weights + p_out, tl.trans((b_peak - b_at_mean + tl.log2(b_sum)) / TO_BASE_2), m_out)
        tl.store(masses + p_out, tl.trans(b_sum * b_scale), m_out)
    else:
        tl.store(masses + p_out, tl.trans(b_size * b_weight * b_scale), m_out)


def probe_tokens(
    centroids: Tensor, sorted_keys: SortedKeys, conditioning: Conditioning, summaries: Summaries, weighted: bool, scale: float
) -> Probe:
    """Squared error of compensating every key cluster by its plain means, from all its keys.

    Products in the dtype of the keys (tf32 for float32), sums and exponentials in float32. With ``weighted`` the same pass
    makes each group's own centroids. See the torch stage for the formula and the arguments.
    """
    keys, clusters = sorted_keys.keys, sorted_keys.clusters
    _, heads, length, dim = keys.shape
    groups, count = centroids.shape[2], clusters.sizes.shape[2]
    tiles = probe_tiles(keys.device, keys.itemsize)
    rows = cut(clusters, tiles.keys, fewest=1)
    rounded = centroids.to(keys.dtype)
    # By cluster, then by group: a tile of the kernel holds many groups of one cluster.
    at_means = (summaries.key_means.to(keys.dtype).float() @ rounded.float().mT).mul_(scale * LOG2_E)
    seen = [torch.empty_like(at_means) for _ in range(4)]
    own_values = keys.new_empty((1, heads, groups, count, dim) if weighted else 0)
    _probe[(triton.cdiv(groups, tiles.rows), triton.cdiv(count, CLUSTERS_AT_ONCE), heads)](
        rounded, keys, sorted_keys.values, summaries.value_norms, summaries.value_dots,
        rows.owners, rows.starts, rows.stops, rows.bounds,
        *seen, own_values,
        scale * LOG2_E, groups, count, length, rows.owners.shape[-1], CLUSTERS_AT_ONCE,
        D=dim, ROWS=tiles.rows, KEYS=tiles.keys, OWN=weighted, STAGES=tiles.stages,
        **tiles.launch,
    )  # fmt: skip

    extra = scaled_logits(rounded.float(), conditioning.keys, scale * LOG2_E) if conditioning.keys.shape[2] else None
    if extra is None:
        extra_log_sums = at_means.new_full((1, heads, groups), -torch.inf)
    else:
        extra_log_sums = (extra / LOG2_E).logsumexp(-1) * LOG2_E
    log_denominators = torch.empty_like(extra_log_sums)
    errors, masses = (at_means.new_empty(1, heads, groups, count) for _ in range(2))
    log_weights = torch.empty_like(errors if weighted else errors[..., :0])
    _denominators[(triton.cdiv(groups, DENOMINATORS["GROUPS"]), heads)](
        *seen[:2], extra_log_sums, log_denominators,
        groups, count,
        **DENOMINATORS,
    )  # fmt: skip
    _relate[(triton.cdiv(count, RELATE["CLUSTERS"]), triton.cdiv(groups, RELATE["GROUPS"]), heads)](
        at_means, *seen, summaries.log_sizes, summaries.value_means.square().sum(-1), log_denominators,
        errors, masses, log_weights,
        groups, count,
        WEIGHTED=weighted, **RELATE,
    )  # fmt: skip
    return Probe(
        errors=errors,
        masses=masses,
        output_norms=output_norms(
            masses, None if extra is None else (extra - log_denominators[..., None]).exp2_(), summaries, conditioning
        ),
        centroids=WeightedCentroids(own_values, log_weights) if weighted else None,
    )
