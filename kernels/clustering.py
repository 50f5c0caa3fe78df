"""Query groups and key clusters of a call, from those of the call before."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .blocks import block_labels
from .counts import cluster_counts, label_dtype, largest_key_cluster, routed_counts
from .settings import BlockRouting, Settings
from .state import ClusterState, KeptClusters
from .types import Clusters


def cluster_tokens(
    queries: Tensor, keys: Tensor, stages: ModuleType, settings: Settings, state: ClusterState, items: range
) -> tuple[Clusters, Clusters]:
    """Groups of the queries and clusters of the keys, ``[B, H, N, D]`` of batch items ``items``.

    Keeps in ``state`` what the next call needs: the clusters before the largest are cut.
    """
    kept = state.items.get(items.start)
    if kept is not None and state.calls % settings.recluster_every:
        groups = stages.cluster_from_labels(queries, kept.query_labels, kept.query_centroids)
        clusters = stages.cluster_from_labels(keys, kept.key_labels, kept.key_centroids)
    else:
        groups, clusters = _clustered_anew(queries, keys, stages, settings, kept)
    keeps_labels = settings.recluster_every > 1 or settings.kmeans_candidates > 0
    state.items[items.start] = KeptClusters(
        query_centroids=groups.rounded_to(queries.dtype),
        key_centroids=clusters.rounded_to(keys.dtype),
        query_labels=_narrow(groups) if keeps_labels else None,
        key_labels=_narrow(clusters) if keeps_labels else None,
    )
    tokens = keys.shape[2]
    largest = largest_key_cluster(tokens, settings)
    if largest < tokens:
        clusters = stages.split(clusters, keys, largest, routed_counts(tokens, settings)[1])
    return groups, clusters


def cluster_by_blocks(queries: Tensor, keys: Tensor, stages: ModuleType, blocks: BlockRouting) -> tuple[Clusters, Clusters]:
    """Blocks of the queries and of the keys, as clusters."""

    def clusters_of(tokens: Tensor) -> Clusters:
        empty = tokens.new_zeros(*tokens.shape[:2], blocks.exact.shape[-1], tokens.shape[-1])
        return stages.cluster_from_labels(tokens, block_labels(tokens, blocks), empty)

    return clusters_of(queries), clusters_of(keys)


def _clustered_anew(
    queries: Tensor, keys: Tensor, stages: ModuleType, settings: Settings, kept: KeptClusters | None
) -> tuple[Clusters, Clusters]:
    """k-means of both; groups of queries depend on the clusters of the keys, which they see."""
    query_count, key_count = cluster_counts(queries.shape[2], settings)
    iterations = settings.kmeans_first if kept is None else settings.kmeans_next
    last_keys = (None, None) if kept is None else (kept.key_centroids, kept.key_labels)
    last_queries = (None, None) if kept is None else (kept.query_centroids, kept.query_labels)
    candidates = settings.kmeans_candidates
    clusters = stages.cluster(keys, key_count, iterations, *last_keys, candidates=candidates)
    metric = stages.key_metric(clusters) if settings.key_metric else None
    return stages.cluster(queries, query_count, iterations, *last_queries, metric=metric, candidates=candidates), clusters


def _narrow(clusters: Clusters) -> Tensor:
    return clusters.labels.to(label_dtype(clusters.sizes.shape[2]))
