"""How tight the bound of the error of attention is that SVG-EAR is justified by (arXiv 2603.08982).

With P the softmax weights that a query gives to the N keys and R those that sparse attention with compensation gives (a compensated
key has its part of its cluster's weight), the mean over queries and keys of ``(P - R)^2`` is at most
``2 r + 8 d_q^2 K^2 / (N D)``: r is the same mean for the mean query of each query's group (the routed residual), d_q^2 the mean squared
distance of queries to the mean of their group, K the largest norm of a key. For two softmaxes of logits that differ by at most x
differ by at most x in the sum of absolute differences, which the way from a query to its mean query takes twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..host import PackAttention, RoutedHeads, Settings
from .methods import CountedAttention

# Queries of a head on which softmax weights are compared.
SAMPLES = 512


class BoundedPack(CountedAttention):
    """The pack's attention, with both sides of the bound for every call.

    Attributes:
        rows: layer, step and :func:`sides`, a row for each call and head.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self._attention = PackAttention(settings, self._measure)
        self._inputs: tuple[Tensor, Tensor] | None = None

    def __call__(self, layer: int, step: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self._inputs = query, key
        output = self._attention(layer, step, query, key, value)
        self.spent.append((self._attention.densities[-1], self._attention.densities[-1]))
        return output

    def _measure(self, layer: int, step: int, routed: RoutedHeads) -> None:
        query, key = (tensor[routed.item, routed.heads.start : routed.heads.stop].float() for tensor in self._inputs)
        for head in range(len(routed.heads)):
            measured = sides(query[head], key[head], routed, head, self._attention.settings)
            self.rows.append({"layer": layer, "step": step, "head": routed.heads[head], **measured})


def sides(queries: Tensor, keys: Tensor, routed: RoutedHeads, head: int, settings: Settings) -> dict[str, float]:
    """Both sides of the bound for one head, each a mean over queries and keys.

    Args:
        queries, keys: float ``[N, D]``.
        routed: how heads were routed.
        head: which of them.
        settings: whether and how skipped clusters are compensated.
    """
    tokens, dim = queries.shape
    labels, means = routed.query_groups.labels[0, head].long(), routed.query_groups.centroids[0, head].float()
    distance = (queries - means[labels]).square().sum(-1).mean()
    sample = torch.arange(0, tokens, max(1, tokens // SAMPLES), device=queries.device)
    groups = labels[sample]
    model = _Weights(keys, routed, head, settings)
    dense, sparse = model.dense(queries[sample]), model.sparse(queries[sample], means, groups)
    dense_at_mean, sparse_at_mean = model.dense(means[groups]), model.sparse(means[groups], means, groups)
    residual = _mean_square(dense_at_mean - sparse_at_mean)
    centred = keys - keys.mean(0)
    terms = [8 * distance.item() * norms.square().sum(-1).max().item() / (tokens * dim) for norms in (keys, centred)]
    error = _mean_square(dense - sparse)
    return {
        "map_error": error,
        "routed_residual": residual,
        "grouping_error": _mean_square(dense - dense_at_mean),
        "query_distance": distance.item(),
        "bound": 2 * residual + terms[0],
        "bound_centred_keys": 2 * residual + terms[1],
        "times_too_large": (2 * residual + terms[0]) / error if error else float("inf"),
    }


def _mean_square(difference: Tensor) -> float:
    return difference.square().mean().item()


class _Weights:
    """Softmax weights of queries over the tokens of one head, dense and as routed: ``[m, N]`` each."""

    def __init__(self, keys: Tensor, routed: RoutedHeads, head: int, settings: Settings):
        self.keys, self.settings, self.scale = keys, settings, keys.shape[-1] ** -0.5
        self.clusters = routed.key_clusters.labels[0, head].long()
        self.key_means = routed.key_clusters.centroids[0, head].float()
        self.exact = routed.routing.exact[0, head]

    def dense(self, queries: Tensor) -> Tensor:
        return (self.scale * queries @ self.keys.T).softmax(-1)

    def sparse(self, queries: Tensor, means: Tensor, groups: Tensor) -> Tensor:
        """Of ``queries`` in ``groups`` with the mean queries ``means``."""
        logits = self.scale * queries @ self.keys.T
        skipped = self.scale * (queries @ self.key_means.T)[:, self.clusters]
        if self.settings.weights_centroids:
            own = means[groups]
            skipped += self.scale * (own @ self.keys.T - (own @ self.key_means.T)[:, self.clusters])
        elif not self.settings.compensates:
            skipped = torch.full_like(skipped, -torch.inf)
        return torch.where(self.exact[groups][:, self.clusters], logits, skipped).softmax(-1)
