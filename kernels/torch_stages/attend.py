"""Exact blocks and compensated centroids in one softmax."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import RESIDUAL_REACH, SMALLEST_SHARE
from ..types import Conditioning, Probe, QueryGroups, Routing, Settings, SortedKeys, Summaries
from .chunks import row_slices


@dataclass(frozen=True)
class Seen:
    """What m query rows saw of the visible keys.

    Attributes:
        outputs: ``[m, D]``.
        log_denominators: ``[m]``, natural logarithms of the softmax denominators.
        shares: ``[m]``, the part of each denominator that stands for skipped blocks.
    """

    outputs: Tensor
    log_denominators: Tensor
    shares: Tensor


@dataclass(frozen=True)
class Residual:
    """What compensation misses at the probe centroids of one routing group (design §1.1).

    With O, Z dense attention at the centroid, O', Z' the sparse one and ``e = Z' / Z <= 1`` (Jensen), a row with output o
    that left t times as much to compensation as the centroid becomes ``(e o + t (O - e O')) / (e + t (1 - e))``: dense
    attention for the centroid itself, and the row as it was where nothing was compensated.

    Attributes:
        missing: ``O - e O'``, ``[m, D]``.
        ratios: e, ``[m]``.
        shares: the part of its softmax that each centroid leaves to compensation, ``[m]``.
    """

    missing: Tensor
    ratios: Tensor
    shares: Tensor

    @classmethod
    def between(cls, sparse: Seen, outputs: Tensor, log_denominators: Tensor) -> Residual:
        """The residual of the ``sparse`` computation at the centroids against dense attention at the same ones."""
        ratios = (sparse.log_denominators - log_denominators).clamp(max=0).exp().clamp(min=1e-30)
        return cls(outputs - ratios[:, None] * sparse.outputs, ratios, sparse.shares)

    def correct(self, rows: Seen, own: Tensor) -> Tensor:
        """Outputs of ``rows``, each corrected by the residual of its probe group ``own`` ``[n]``."""
        shares, ratios = self.shares[own], self.ratios[own]
        times = torch.where(shares > SMALLEST_SHARE, rows.shares / shares, 0).clamp(max=RESIDUAL_REACH)
        total = ratios + times * (1 - ratios)
        return (ratios[:, None] * rows.outputs + times[:, None] * self.missing[own]) / total[:, None]


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

    def attend(self, queries: Tensor, scale: float) -> Seen:
        """Attention of ``queries`` ``[m, D]``."""
        logits = torch.addmm(self.log_weights[None], queries, self.keys.T, alpha=scale)
        peaks = logits.amax(-1)
        weights = logits.sub_(peaks[:, None]).exp_()
        sums = weights.sum(-1)
        outputs = (weights @ self.values).div_(sums[:, None])
        return Seen(outputs, peaks + sums.log(), weights[:, self.exact :].sum(-1) / sums)


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
                at_centroids = visible.attend(groups.probe.centroids[b, h, probes], scale)
                correction = Residual.between(at_centroids, probe.outputs[b, h, probes], probe.log_denominators[b, h, probes])
            own = groups.probe.labels[b, h, tokens] - probes.start
            _attend_group(queries[b, h], tokens, own, visible, correction, scale, output[b, h])
            # Before the next group gathers its keys.
            del visible


def _attend_group(
    queries: Tensor, tokens: Tensor, own: Tensor, visible: VisibleKeys, correction: Residual | None, scale: float, output: Tensor
) -> None:
    """The rows ``tokens`` of one head, whose probe groups within the routing group are ``own``."""
    for rows in row_slices(len(tokens), len(visible.keys), queries.device):
        seen = visible.attend(queries[tokens[rows]].to(visible.keys.dtype), scale)
        corrected = seen.outputs if correction is None else correction.correct(seen, own[rows])
        output[tokens[rows]] = corrected.to(output.dtype)


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
