"""The definition of correct: every stage as its formula reads, in plain torch.

Nothing here is chunked or shares code with the stages; memory grows with ``N * N``. Meant for small float64 inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .counts import largest_key_cluster, routed_counts
from .settings import SequenceLayout, Settings
from .state import KeptClusters
from .types import Clusters, Conditioning, Probe, Routing, SortedKeys, Summaries


def cluster(
    tokens: Tensor,
    iterations: int,
    centroids: Tensor,
    metric: Tensor | None = None,
    labels: Tensor | None = None,
    candidates: int = 0,
) -> Clusters:
    """Lloyd's algorithm from ``centroids`` ``[B, H, C, D]``: nearest centroid in the ``metric``, then means.

    With ``candidates``, a token that has a cluster looks among the centroids nearest to that cluster's only.
    """
    root = torch.eye(tokens.shape[-1], dtype=tokens.dtype) if metric is None else torch.linalg.cholesky(metric)
    for _ in range(iterations):
        distances = torch.cdist(tokens @ root, centroids @ root)
        if labels is not None and candidates:
            between = torch.cdist(centroids @ root, centroids @ root)
            near = between <= between.sort(-1).values[..., min(candidates, centroids.shape[2]) - 1, None]
            distances = distances.where(torch.take_along_dim(near, labels[..., None], dim=2), torch.inf)
        labels = distances.argmin(-1)
        clusters = cluster_from_labels(tokens, labels, centroids)
        centroids = clusters.centroids
    return clusters


def cluster_from_labels(tokens: Tensor, labels: Tensor, previous: Tensor) -> Clusters:
    """Means of the members of every label; empty clusters take the ``previous`` centroid."""
    members = F.one_hot(labels, previous.shape[2]).to(tokens.dtype)
    sizes = members.sum(2)
    means = members.transpose(-1, -2) @ tokens / sizes.clamp(min=1)[..., None]
    centroids = torch.where(sizes[..., None] > 0, means, previous)
    return Clusters(labels, centroids, sizes.long(), labels.argsort(dim=-1, stable=True))


def split(clusters: Clusters, tokens: Tensor, largest: int, count: int) -> Clusters:
    """Clusters of more than ``largest`` tokens cut into pieces of so many, in the order of their tokens."""
    rank = F.one_hot(clusters.labels, clusters.sizes.shape[2]).cumsum(2).take_along_dim(clusters.labels[..., None], dim=3).squeeze(-1) - 1
    pieces = clusters.labels * tokens.shape[2] + rank // largest
    labels = torch.stack([torch.stack([head.unique(return_inverse=True)[1] for head in item]) for item in pieces])
    return cluster_from_labels(tokens, labels, tokens.new_zeros(*tokens.shape[:2], count, tokens.shape[3]))


def key_metric(keys: Clusters) -> Tensor:
    """Nine tenths covariance of the key centroids, scaled to mean eigenvalue 1, one tenth identity."""
    members = _members(keys).to(keys.centroids.dtype)
    per_token = members @ keys.centroids
    spread = per_token - per_token.mean(2, keepdim=True)
    covariance = spread.transpose(-1, -2) @ spread
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    dim = covariance.shape[-1]
    return 0.9 * dim * covariance / trace + 0.1 * torch.eye(dim, dtype=covariance.dtype)


def permute(keys: Tensor, values: Tensor, clusters: Clusters) -> SortedKeys:
    """Row ``r`` of the result is token ``order[r]``."""
    batch, heads = keys.shape[:2]
    sort = [[clusters.order[b, h] for h in range(heads)] for b in range(batch)]
    keys, values = (
        torch.stack([torch.stack([tensor[b, h, sort[b][h]] for h in range(heads)]) for b in range(batch)]) for tensor in (keys, values)
    )
    return SortedKeys(keys, values, clusters)


def summarize(sorted_keys: SortedKeys) -> Summaries:
    """Means, sizes and products of the values."""
    clusters, values = sorted_keys.clusters, sorted_keys.values
    members = _members(clusters).to(values.dtype)
    value_means = members.transpose(-1, -2) @ values / clusters.sizes.clamp(min=1)[..., None]
    return Summaries(
        key_means=clusters.centroids,
        value_means=value_means,
        log_sizes=clusters.sizes.to(values.dtype).log(),
        value_norms=values.square().sum(-1),
        value_dots=(values * (members @ value_means)).sum(-1),
    )


def probe_tokens(
    centroids: Tensor, sorted_keys: SortedKeys, conditioning: Conditioning, summaries: Summaries, weighted: bool, scale: float
) -> Probe:
    """``E_ij = sum_t |exp(s q_i.k_t) v_t - exp(s q_i.k_j) v_j|^2 / Z_i^2`` at every centroid ``q_i``."""
    members = _members(sorted_keys.clusters).to(centroids.dtype)
    keys = torch.cat((sorted_keys.keys, conditioning.keys), dim=2)
    logits = scale * centroids @ keys.transpose(-1, -2) + F.pad(_biases(conditioning), (sorted_keys.keys.shape[2], 0))
    log_denominators = logits.logsumexp(-1)
    video, extra = logits.softmax(-1).split((sorted_keys.keys.shape[2], conditioning.keys.shape[2]), dim=-1)
    centroid_weights = (scale * centroids @ summaries.key_means.transpose(-1, -2) - log_denominators[..., None]).exp()
    centroid_weights = centroid_weights.masked_fill(sorted_keys.clusters.sizes[:, :, None] == 0, 0)
    own_weights = centroid_weights @ members.transpose(-1, -2)
    difference = video[..., None] * sorted_keys.values[:, :, None] - own_weights[..., None] * (members @ summaries.value_means).unsqueeze(2)
    masses = video @ members if weighted else centroid_weights * sorted_keys.clusters.sizes[:, :, None]
    compensated = masses @ summaries.value_means + extra @ conditioning.values
    return Probe(
        errors=difference.square().sum(-1) @ members,
        masses=masses,
        output_norms=compensated.square().sum(-1),
    )


def route(probe: Probe, clusters: Clusters, settings: Settings) -> Routing:
    """Blocks by falling error per key (or mass), one query group after the other, until the budget is spent."""
    exact = torch.zeros(probe.errors.shape, dtype=torch.bool)
    for b, h, group in torch.cartesian_prod(*(torch.arange(size) for size in exact.shape[:3])).tolist():
        sizes, mass, error = clusters.sizes[b, h], probe.masses[b, h, group], probe.errors[b, h, group]
        by_mass = settings.method == "svg2" or settings.probe_score == "mass"
        ranked = (mass if by_mass else error / sizes).nan_to_num(-1).argsort(descending=True, stable=True).tolist()
        if settings.budget == "density":
            budget = settings.density * sizes.sum().item()
        else:
            budget, reached = 0, 0.0
            for j in mass.argsort(descending=True, stable=True).tolist():
                if reached < settings.top_p:
                    budget += sizes[j].item()
                reached += (mass[j] / mass.sum()).item()
        floor = settings.min_share * sizes.sum().item()
        spent = 0
        for place, j in enumerate(ranked):
            size = sizes[j].item()
            fits = spent + size / 2 <= budget or (place == 0 and settings.method == "svg2")
            exact[b, h, group, j] = size > 0 and (fits or spent < floor)
            spent += size
    return Routing(exact, (exact * clusters.sizes[:, :, None]).sum(-1).to(probe.errors) / clusters.labels.shape[2])


def attend(
    queries: Tensor,
    groups: Clusters,
    sorted_keys: SortedKeys,
    conditioning: Conditioning,
    summaries: Summaries,
    routing: Routing,
    settings: Settings,
    scale: float,
) -> Tensor:
    """One softmax over all tokens, those of skipped clusters seen through their centroids; returns ``[B, H, N, D]``.

    A skipped token t of cluster j has the logit ``s q.k_j`` and the mean value, or with weighted centroids its own value and
    the logit ``s (q.k_j + q_i.(k_t - k_j))``: its place in the cluster as the group's mean query ``q_i`` sees it.
    """
    members = _members(sorted_keys.clusters).to(queries.dtype)
    key_means, value_means = members @ summaries.key_means, members @ summaries.value_means
    exact = torch.take_along_dim(routing.exact, groups.labels[..., None], dim=2).to(queries.dtype) @ members.transpose(-1, -2)
    logits = scale * queries @ sorted_keys.keys.transpose(-1, -2)
    skipped = scale * queries @ key_means.transpose(-1, -2)
    if settings.weights_centroids:
        mean_queries = torch.take_along_dim(groups.centroids, groups.labels[..., None], dim=2)
        skipped = skipped + scale * mean_queries @ (sorted_keys.keys - key_means).transpose(-1, -2)
        value_means = sorted_keys.values
    if not settings.compensates:
        skipped = torch.full_like(skipped, -torch.inf)
    extra = scale * queries @ conditioning.keys.transpose(-1, -2) + _biases(conditioning)
    weights = torch.cat((torch.where(exact.bool(), logits, skipped), extra), dim=-1).softmax(-1)
    video, extra = weights.split((logits.shape[-1], extra.shape[-1]), dim=-1)
    return (video * exact) @ sorted_keys.values + (video * (1 - exact)) @ value_means + extra @ conditioning.values


def dense_attention(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, scale: float, biases: Tensor | None = None) -> Tensor:
    """Attention of all queries over the visible keys with ``biases`` ``[B, H, L]`` added to their logits; returns ``[B, H, L, D]``."""
    visible = torch.zeros(k.shape[2], dtype=torch.bool)
    for span in (layout.video, *layout.conditioning):
        visible[span.start : span.stop] = True
    logits = (scale * q @ k.transpose(-1, -2)).masked_fill(~visible, -torch.inf)
    return (logits if biases is None else logits + biases[:, :, None]).softmax(-1) @ v


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: Settings,
    layout: SequenceLayout,
    scale: float,
    kept: KeptClusters,
    biases: Tensor | None = None,
) -> Tensor:
    """The whole computation for a call that starts from the centroids of the previous one; returns ``[B, H, L, D]``."""
    output = dense_attention(q, k, v, layout, scale, biases)
    video, routed = (slice(span.start, span.stop) for span in (layout.video, layout.routed_queries))
    outside = [position for span in layout.conditioning for position in span]
    conditioning = Conditioning(k[:, :, outside], v[:, :, outside], None if biases is None else biases[:, :, outside])
    near = settings.kmeans_candidates
    clusters = cluster(k[:, :, video], settings.kmeans_next, kept.key_centroids, None, kept.key_labels, near)
    metric = key_metric(clusters) if settings.key_metric else None
    groups = cluster(q[:, :, routed], settings.kmeans_next, kept.query_centroids, metric, kept.query_labels, near)
    tokens = len(layout.video)
    clusters = split(clusters, k[:, :, video], largest_key_cluster(tokens, settings), routed_counts(tokens, settings)[1])
    sorted_keys = permute(k[:, :, video], v[:, :, video], clusters)
    summaries = summarize(sorted_keys)
    probe = probe_tokens(groups.centroids, sorted_keys, conditioning, summaries, settings.weights_centroids, scale)
    routing = route(probe, clusters, settings)
    output[:, :, routed] = attend(q[:, :, routed], groups, sorted_keys, conditioning, summaries, routing, settings, scale)
    return output


def _biases(conditioning: Conditioning) -> Tensor:
    """``[B, H, 1, T]``, zero where there are none."""
    zero = conditioning.keys.new_zeros(conditioning.keys.shape[:3])
    return (zero if conditioning.biases is None else conditioning.biases)[:, :, None]


def _members(clusters: Clusters) -> Tensor:
    """One-hot ``[B, H, N, C]`` of the clusters of the sorted rows."""
    return F.one_hot(clusters.sorted_labels, clusters.sizes.shape[-1])
