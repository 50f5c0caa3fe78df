"""Query groups and key clusters of a call, from those of the call before."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .blocks import block_labels
from .counts import cluster_counts, label_dtype, largest_key_cluster, routed_counts
from .settings import BlockRouting, Settings
from .shared_keys import KeyClusters
from .state import ClusterState, KeptClusters
from .types import Clusters


def cluster_tokens(
    queries: Tensor,
    keys: Tensor,
    stages: ModuleType,
    settings: Settings,
    state: ClusterState,
    items: range,
    found: dict[int, KeyClusters],
) -> tuple[Clusters, Clusters]:
    """Groups of the queries and clusters of the keys, ``[B, H, N, D]`` of batch items ``items``.

    Keys whose clusters are ``found`` already, under the first item, are not clustered again; others are added there. Keeps in
    ``state`` what the next call needs: the clusters before the largest are cut.
    """
    kept = state.items.get(items.start)
    known = found.get(items.start)
    clusters = known or _cluster_keys(keys, stages, settings, state, kept)
    found[items.start] = clusters
    groups = _group_queries(queries, clusters, stages, settings, state, kept)
    keeps_labels = settings.recluster_every > 1 or settings.kmeans_candidates > 0
    state.items[items.start] = KeptClusters(
        query_centroids=groups.rounded_to(queries.dtype),
        key_centroids=None if known else clusters.whole.rounded_to(keys.dtype),
        query_labels=_narrow(groups) if keeps_labels else None,
        key_labels=_narrow(clusters.whole) if keeps_labels and not known else None,
    )
    return groups, clusters.routed


def cluster_as(
    queries: Tensor, keys: Tensor, owned: tuple[Clusters, Clusters], stages: ModuleType, items: range, found: dict[int, KeyClusters]
) -> tuple[Clusters, Clusters]:
    """What :func:`cluster_tokens` gives, with these tokens in the places of those that the ``owned`` clusters were found for."""
    groups, clusters = owned
    if items.start not in found:
        clusters = stages.cluster_as(keys, clusters)
        found[items.start] = KeyClusters(clusters, clusters)
    return stages.cluster_as(queries, groups), found[items.start].routed


def cluster_by_blocks(queries: Tensor, keys: Tensor, stages: ModuleType, blocks: BlockRouting) -> tuple[Clusters, Clusters]:
    """Blocks of the queries and of the keys, as clusters."""

    def clusters_of(tokens: Tensor) -> Clusters:
        empty = tokens.new_zeros(*tokens.shape[:2], blocks.exact.shape[-1], tokens.shape[-1])
        return stages.cluster_from_labels(tokens, block_labels(tokens, blocks), empty)

    return clusters_of(queries), clusters_of(keys)


def _cluster_keys(keys: Tensor, stages: ModuleType, settings: Settings, state: ClusterState, kept: KeptClusters | None) -> KeyClusters:
    """Clusters of the keys, from those of the call before where that found any."""
    tokens, warm = keys.shape[2], kept is not None and kept.key_centroids is not None
    if warm and state.calls % settings.recluster_every:
        clusters = stages.cluster_from_labels(keys, kept.key_labels, kept.key_centroids)
    else:
        last = (kept.key_centroids, kept.key_labels) if warm else (None, None)
        iterations = settings.kmeans_next if warm else settings.kmeans_first
        clusters = stages.cluster(keys, cluster_counts(tokens, settings)[1], iterations, *last, candidates=settings.kmeans_candidates)
    largest = largest_key_cluster(tokens, settings)
    routed = clusters if largest == tokens else stages.split(clusters, keys, largest, routed_counts(tokens, settings)[1])
    return KeyClusters(clusters, routed)


def _group_queries(
    queries: Tensor, clusters: KeyClusters, stages: ModuleType, settings: Settings, state: ClusterState, kept: KeptClusters | None
) -> Clusters:
    """Groups of the queries, which depend on the ``clusters`` of the keys that they see."""
    if kept is not None and state.calls % settings.recluster_every:
        return stages.cluster_from_labels(queries, kept.query_labels, kept.query_centroids)
    last = (None, None) if kept is None else (kept.query_centroids, kept.query_labels)
    iterations = settings.kmeans_first if kept is None else settings.kmeans_next
    if settings.key_metric and clusters.metric is None:
        clusters.metric = stages.key_metric(clusters.whole)
    count = cluster_counts(clusters.whole.labels.shape[2], settings, queries.shape[2])[0]
    return stages.cluster(queries, count, iterations, *last, metric=clusters.metric, candidates=settings.kmeans_candidates)


def _narrow(clusters: Clusters) -> Tensor:
    return clusters.labels.to(label_dtype(clusters.sizes.shape[2]))
