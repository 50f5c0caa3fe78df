"""Which blocks are worth computing exactly, and the list of their rows that the attention kernel walks."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..settings import Settings
from ..torch_stages.route import fewest_half_keys, most_half_keys, priorities_and_budgets, ranks_by_mass
from ..tuning import launched
from ..types import Clusters, ExactRows, Probe, Routing
from .launches import Kernel
from .tables import table_size, table_warps

# Rows of one entry of the list. Smaller granules waste less at the ends of runs and cost more index loads.
GRANULE = 16
# Empty entries behind the last, so that a tile of keys needs no mask for its entries.
PADDING = 16
# Entries that are made at once.
SLOTS = 128


@triton.jit
def _threshold(b_bits, b_size, limit):
    """The largest bit pattern t for which the blocks of priority t and above have more than ``limit`` half rows; -1 for none."""
    t = tl.where(2 * tl.sum(b_size, 0) > limit, 0, -1)
    if t == 0:
        for i_bit in range(31):
            higher = t | (1 << (30 - i_bit))
            t = tl.where(2 * tl.sum(tl.where(b_bits >= higher, b_size, 0), 0) > limit, higher, t)
    return t


@triton.jit
def _rows_before(b_bits, b_size, t):
    """For the blocks of priority t, the rows of those that rank before: all of higher priority, and those of t with a lower number."""
    b_tied = tl.where(b_bits == t, b_size, 0)  # [C]
    return tl.sum(tl.where(b_bits > t, b_size, 0), 0) + tl.cumsum(b_tied, 0) - b_tied


@triton.jit
def _max(a, b):
    return tl.maximum(a, b)


@triton.jit
def _min(a, b):
    return tl.minimum(a, b)


@triton.jit
def _first_above(b_sorted, b_value, LOG_C: tl.constexpr, SLOTS: tl.constexpr):
    """The first place of the ascending ``b_sorted`` [2 ** LOG_C] that is above each of ``b_value`` [S]; the last place if none is."""
    i_c = tl.zeros([SLOTS], tl.int32)  # [S]
    for i_bit in tl.static_range(LOG_C):
        i_next = i_c + (1 << (LOG_C - 1 - i_bit))  # [S]
        i_c = tl.where(tl.gather(b_sorted, i_next - 1, 0) <= b_value, i_next, i_c)
    return i_c


@triton.jit
def entry_rows(p_entries, i_e, inside, outside, D: tl.constexpr, KEYS: tl.constexpr, GRANULE: tl.constexpr):
    """Offsets [K, 1] of the rows of the entries from ``i_e`` on, and [K] ``inside`` where an entry has the row, ``outside`` elsewhere."""
    # Entries are loaded narrow and spread by reshape: an index per key would be loaded by every thread of its row.
    o_within = tl.arange(0, GRANULE)  # [16]
    b_entry = tl.load(p_entries + i_e + tl.arange(0, KEYS // GRANULE))  # [E]
    m_within = o_within[None, :] < (b_entry & 31)[:, None]  # [E, 16]
    i_row = tl.reshape((b_entry >> 5)[:, None] + o_within[None, :], [KEYS])  # [K]
    return i_row[:, None] * D, tl.reshape(tl.where(m_within, inside, outside), [KEYS])


@Kernel
@triton.jit(
    do_not_specialize=["clusters", "groups", "capacity", "budget", "floor", "tokens"],
    do_not_specialize_on_alignment=["priorities", "errors", "offsets", "shares", "skipped"],
)
def _select(
    priorities, errors, offsets, budgets,
    exact, entries, counts, shares, skipped,
    clusters, groups, capacity, budget, floor, tokens,
    LOG_C: tl.constexpr, GRANULE: tl.constexpr, PADDING: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The exact blocks of one query group of one head, and their rows as entries of at most GRANULE rows.

    Without ``priorities`` blocks rank by their error for each key; without ``budgets`` all groups have one ``budget``.
    """
    i_group, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_list = i_h * groups + i_group
    o_c = tl.arange(0, 1 << LOG_C)  # [C]
    m_c = o_c < clusters  # [C]
    b_start = tl.load(offsets + i_h * (clusters + 1) + o_c, m_c, other=0)  # [C]
    b_stop = tl.load(offsets + i_h * (clusters + 1) + o_c + 1, m_c, other=0)  # [C]
    b_size = b_stop - b_start  # [C]
    m_c &= b_size > 0
    b_error = tl.load(errors + i_list * clusters + o_c, m_c, other=0.0)  # [C]
    if priorities is None:
        b_priority = tl.div_rn(b_error, tl.maximum(b_size, 1).to(tl.float32))  # [C]
    else:
        b_priority = tl.load(priorities + i_list * clusters + o_c, m_c, other=0.0)  # [C]

    # Bit patterns of floats that are not negative sort as integers, so a search over the bits replaces a sort.
    b_bits = tl.where(m_c, b_priority.to(tl.int32, bitcast=True), -2)  # [C]
    if budgets is not None:
        budget = tl.load(budgets + i_list)
    t = _threshold(b_bits, b_size, budget)
    m_exact = (b_bits > t) | ((b_bits == t) & (2 * _rows_before(b_bits, b_size, t) + b_size <= budget))  # [C]
    if floor > 0:
        t = _threshold(b_bits, b_size, floor - 1)
        m_exact |= (b_bits > t) | ((b_bits == t) & (2 * _rows_before(b_bits, b_size, t) < floor))
    m_exact &= m_c
    tl.store(exact + i_list * clusters + o_c, m_exact.to(tl.uint8), o_c < clusters)
    n_exact = tl.sum(tl.where(m_exact, b_size, 0), 0)
    tl.store(shares + i_list, tl.div_rn(n_exact.to(tl.float32), tokens.to(tl.float32)))
    tl.store(skipped + i_list, tl.sum(tl.where(m_exact, 0.0, b_error), 0))

    # Exact clusters that follow each other, with nothing but empty ones between, are one run of rows. Where a run begins:
    # the stop of the last skipped cluster before it; where it ends: the start of the next skipped one.
    m_skipped = m_c & ~m_exact  # [C]
    n_rows = tl.max(b_stop, 0)
    b_first = tl.associative_scan(tl.where(m_skipped, b_stop, 0), 0, _max)  # [C]
    b_last = tl.associative_scan(tl.where(m_skipped, b_start, n_rows), 0, _min, reverse=True)  # [C]
    b_skip = (b_start - b_first + GRANULE - 1) // GRANULE  # [C], entries of the run that start before this cluster
    b_count = (b_stop - b_first + GRANULE - 1) // GRANULE - b_skip  # [C]
    b_count = tl.where(m_exact, b_count, 0)
    b_place = tl.cumsum(b_count, 0) - b_count  # [C]
    n_entries = tl.sum(b_count, 0)
    b_stop_place = b_place + b_count  # [C]
    for i_e in range(0, n_entries, SLOTS):
        o_e = i_e + tl.arange(0, SLOTS)  # [S]
        i_c = _first_above(b_stop_place, o_e, LOG_C, SLOTS)  # [S], the cluster in which each entry starts
        b_nth = tl.gather(b_skip - b_place, i_c, 0) + o_e  # [S]
        b_row = tl.gather(b_first, i_c, 0) + b_nth * GRANULE  # [S]
        b_length = tl.minimum(tl.gather(b_last, i_c, 0) - b_row, GRANULE)  # [S]
        tl.store(entries + i_list * capacity + o_e, b_row * 32 + b_length, o_e < n_entries)
    o_pad = tl.arange(0, PADDING)  # [PADDING]
    tl.store(entries + i_list * capacity + n_entries + o_pad, tl.zeros([PADDING], tl.int32))
    tl.store(counts + i_list, n_entries)


def route(probe: Probe, clusters: Clusters, settings: Settings) -> Routing:
    """Rank the key clusters of every query group and keep the best until the budget is spent.

    The same choice as the torch stage, found without a sort. See there for the arguments.
    """
    tokens, count = clusters.labels.shape[2], probe.errors.shape[-1]
    floor = fewest_half_keys(tokens, settings)
    if settings.budget == "density" and not ranks_by_mass(settings):
        return _routed(None, probe.errors, most_half_keys(tokens, settings), floor, clusters, most_entries(tokens, count, settings))
    priority, budget, _ = priorities_and_budgets(probe, clusters, settings)
    return _routed(priority, probe.errors, budget, floor, clusters, most_entries(tokens, count, settings))


def route_given(exact: Tensor, clusters: Clusters) -> Routing:
    """The routing that computes the blocks of ``exact`` (bool ``[B, H, G, C]``), whatever a probe would say.

    A budget of just these blocks, which rank before all others, makes the kernel choose them and list their rows.
    """
    budget = 2 * (exact * clusters.sizes[:, :, None]).sum(-1).to(torch.int32)
    tokens, count = clusters.labels.shape[2], exact.shape[-1]
    priority = exact.float().contiguous()
    return replace(_routed(priority, priority, budget, 0, clusters, tokens // GRANULE + count), skipped_errors=None)


def _routed(priority: Tensor | None, errors: Tensor, budget: Tensor | int, floor: int, clusters: Clusters, most: int) -> Routing:
    """The blocks of highest ``priority`` ``[B, H, G, C]`` within half of ``budget``, at least half of ``floor``.

    Without a ``priority`` it is the error for each key; ``most`` entries suffice for any group.
    """
    *shape, count = errors.shape
    tokens, device = clusters.labels.shape[2], errors.device
    capacity = most + PADDING
    log_count = table_size(count)
    exact = torch.empty(*shape, count, dtype=torch.bool, device=device)
    entries = torch.empty(*shape, capacity, dtype=torch.int32, device=device)
    counts = torch.empty(shape, dtype=torch.int32, device=device)
    shares, skipped = torch.empty(2, *shape, dtype=torch.float32, device=device).unbind()
    budgets, budget = (None, budget) if isinstance(budget, int) else (budget, 0)
    _select[(shape[2], shape[0] * shape[1])](
        priority, errors, clusters.offsets, budgets,
        exact.view(torch.uint8), entries, counts, shares, skipped,
        count, shape[2], capacity, budget, floor, tokens,
        LOG_C=log_count, GRANULE=GRANULE, PADDING=PADDING, SLOTS=SLOTS,
        **launched(num_warps=table_warps(log_count)),
    )  # fmt: skip
    return Routing(exact, shares, ExactRows(entries, counts), skipped)


def most_entries(tokens: int, clusters: int, settings: Settings) -> int:
    """Entries that suffice for any group: every exact cluster may end with an entry that is not full."""
    rows = tokens
    if settings.method == "svg-ear" and settings.budget == "density" and settings.min_share == 0:
        # A block is kept when its middle is within the budget, so at most twice the budget is spent.
        rows = min(tokens, int(2 * settings.density * tokens))
    return rows // GRANULE + clusters
