"""Which blocks are worth computing exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..numerics import inverse_or_zero
from ..settings import Settings
from ..types import Clusters, Probe, Routing
from .chunks import row_slices


def route(probe: Probe, clusters: Clusters, settings: Settings) -> Routing:
    """Rank the key clusters of every query group and keep the best until the budget is spent.

    The last block is kept when at least half of it fits, so that the budget is met on average. ``svg2`` keeps at
    least the best block of every group, because nothing else would be left to attend to.

    Args:
        probe: what the query centroids saw.
        clusters: the key clusters.
        settings: method, budget and ranking.
    """
    priority, budget, floor = priorities_and_budgets(probe, clusters, settings)
    sizes = clusters.sizes[:, :, None].expand_as(priority)
    exact = torch.empty(priority.shape, dtype=torch.bool, device=priority.device)
    # Sorting takes some tables of eight bytes an entry.
    for some in row_slices(priority.shape[2], 8 * priority[:, :, 0].numel(), priority.device):
        exact[:, :, some] = _best_within(*(table[:, :, some] for table in (priority, sizes, budget, floor)))
    return Routing(exact, (sizes * exact).sum(-1).to(priority.dtype) / clusters.labels.shape[2])


def route_given(exact: Tensor, clusters: Clusters) -> Routing:
    """The routing that computes the blocks of ``exact`` (bool ``[B, H, G, C]``), whatever a probe would say."""
    return Routing(exact, (exact * clusters.sizes[:, :, None]).sum(-1).to(clusters.centroids.dtype) / clusters.labels.shape[2])


def priorities_and_budgets(probe: Probe, clusters: Clusters, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Priority of each block ``[B, H, G, C]``, and twice the most and the fewest keys that each group may compute exactly.

    The two are int32 ``[B, H, G]``; the fewest are reached by computing one block more where needed.
    """
    priority = probe.masses if ranks_by_mass(settings) else probe.errors / clusters.sizes[:, :, None]
    tokens, groups = clusters.labels.shape[2], priority.shape[:3]
    floor = priority.new_full(groups, fewest_half_keys(tokens, settings), dtype=torch.int32)
    if settings.budget == "density":
        budget = priority.new_full(groups, most_half_keys(tokens, settings), dtype=torch.int32)
    else:
        # Where conditioning takes all attention, the video has no masses to compare.
        shares, order = (probe.masses * inverse_or_zero(probe.masses.sum(-1, keepdim=True))).sort(dim=-1, descending=True, stable=True)
        before = shares.cumsum(-1) - shares
        sizes = clusters.sizes[:, :, None].expand_as(priority).gather(-1, order)
        budget = 2 * (sizes * (before < settings.top_p)).sum(-1).to(torch.int32)
    return priority, budget, floor


def ranks_by_mass(settings: Settings) -> bool:
    """Whether blocks are ranked by attention mass rather than by their error for each key."""
    return settings.method == "svg2" or settings.probe_score == "mass"


def most_half_keys(tokens: int, settings: Settings) -> int:
    """Twice the most of ``tokens`` keys that a group may compute exactly, with a budget by density."""
    return int(2 * settings.density * tokens)


def fewest_half_keys(tokens: int, settings: Settings) -> int:
    """Twice the fewest of ``tokens`` keys that a group computes exactly."""
    # One key is enough to make the best block exact.
    return math.ceil(2 * max(settings.min_share * tokens, 0 if settings.compensates else 1))


def _best_within(priority: Tensor, sizes: Tensor, budget: Tensor, floor: Tensor) -> Tensor:
    """Bool ``[B, H, G, C]``: clusters by falling priority up to half of ``budget`` keys, at least half of ``floor``; empty ones never."""
    priority = torch.where(sizes > 0, priority, -torch.inf)
    order = priority.argsort(dim=-1, descending=True, stable=True)
    ordered = sizes.gather(-1, order)
    # Twice the middle of each block in the running sum, which is an integer.
    middles = ordered.cumsum(-1).mul_(2).sub_(ordered)
    fits = middles <= budget[..., None]
    fits |= middles.sub_(ordered) < floor[..., None]
    return torch.zeros_like(fits).scatter_(-1, order, fits & (ordered > 0))
