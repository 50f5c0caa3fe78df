"""How many groups and clusters a sequence is cut into."""

from __future__ import annotations

import math

from .settings import Settings

# Automatic counts: (groups, fewest tokens a group, most tokens a group). A scene has its number of topics whatever its
# resolution, so the count stays while the size of a group is within the limits.
QUERY_GROUPS = (260, 16, 252)
KEY_CLUSTERS = (512, 16, 126)


def cluster_counts(tokens: int, settings: Settings) -> tuple[int, int]:
    """Query groups and key clusters for ``tokens`` video tokens.

    Zero in the settings means a count from the token count; counts above the token count are clamped to it.
    """
    queries = settings.query_clusters or _automatic(tokens, *QUERY_GROUPS)
    keys = settings.key_clusters or _automatic(tokens, *KEY_CLUSTERS)
    return min(tokens, queries), min(tokens, keys)


def _automatic(tokens: int, groups: int, fewest: int, most: int) -> int:
    """``groups``, unless they would have fewer than ``fewest`` or more than ``most`` tokens."""
    return max(math.ceil(tokens / most), min(groups, math.ceil(tokens / fewest)))
