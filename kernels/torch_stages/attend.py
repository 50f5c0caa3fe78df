"""Exact blocks and compensated centroids in one softmax."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import inverse_or_zero
from ..types import Conditioning, Probe, QueryGroups, Routing, Settings, SortedKeys, Summaries
from .chunks import row_slices

# A row that leaves far more to compensation than its centroid does is unlike it: beyond this many times the centroid's
# share the correction stops growing. Without a bound, a centroid that compensates almost nothing is extrapolated
# without limit (a relative error of 2.4 instead of 0.33 at logits of 60).
RESIDUAL_REACH = 4.0


@dataclass(frozen=True)
class PartialSoftmax:
    """Softmax of m query rows before the division, relative to ``exp(peaks)``.

    Attributes:
        peaks, denominators, compensated: ``[m]``; ``compensated`` is the part of the denominator that stands for
            skipped blocks.
        numerators: ``[m, D]``.
    """

    peaks: Tensor
    numerators: Tensor
    denominators: Tensor
    compensated: Tensor


@dataclass(frozen=True)
class Residual:
    """What compensation misses at the probe centroids of one routing group, per unit of compensated mass (design §1.1).

    With ``A, Z`` dense attention at the centroid and ``A', Z', w`` what the sparse computation sees there,
    ``r = (A - A') / w`` and ``z = (Z - Z') / w``, which is not negative (Jensen). Both are zero where next to nothing was
    compensated, so that no ratio overflows.

    Attributes:
        numerators: r, ``[m, D]``.
        denominators: z, ``[m]``.
        share: ``w / Z'``, ``[m]``: the part of its softmax that each centroid leaves to compensation.
    """

    numerators: Tensor
    denominators: Tensor
    share: Tensor

    def correct(self, part: PartialSoftmax, own: Tensor) -> tuple[Tensor, Tensor]:
        """Numerators and denominators of ``part`` with the residual of each row's probe group ``own`` (``[n]``) added."""
        mass = torch.minimum(part.compensated, RESIDUAL_REACH * self.share[own] * part.denominators)
        return (
            part.numerators + mass[:, None] * self.numerators[own],
            part.denominators + mass * self.denominators[own],
        )


@dataclass(frozen=True)
class VisibleKeys:
    """What one routing group attends to: its exact keys first, then the centroids of what it skips.

    Attributes:
        keys, values: ``[n, D]``.
        log_weights: ``[n]``, zero for a token, the log size for a centroid.
        exact: number of leading rows that are tokens.
    """

    keys: Tensor
    values: Tensor
    log_weights: Tensor
    exact: int

    def attend(self, queries: Tensor, scale: float) -> PartialSoftmax:
        """Softmax numerators and denominators of ``queries`` ``[m, D]``."""
        logits = torch.addmm(self.log_weights[None], queries, self.keys.T, alpha=scale)
        peaks = logits.amax(-1)
        weights = logits.sub_(peaks[:, None]).exp_()
        return PartialSoftmax(peaks, weights @ self.values, weights.sum(-1), weights[:, self.exact :].sum(-1))


def attend(
    queries: Tensor,
    groups: QueryGroups,
    sorted_keys: SortedKeys,
    conditioning: Conditioning,
    summaries: Summaries,
    probe: Probe,
    routing: Routing,
    settings: Settings,
    scale: float,
    output: Tensor,
) -> None:
    """Attention of the video queries; every row of ``output`` is written.

    Args:
        queries: ``[B, H, N, D]``, token order, any strides.
        groups, sorted_keys, conditioning, summaries, probe, routing: results of the stages before.
        settings: whether skipped blocks are compensated and corrected.
        scale: factor of the logits.
        output: ``[B, H, N, D]``, token order, any strides.
    """
    row_labels = sorted_keys.clusters.sorted_labels
    group_ends = groups.probe.offsets[..., :: groups.split].tolist()
    for b, h in itertools.product(range(queries.shape[0]), range(queries.shape[1])):
        for group, (start, stop) in enumerate(zip(group_ends[b][h], group_ends[b][h][1:])):
            if start == stop:
                continue
            exact = routing.exact[b, h, group]
            visible = _visible_keys(sorted_keys, conditioning, summaries, exact, row_labels[b, h], settings, (b, h))
            tokens = groups.probe.order[b, h, start:stop]
            probes = slice(group * groups.split, (group + 1) * groups.split)
            correction = None
            if settings.corrects:
                seen = visible.attend(groups.probe.centroids[b, h, probes], scale)
                correction = residual(seen, probe, (b, h, probes))
            own = groups.probe.labels[b, h, tokens] - probes.start
            _attend_group(queries[b, h], tokens, own, visible, correction, scale, output[b, h])
            # Before the next group gathers its keys.
            del visible


def _attend_group(
    queries: Tensor, tokens: Tensor, own: Tensor, visible: VisibleKeys, correction: Residual | None, scale: float, output: Tensor
) -> None:
    """The rows ``tokens`` of one head, whose probe groups within the routing group are ``own``."""
    for rows in row_slices(len(tokens), len(visible.keys), queries.device):
        part = visible.attend(queries[tokens[rows]].to(visible.keys.dtype), scale)
        numerators, denominators = part.numerators, part.denominators
        if correction is not None:
            numerators, denominators = correction.correct(part, own[rows])
        output[tokens[rows]] = (numerators / denominators[:, None]).to(output.dtype)


def residual(seen: PartialSoftmax, probe: Probe, where: tuple[int, int, slice]) -> Residual:
    """The residual from the sparse computation at the probe centroids and dense attention at the same ones.

    Args:
        seen: the sparse computation at the probe centroids of one routing group.
        probe: dense attention at the same centroids.
        where: batch item, head and probe groups.
    """
    peaks = torch.maximum(seen.peaks, probe.peaks[where])
    seen_scale, dense_scale = (seen.peaks - peaks).exp(), (probe.peaks[where] - peaks).exp()
    mass = seen.compensated * seen_scale
    numerators = dense_scale[:, None] * probe.numerators[where] - seen_scale[:, None] * seen.numerators
    denominators = (dense_scale * probe.denominators[where] - seen_scale * seen.denominators).clamp(min=0)
    inverse = inverse_or_zero(mass)
    return Residual(numerators * inverse[:, None], denominators * inverse, seen.compensated / seen.denominators)


def attend_dense(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Dense attention of the conditioning queries: ``[B, H, T, D]`` over ``[B, H, M, D]``."""
    return F.scaled_dot_product_attention(queries, keys, values, scale=scale)


def _visible_keys(
    sorted_keys: SortedKeys,
    conditioning: Conditioning,
    summaries: Summaries,
    exact: Tensor,
    row_labels: Tensor,
    settings: Settings,
    where: tuple[int, int],
) -> VisibleKeys:
    rows = exact[row_labels].nonzero().squeeze(-1)
    skipped = (summaries.log_sizes[where].isfinite() & ~exact).nonzero().squeeze(-1)
    if not settings.compensates:
        skipped = skipped[:0]

    def joined(tokens: Tensor, extra: Tensor, means: Tensor) -> Tensor:
        return torch.cat((tokens[where][rows].to(means.dtype), extra[where].to(means.dtype), means[where][skipped]))

    tokens = len(rows) + conditioning.keys.shape[2]
    return VisibleKeys(
        keys=joined(sorted_keys.keys, conditioning.keys, summaries.key_means),
        values=joined(sorted_keys.values, conditioning.values, summaries.value_means),
        log_weights=F.pad(summaries.log_sizes[where][skipped], (tokens, 0)),
        exact=tokens,
    )
