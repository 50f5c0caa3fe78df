"""The definition of correct: every stage as its formula reads, in plain torch.

Nothing here is chunked or shares code with the stages; memory grows with ``N * N``. Meant for small float64 inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import (
    Clusters,
    Conditioning,
    KeptClusters,
    Probe,
    QueryGroups,
    Routing,
    SequenceLayout,
    Settings,
    SortedKeys,
    Summaries,
)


def cluster(tokens: Tensor, iterations: int, centroids: Tensor) -> Clusters:
    """Lloyd's algorithm from ``centroids`` ``[B, H, C, D]``: nearest centroid, then means."""
    for _ in range(iterations):
        labels = torch.cdist(tokens, centroids).argmin(-1)
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


def group_queries(queries: Tensor, iterations: int, routing_centroids: Tensor, probe_centroids: Tensor) -> QueryGroups:
    """Routing groups, then the nearest of each group's own probe centroids ``[B, H, G * split, D]``."""
    routing = cluster(queries, iterations, routing_centroids)
    split = probe_centroids.shape[2] // routing_centroids.shape[2]
    for _ in range(iterations):
        distances = torch.cdist(queries, probe_centroids)
        owner = torch.arange(probe_centroids.shape[2]) // split
        labels = distances.masked_fill(owner != routing.labels[..., None], torch.inf).argmin(-1)
        probe = cluster_from_labels(queries, labels, probe_centroids)
        probe_centroids = probe.centroids
    return QueryGroups(probe, routing.centroids, split)


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


def probe_tokens(centroids: Tensor, sorted_keys: SortedKeys, conditioning: Conditioning, summaries: Summaries, scale: float) -> Probe:
    """``E_pj = sum_t |exp(s q_p.k_t) v_t - exp(s q_p.k_j) v_j|^2 / Z_p^2`` and dense attention at every centroid."""
    members = _members(sorted_keys.clusters).to(centroids.dtype)
    keys = torch.cat((sorted_keys.keys, conditioning.keys), dim=2)
    values = torch.cat((sorted_keys.values, conditioning.values), dim=2)
    logits = scale * centroids @ keys.transpose(-1, -2)
    log_denominators = logits.logsumexp(-1)
    weights = logits.softmax(-1)
    centroid_weights = (scale * centroids @ summaries.key_means.transpose(-1, -2) - log_denominators[..., None]).exp()
    centroid_weights = centroid_weights.masked_fill(sorted_keys.clusters.sizes[:, :, None] == 0, 0)
    own_weights = centroid_weights @ members.transpose(-1, -2)
    video = weights[..., : sorted_keys.keys.shape[2]]
    difference = video[..., None] * sorted_keys.values[:, :, None] - own_weights[..., None] * (members @ summaries.value_means).unsqueeze(2)
    return Probe(
        errors=difference.square().sum(-1) @ members,
        masses=centroid_weights * sorted_keys.clusters.sizes[:, :, None],
        outputs=weights @ values,
        log_denominators=log_denominators,
    )


def route(probe: Probe, groups: QueryGroups, key_sizes: Tensor, settings: Settings) -> Routing:
    """Blocks by falling error per key (or mass), one routing group after the other, until the budget is spent."""
    batch, heads, clusters = key_sizes.shape
    shape = (batch, heads, groups.routing_centroids.shape[2], clusters)
    exact = torch.zeros(shape, dtype=torch.bool)
    for b, h, group in torch.cartesian_prod(*(torch.arange(size) for size in shape[:3])).tolist():
        probes = range(group * groups.split, (group + 1) * groups.split)
        sizes = key_sizes[b, h]
        mass, error = torch.zeros(clusters), torch.zeros(clusters)
        shift = probe.log_denominators[b, h, probes.start : probes.stop].max()
        for p in probes:
            weight = groups.probe.sizes[b, h, p]
            mass = mass + weight * probe.masses[b, h, p] / probe.masses[b, h, p].sum()
            if settings.probe_score == "published":
                error = error + weight * probe.errors[b, h, p] * (2 * (probe.log_denominators[b, h, p] - shift)).exp()
            else:
                error = error + weight * probe.errors[b, h, p]
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
    return Routing(exact, (exact * key_sizes[:, :, None]).sum(-1) / key_sizes.sum(-1)[:, :, None].to(probe.errors))


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
) -> Tensor:
    """One softmax over exact tokens, conditioning and centroids, with the residual; returns ``[B, H, N, D]``."""
    owner = groups.probe.labels

    def numerator_and_denominator(rows: Tensor, group: Tensor):
        """Exponentials relative to ``peak`` for rows ``[B, H, m, D]`` of routing groups ``[B, H, m]``."""
        exact = torch.take_along_dim(routing.exact, group[..., None], dim=2)
        kept = (exact.to(rows.dtype) @ _members(sorted_keys.clusters).to(rows.dtype).transpose(-1, -2)).bool()
        tokens = (scale * rows @ sorted_keys.keys.transpose(-1, -2)).masked_fill(~kept, -torch.inf)
        extra = scale * rows @ conditioning.keys.transpose(-1, -2)
        tail = scale * rows @ summaries.key_means.transpose(-1, -2) + summaries.log_sizes[:, :, None]
        tail = tail.masked_fill(exact | (not settings.compensates), -torch.inf)
        logits = torch.cat((tokens, extra, tail), dim=-1)
        values = torch.cat((sorted_keys.values, conditioning.values, summaries.value_means), dim=2)
        peak = logits.amax(-1, keepdim=True)
        weights = (logits - peak).exp()
        return weights @ values, weights.sum(-1), weights[..., -tail.shape[-1] :].sum(-1), peak.squeeze(-1)

    numerators, denominators, compensated, _ = numerator_and_denominator(queries, owner // groups.split)
    if settings.corrects:
        count = groups.probe.centroids.shape[2]
        own_group = (torch.arange(count) // groups.split).expand(*queries.shape[:2], count)
        seen, seen_sum, mass, peak = numerator_and_denominator(groups.probe.centroids, own_group)
        dense_sum = (probe.log_denominators - peak).exp()
        inverse = torch.where(mass > torch.finfo(mass.dtype).tiny ** 0.5, 1 / mass, 0)
        r = (dense_sum[..., None] * probe.outputs - seen) * inverse[..., None]
        z = (dense_sum - seen_sum).clamp(min=0) * inverse
        reach = 4 * (mass / seen_sum).gather(-1, owner) * denominators
        compensated = torch.minimum(compensated, reach)
        numerators = numerators + compensated[..., None] * torch.take_along_dim(r, owner[..., None], dim=2)
        denominators = denominators + compensated * z.gather(-1, owner)
    return numerators / denominators[..., None]


def dense_attention(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, scale: float) -> Tensor:
    """Attention of all queries over the visible keys, ``[B, H, L, D]``."""
    visible = torch.zeros(q.shape[2], dtype=torch.bool)
    for span in (layout.video, *layout.conditioning):
        visible[span.start : span.stop] = True
    logits = (scale * q @ k.transpose(-1, -2)).masked_fill(~visible, -torch.inf)
    return logits.softmax(-1) @ v


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, settings: Settings, layout: SequenceLayout, scale: float, kept: KeptClusters
) -> Tensor:
    """The whole computation for a call that starts from the centroids of the previous one; returns ``[B, H, L, D]``."""
    output = dense_attention(q, k, v, layout, scale)
    video = slice(layout.video.start, layout.video.stop)
    outside = [position for span in layout.conditioning for position in span]
    conditioning = Conditioning(k[:, :, outside], v[:, :, outside])
    groups = group_queries(q[:, :, video], settings.kmeans_next, kept.routing_centroids, kept.probe_centroids)
    clusters = cluster(k[:, :, video], settings.kmeans_next, kept.key_centroids)
    sorted_keys = permute(k[:, :, video], v[:, :, video], clusters)
    summaries = summarize(sorted_keys)
    probe = probe_tokens(groups.probe.centroids, sorted_keys, conditioning, summaries, scale)
    routing = route(probe, groups, clusters.sizes, settings)
    output[:, :, video] = attend(q[:, :, video], groups, sorted_keys, conditioning, summaries, probe, routing, settings, scale)
    return output


def _members(clusters: Clusters) -> Tensor:
    """One-hot ``[B, H, N, C]`` of the clusters of the sorted rows."""
    return F.one_hot(clusters.sorted_labels, clusters.sizes.shape[-1])
