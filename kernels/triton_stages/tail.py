"""The weights of what stands for the blocks that are not exact, as the attention kernels read them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..numerics import ceil_div
from ..settings import Settings
from ..tuning import Tiles, launched
from ..types import Probe, Routing, Summaries
from .launches import Kernel
from .softmax import TO_BASE_2

WEIGH = launched(CLUSTERS=1024, num_warps=4)


@Kernel
@triton.jit(do_not_specialize=["own_row", "groups", "clusters", "row"], do_not_specialize_on_alignment=["weights"])
def _weigh_tail(
    exact, weights, own_row, tail,
    groups, clusters, row,
    CLUSTERS: tl.constexpr,
):  # fmt: skip
    """One group of one head: logarithms in base 2 of the weights, minus infinity for an exact block and behind the last."""
    i_group, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_own = (i_h * ((groups - 1) * own_row + 1) + i_group * own_row) * clusters
    i_list = i_h * groups + i_group
    for i_c in range(0, row, CLUSTERS):
        o_c = i_c + tl.arange(0, CLUSTERS)  # [C]
        m_c = o_c < clusters  # [C]
        b_weight = tl.load(weights + i_own + o_c, m_c, other=float("-inf")) * TO_BASE_2  # [C]
        b_exact = tl.load(exact + i_list * clusters + o_c, m_c, other=1)  # [C]
        tl.store(tail + i_list * row + o_c, tl.where(b_exact == 0, b_weight, float("-inf")), o_c < row)


def stand_ins(
    probe: Probe, summaries: Summaries, routing: Routing, settings: Settings, dtype: torch.dtype, shapes: tuple[Tiles, ...]
) -> tuple[Tensor, int, Tensor | None, int]:
    """What an attention kernel with tiles of ``shapes`` takes for the blocks that are not exact.

    Values in ``dtype``, 1 where every group has its own and 0 where those of a head serve all its groups, and the weights with the length
    of their rows, None and 0 where blocks are dropped.
    """
    if settings.weights_centroids:
        values, weights = probe.centroids.values, probe.centroids.log_weights
    else:
        values, weights = summaries.value_means.to(dtype), summaries.log_sizes
    own_row = int(settings.weights_centroids)
    if not settings.compensates:
        return values, own_row, None, 0
    tail = tail_weights(routing.exact, weights, max(tiles.keys for tiles in shapes))
    return values, own_row, tail, tail.shape[3]


def tail_weights(exact: Tensor, weights: Tensor, multiple: int) -> Tensor:
    """What is added to the logits of the centroids: float32 ``[1, H, G, C']``, C' the next multiple of ``multiple``.

    Args:
        exact: bool ``[1, H, G, C]``.
        weights: natural logarithms, ``[1, H, G, C]``, or ``[1, H, C]`` for all groups of a head.
    """
    _, heads, groups, clusters = exact.shape
    row = ceil_div(clusters, multiple) * multiple
    tail = torch.empty(1, heads, groups, row, dtype=torch.float32, device=exact.device)
    _weigh_tail[(groups, heads)](exact.view(torch.uint8), weights, int(weights.ndim == 4), tail, groups, clusters, row, **WEIGH)
    return tail


@triton.jit
def load_by_all(p, COPIES: tl.constexpr):
    """What is at ``p`` [K], loaded COPIES times, 1, 2 or 4, so that there is a load for every thread.

    Triton has every thread load what it needs by itself where there are fewer numbers than threads, which takes a load for each.
    """
    if COPIES == 1:
        return tl.load(p)
    o = tl.zeros([1, 2], tl.int32)
    if COPIES == 2:
        b, _ = tl.split(tl.load(p[:, None] + o))
        return b
    b, _ = tl.split(tl.load(p[:, None, None] + o[:, :, None] + o[:, None, :]))
    b, _ = tl.split(b)
    return b


def copies(keys: int, warps: int) -> int:
    """How often each of ``keys`` numbers is loaded, so that every thread has one; once where that would be too often."""
    threads_of_each = 32 * warps // keys
    return threads_of_each if threads_of_each in (2, 4) else 1
