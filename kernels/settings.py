"""What a caller says: how attention is routed, which tokens are, and blocks that are known before the call.

Letters in shapes: H heads, N video tokens, n blocks of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CALIBRATED = "calibrated"
METHODS = ("svg-ear", "svg2", CALIBRATED)
BUDGETS = ("density", "top-p")
PROBE_SCORES = ("error", "mass")
FULL, INT8 = "full", "int8"
PRECISIONS = (FULL, INT8)
CLUSTERING = ("query_clusters", "key_clusters", "kmeans_first", "kmeans_next", "kmeans_candidates", "recluster_every", "key_metric")


@dataclass(frozen=True)
class Settings:
    """How one attention call is routed. Defaults are those of the presets, but for the density.

    Raises ValueError for a value outside the range given here.

    Attributes:
        method: ``svg-ear`` compensates skipped blocks by their centroids (arXiv 2603.08982); ``svg2`` routes by
            centroid attention mass and drops skipped blocks (arXiv 2505.18875); ``calibrated`` computes the blocks of
            positions that a :class:`BlockRouting` names (arXiv 2603.05503), so that neither budget nor clusters count.
        budget: ``density`` spends the same share of exact pairs in every query group; ``top-p`` spends, per
            query group, the area of the smallest set of key clusters whose centroid mass reaches ``top_p``.
        density: share of video query-key pairs computed exactly, 0 to 1 (budget ``density``).
        top_p: attention mass, 0 to 1 (budget ``top-p``).
        min_share: least exact share of each query group, 0 to 1.
        query_clusters, key_clusters: query groups and key clusters; 0 chooses from the token count. Counts above the token
            count are clamped to it.
        kmeans_first: k-means iterations of a call without state, at least 1.
        kmeans_next: k-means iterations of a call that starts from the state's centroids, at least 1.
        kmeans_candidates: how many centroids a token is compared with once it has a cluster, those nearest to its own: a power
            of two, at least 16; 0 compares with all, as published.
        recluster_every: cluster anew on every n-th call with the same state; calls between keep the labels and
            only recompute the means.
        weighted_centroids: each query group compensates with its own centroids of the key clusters, weighted by the
            attention of the group's mean query, which makes that query's output exactly dense attention (not with
            ``svg2``). False takes the plain means for all groups, as published.
        key_metric: group queries by how differently they see the keys instead of by Euclidean distance, as published.
        probe_score: how blocks are ranked under ``svg-ear``: by the ``error`` that compensation would make, or by attention
            ``mass``. ``svg2`` always ranks by mass.
        compensate: whether ``calibrated`` compensates skipped blocks by their centroids; False drops them, as published.
        precision: ``int8`` multiplies the video's queries with keys in int8, those of ``probe_centroids`` aside, and weights with
            values in the input dtype (float16 on a GPU as bfloat16); ``full`` multiplies all in the input dtype.
    """

    method: str = "svg-ear"
    budget: str = "density"
    density: float = 0.1
    top_p: float = 0.85
    min_share: float = 0.0
    query_clusters: int = 0
    key_clusters: int = 0
    kmeans_first: int = 6
    kmeans_next: int = 1
    kmeans_candidates: int = 32
    recluster_every: int = 1
    weighted_centroids: bool = True
    key_metric: bool = True
    probe_score: str = "error"
    compensate: bool = True
    precision: str = FULL

    def __post_init__(self):
        for name, allowed in (("method", METHODS), ("budget", BUDGETS), ("probe_score", PROBE_SCORES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        for name in ("density", "top_p", "min_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share and must lie between 0 and 1")
        for name, least in (
            ("query_clusters", 0),
            ("key_clusters", 0),
            ("kmeans_first", 1),
            ("kmeans_next", 1),
            ("recluster_every", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.kmeans_candidates != 0 and (self.kmeans_candidates < 16 or self.kmeans_candidates.bit_count() != 1):
            raise ValueError(f"kmeans_candidates is {self.kmeans_candidates}; it must be 0 or a power of two, at least 16")

    @property
    def clustering(self) -> tuple:
        """What clusters depend on: calls that differ in nothing of it may start from one another's."""
        return tuple(getattr(self, name) for name in CLUSTERING)

    @property
    def compensates(self) -> bool:
        """Whether skipped blocks are replaced by their centroids rather than dropped."""
        return self.compensate if self.method == CALIBRATED else self.method == "svg-ear"

    @property
    def weights_centroids(self) -> bool:
        """Whether each query group has its own centroids."""
        return self.compensates and self.weighted_centroids


@dataclass(frozen=True)
class SequenceLayout:
    """Which tokens of a sequence are routed and which are always exact.

    Keys of ``conditioning`` are exact for every query. Queries that are not routed attend densely to all visible keys.
    Tokens in neither ``video`` nor ``conditioning`` are padding: no query sees their keys.

    Attributes:
        video: the routed keys, a non-empty contiguous range of positions (step 1).
        conditioning: disjoint ranges of the visible keys outside ``video`` (step 1).
        queries: the routed queries, a non-empty contiguous range of positions in q (step 1), which may be fewer than the keys.
            None takes the positions of ``video``, and q as long as k.
    """

    video: range
    conditioning: tuple[range, ...] = ()
    queries: range | None = None

    def __post_init__(self):
        spans = sorted((self.video, *self.conditioning), key=lambda span: (span.start, span.stop))
        routed = (self.video, self.routed_queries)
        if not all(map(len, routed)) or any(span.step != 1 or span.start < 0 for span in (*spans, *routed)):
            raise ValueError(f"token ranges must be non-negative with step 1, and video and queries not empty; got {self}")
        if any(left.stop > right.start for left, right in zip(spans, spans[1:])):
            raise ValueError(f"token ranges overlap: {self}; each position may belong to one range only")

    @property
    def routed_queries(self) -> range:
        """The routed queries, named or not."""
        return self.video if self.queries is None else self.queries


@dataclass(frozen=True)
class BlockRouting:
    """Which blocks of video tokens are exact, known before the call (method ``calibrated``).

    Raises ValueError for a table that is not square, labels of other heads, or repeating heads that it does not have.

    Attributes:
        exact: bool ``[H, n, n]``, query blocks by key blocks, the same for all batch items. Where nothing is compensated, a
            row without any attends to its own block.
        size: tokens of a block; the last one may have fewer, so n is the token count over ``size``, rounded up.
        repeating: heads whose output repeats from block to block: only every :data:`~.blocks.ANCHOR_EVERY`-th block of
            queries is computed, and those behind it are copies.
        labels: int32 ``[H, N]``, the block of each video token, every block full but the last; None takes consecutive tokens.
    """

    exact: Tensor
    size: int
    repeating: tuple[int, ...] = ()
    labels: Tensor | None = None

    def __post_init__(self):
        shape = tuple(self.exact.shape)
        if self.size < 1:
            raise ValueError(f"size is {self.size}; a block has at least one token")
        if len(shape) != 3 or shape[1] != shape[2] or self.exact.dtype != torch.bool:
            raise ValueError(f"exact is {self.exact.dtype} {shape}; a routing by blocks needs bool [H, n, n]")
        if self.labels is not None and (self.labels.dtype != torch.int32 or self.labels.dim() != 2 or len(self.labels) != shape[0]):
            raise ValueError(f"labels are {self.labels.dtype} {tuple(self.labels.shape)}; {shape[0]} heads need int32 [{shape[0]}, N]")
        if any(not 0 <= head < shape[0] for head in self.repeating):
            raise ValueError(f"repeating heads {self.repeating} are not all among the {shape[0]} heads of exact")
