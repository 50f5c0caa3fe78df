"""What several calls find out of the same keys once."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .types import Clusters, SortedKeys, Summaries


@dataclass
class SharedKeys:
    """The keys of one call, clustered and in their order, for further calls with the same keys and values.

    For calls of one layer and step that differ in their queries, their exact keys and their biases only. The keys and values of the
    video must be equal in all of them: nothing checks that, but their shape, dtype, device and settings, of which
    :func:`sparse_attention` raises ValueError. The order is kept where it fits the memory limit, but not in int8; drop it with the last
    of the calls.

    Attributes:
        signature: what the calls must have alike.
        clusters: of the batch items that are clustered together, under the first of them.
        sorted: the keys of some heads of a batch item.
    """

    signature: tuple | None = None
    clusters: dict[int, KeyClusters] = field(default_factory=dict)
    sorted: dict[tuple[int, range], tuple[SortedKeys, Summaries]] = field(default_factory=dict)

    def begin(self, signature: tuple) -> None:
        """Take what the first call's keys are; raise ValueError when those of a later one are others."""
        if self.signature is None:
            self.signature = signature
        elif self.signature != signature:
            raise ValueError(f"these keys are shared by calls of {self.signature}, not {signature}; use new SharedKeys")


@dataclass
class KeyClusters:
    """Clusters of keys.

    Attributes:
        whole: as k-means found them.
        routed: with the largest cut.
        metric: what queries are grouped by, ``[B, H, D, D]``, once it was asked for.
    """

    whole: Clusters
    routed: Clusters
    metric: Tensor | None = None
