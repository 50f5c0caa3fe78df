"""How many groups and clusters a sequence is cut into."""

from __future__ import annotations

import math

import torch

from .settings import CALIBRATED, Settings

# Automatic counts: (groups, fewest tokens a group, most tokens a group). A scene has its number of topics whatever its
# resolution, so the count stays while the size of a group is within the limits.
QUERY_GROUPS = (260, 16, 252)
KEY_CLUSTERS = (512, 16, 126)
# Fewest queries of a group where the queries are a part of the video: groups of a few would leave tiles of the attention kernel empty.
FEWEST_OF_PART = 126
# A key cluster is cut where it has more of the keys than this part of the share to be spent, and than so many mean clusters.
LARGEST_PART, LARGEST_MEANS = 0.5, 4
# The share for which clusters are cut where it is only known in the end.
USUAL_SHARE = 0.1


def cluster_counts(tokens: int, settings: Settings, queries: int | None = None) -> tuple[int, int]:
    """Query groups and key clusters for ``tokens`` video keys and as many queries, or another number of ``queries``.

    Zero in the settings means a count from the token count; counts above the token count are clamped to it.
    """
    queries = tokens if queries is None else queries
    groups, fewest, most = QUERY_GROUPS
    groups = settings.query_clusters or _automatic(queries, groups, FEWEST_OF_PART if queries < tokens else fewest, most)
    keys = settings.key_clusters or _automatic(tokens, *KEY_CLUSTERS)
    return min(queries, groups), min(tokens, keys)


def largest_key_cluster(tokens: int, settings: Settings) -> int:
    """Most keys of a cluster; :func:`~.torch_stages.cluster.split` cuts larger ones.

    A group misses what it is to spend by at most half a cluster (with ``min_share``, exceeds it by at most one).
    """
    share = max(settings.density if settings.budget == "density" else USUAL_SHARE, settings.min_share)
    if settings.method == CALIBRATED or (share == 0 and settings.compensates):
        return tokens
    return min(tokens, max(int(LARGEST_PART * share * tokens), LARGEST_MEANS * math.ceil(tokens / cluster_counts(tokens, settings)[1])))


def label_dtype(count: int) -> torch.dtype:
    """As few bytes as labels of ``count`` clusters need: those of all layers stay in memory until the next step."""
    return torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32


def routed_counts(tokens: int, settings: Settings, queries: int | None = None) -> tuple[int, int]:
    """Query groups, and room for key clusters and the pieces of those that are cut. See :func:`cluster_counts`."""
    groups, keys = cluster_counts(tokens, settings, queries)
    largest = largest_key_cluster(tokens, settings)
    return groups, keys + (tokens // largest if largest < tokens else 0)


def _automatic(tokens: int, groups: int, fewest: int, most: int) -> int:
    """``groups``, unless they would have fewer than ``fewest`` or more than ``most`` tokens."""
    return max(math.ceil(tokens / most), min(groups, math.ceil(tokens / fewest)))
