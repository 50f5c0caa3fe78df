"""Exact blocks and compensated centroids in one softmax."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import ceil_div
from ..settings import Settings
from ..types import Clusters, Conditioning, Probe, Routing, SortedKeys, Summaries
from .chunks import row_slices
from .cluster import segment_sum
from .probe import scaled_logits
from .quantize import dequantized


@dataclass(frozen=True)
class KeyRows:
    """Rows to attend to: tokens, or centroids that stand for clusters.

    Attributes:
        keys, values: ``[n, D]``.
        log_weights: ``[n]``, added to the logits: zero for a token, minus infinity for an empty cluster.
    """

    keys: Tensor
    values: Tensor
    log_weights: Tensor

    def attend(self, queries: Tensor, scale: float) -> Tensor:
        """Attention of ``queries`` ``[m, D]``."""
        return torch.addmm(self.log_weights[None], queries, self.keys.T, alpha=scale).softmax(-1) @ self.values


def attend(
    queries: Tensor,
    groups: Clusters,
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
        groups, sorted_keys, conditioning, summaries, probe, routing: results of the stages before. Weighted centroids are
            made here, group by group, because those of all groups would not fit.
        settings: whether and how skipped blocks are compensated.
        scale: factor of the logits.
        output: ``[B, H, N, D]``, token order, any strides.
    """
    row_labels, quantized = sorted_keys.clusters.sorted_labels, sorted_keys.quantized
    queries = queries if quantized is None else quantized.queries
    mean_queries, conditioning, summaries = dequantized(groups.centroids, sorted_keys, conditioning, summaries)
    ends = groups.offsets.tolist()
    for b, h in itertools.product(range(queries.shape[0]), range(queries.shape[1])):
        centroids_of_groups = _centroids_of_groups(mean_queries, sorted_keys, summaries, settings, scale, (b, h))
        for group, centroids in enumerate(centroids_of_groups):
            tokens = groups.order[b, h, ends[b][h][group] : ends[b][h][group + 1]]
            exact = routing.exact[b, h, group]
            visible = _visible_keys(sorted_keys, conditioning, centroids, exact, row_labels[b, h], settings, (b, h))
            for rows in row_slices(len(tokens), len(visible.keys), queries.device):
                some = queries[b, h, tokens[rows]].to(visible.keys.dtype)
                if quantized is not None:
                    some *= quantized.query_scales[b, h, tokens[rows], None]
                part = visible.attend(some, scale)
                output[b, h, tokens[rows]] = part.to(output.dtype)
            # Before the next group gathers its keys.
            del visible


def attend_dense(queries: Tensor, keys: Tensor, values: Tensor, biases: Tensor | None, scale: float, output: Tensor) -> None:
    """Dense attention of the conditioning queries, ``[B, H, T, D]`` over ``[B, H, M, D]``; writes ``output`` ``[B, H, T, D]``.

    ``biases`` ``[B, H, M]`` are added to the logits.
    """
    mask = None if biases is None else biases[:, :, None].to(queries.dtype)
    output.copy_(F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale))


def _centroids_of_groups(
    mean_queries: Tensor, sorted_keys: SortedKeys, summaries: Summaries, settings: Settings, scale: float, where: tuple[int, int]
) -> Iterator[KeyRows]:
    """What stands for each key cluster, one group after the other."""
    plain = KeyRows(summaries.key_means[where], summaries.value_means[where], summaries.log_sizes[where])
    count = mean_queries.shape[2]
    if not settings.weights_centroids:
        yield from itertools.repeat(plain, count)
        return
    # As many groups at once as their centroids fit the workspace.
    for some in row_slices(count, sorted_keys.keys.shape[2] + plain.values.numel(), sorted_keys.keys.device):
        yield from _weighted_centroids(mean_queries[where][some], sorted_keys, plain, scale, where)


def _weighted_centroids(
    centroids: Tensor, sorted_keys: SortedKeys, plain: KeyRows, scale: float, where: tuple[int, int]
) -> Iterator[KeyRows]:
    """The key clusters as the mean queries ``centroids`` ``[m, D]`` see them: ``WeightedCentroids`` has the formulas."""
    item, head = where
    clusters = sorted_keys.clusters
    sizes = clusters.sizes[item : item + 1, head : head + 1]
    labels = clusters.labels[where].gather(-1, clusters.order[where].long()).long()
    keys = sorted_keys.keys[item : item + 1, head : head + 1]
    weights = scaled_logits(_key_scale(sorted_keys, where) * centroids[None, None], keys, scale).mT.contiguous()
    peaks = torch.segment_reduce(weights, "max", lengths=sizes, axis=2, unsafe=True).clamp(min=torch.finfo(weights.dtype).min)
    weights = weights[0, 0].sub_(peaks[0, 0, labels]).exp_()
    sums = segment_sum(weights[None, None], sizes)[0, 0]
    log_weights = peaks[0, 0] + sums.log() - scale * plain.keys @ centroids.T
    means = _sums_by_cluster(weights.div_(sums[labels]), sorted_keys.values[where], clusters.offsets[where])
    for place in range(len(centroids)):
        yield KeyRows(plain.keys, means[:, place], log_weights[:, place])


def _sums_by_cluster(weights: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
    """``weights^T @ values`` of each cluster: ``[N, m]`` and ``[N, D]`` to ``[C, m, D]``, with clusters cut into tiles of one height."""
    tokens, count = len(values), len(offsets) - 1
    height = ceil_div(tokens, count)
    tiles = (offsets.diff() + height - 1) // height
    owners = torch.arange(count, device=values.device).repeat_interleave(tiles)
    rank = torch.arange(len(owners), device=values.device) - (tiles.cumsum(0) - tiles)[owners]
    rows = (offsets[owners] + height * rank)[:, None] + torch.arange(height, device=values.device)
    inside = rows < offsets[owners + 1, None]
    rows = rows.clamp(max=tokens - 1)
    total = weights.new_zeros(count, weights.shape[1], values.shape[1])
    for some in row_slices(len(owners), height * values.shape[1] // 2, values.device):
        part = (_rows(weights, rows[some]) * inside[some, :, None]).mT @ _rows(values, rows[some]).to(weights.dtype)
        total.index_add_(0, owners[some], part)
    return total


def _rows(table: Tensor, places: Tensor) -> Tensor:
    """``table[places]``, which takes twice the time when written so."""
    return table.index_select(0, places.flatten()).view(*places.shape, table.shape[1])


def _visible_keys(
    sorted_keys: SortedKeys,
    conditioning: Conditioning,
    centroids: KeyRows,
    exact: Tensor,
    row_labels: Tensor,
    settings: Settings,
    where: tuple[int, int],
) -> KeyRows:
    rows = exact[row_labels].nonzero().squeeze(-1)
    # What is no number stays, as it does in dense attention.
    skipped = ((centroids.log_weights != -torch.inf) & ~exact).nonzero().squeeze(-1)
    if not settings.compensates:
        skipped = skipped[:0]

    def joined(tokens: Tensor, extra: Tensor, means: Tensor, factor: Tensor | int = 1) -> Tensor:
        return torch.cat((factor * _rows(tokens[where], rows).to(means.dtype), extra[where].to(means.dtype), _rows(means, skipped)))

    weights = centroids.log_weights[skipped]
    extra = weights.new_zeros(conditioning.keys.shape[2]) if conditioning.biases is None else conditioning.biases[where]
    return KeyRows(
        keys=joined(sorted_keys.keys, conditioning.keys, centroids.keys, _key_scale(sorted_keys, where)),
        values=joined(sorted_keys.values, conditioning.values, centroids.values),
        log_weights=F.pad(torch.cat((extra, weights)), (len(rows), 0)),
    )


def _key_scale(sorted_keys: SortedKeys, where: tuple[int, int]) -> Tensor | int:
    """What a head's sorted keys are to be multiplied with."""
    return 1 if sorted_keys.quantized is None else sorted_keys.quantized.key_scales[where]
