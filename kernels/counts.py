"""How many groups and clusters a sequence is cut into."""

from __future__ import annotations

import math

from .types import Settings

# Automatic counts: (groups, fewest tokens a group, most tokens a group). A scene has its number of topics whatever its
# resolution, so the count stays while the size of a group is within the limits.
ROUTING_GROUPS = (130, 32, 252)
PROBE_GROUPS = (1024, 16, 32)
KEY_CLUSTERS = (1000, 16, 76)


def cluster_counts(tokens: int, settings: Settings) -> tuple[int, int, int]:
    """Routing groups, probe groups per routing group, and key clusters for ``tokens`` video tokens.

    Zero in the settings means a count from the token count; counts above the token count are clamped to it.
    """
    routing = min(tokens, settings.query_clusters or _automatic(tokens, *ROUTING_GROUPS))
    probe = min(tokens, settings.probe_clusters or _automatic(tokens, *PROBE_GROUPS))
    keys = min(tokens, settings.key_clusters or _automatic(tokens, *KEY_CLUSTERS))
    return routing, max(1, round(probe / routing)), keys


def _automatic(tokens: int, groups: int, fewest: int, most: int) -> int:
    """``groups``, unless they would have fewer than ``fewest`` or more than ``most`` tokens."""
    return max(math.ceil(tokens / most), min(groups, math.ceil(tokens / fewest)))
