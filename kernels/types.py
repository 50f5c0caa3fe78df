"""The values that travel between the stages, and what a caller hands over and gets back.

Letters in shapes: B batch items, H heads, L tokens of the whole sequence, N video tokens, D head dimension,
G query groups, C key clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

CALIBRATED = "calibrated"
METHODS = ("svg-ear", "svg2", CALIBRATED)
BUDGETS = ("density", "top-p")
PROBE_SCORES = ("error", "mass")


@dataclass(frozen=True)
class Settings:
    """How one attention call is routed. Defaults are those of the ``balanced`` preset.

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

    def __post_init__(self):
        for name, allowed in (("method", METHODS), ("budget", BUDGETS), ("probe_score", PROBE_SCORES)):
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

    Keys of ``conditioning`` are exact for every query. Queries outside ``video`` attend densely to all visible keys.
    Tokens in neither are padding: no query sees their keys.

    Attributes:
        video: the routed tokens, a non-empty contiguous range of positions (step 1).
        conditioning: disjoint ranges of the visible tokens outside ``video`` (step 1).
    """

    video: range
    conditioning: tuple[range, ...] = ()

    def __post_init__(self):
        spans = sorted((self.video, *self.conditioning), key=lambda span: span.start)
        if len(self.video) == 0 or any(span.step != 1 or span.start < 0 for span in spans):
            raise ValueError(f"token ranges must be non-negative with step 1, and video not empty; got {self}")
        if any(left.stop > right.start for left, right in zip(spans, spans[1:])):
            raise ValueError(f"token ranges overlap: {self}; each position may belong to one range only")


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


@dataclass(frozen=True)
class Clusters:
    """A partition of the tokens of every head.

    Attributes:
        labels: integer ``[B, H, N]``, the cluster of each token.
        centroids: float ``[B, H, C, D]``, the exact means of the members; an empty cluster keeps its last centroid.
        sizes: integer ``[B, H, C]``.
        order: integer ``[B, H, N]``, token positions sorted by label, positions ascending within a label.
    """

    labels: Tensor
    centroids: Tensor
    sizes: Tensor
    order: Tensor

    def of_heads(self, heads: slice) -> Clusters:
        """The clusters of some heads."""
        part = Clusters(*(tensor[:, heads] for tensor in (self.labels, self.centroids, self.sizes, self.order)))
        # What is known of all heads need not be found again for some.
        part.__dict__["offsets"] = self.offsets[:, heads]
        return part

    @property
    def sorted_labels(self) -> Tensor:
        """int64 ``[B, H, N]``: the label of each row in cluster order."""
        return self.labels.gather(-1, self.order.long())

    @cached_property
    def offsets(self) -> Tensor:
        """int64 ``[B, H, C + 1]``: the sorted members of cluster ``j`` are ``order[offsets[j]:offsets[j + 1]]``."""
        return pad(self.sizes.cumsum(-1), (1, 0))


@dataclass(frozen=True)
class SortedKeys:
    """Keys and values in cluster order.

    Attributes:
        keys, values: ``[B, H, N, D]`` in the input dtype, row ``r`` is token ``clusters.order[r]``.
        clusters: the key clusters that gave the order.
    """

    keys: Tensor
    values: Tensor
    clusters: Clusters


@dataclass(frozen=True)
class Conditioning:
    """Keys and values that are exact for every query: ``[B, H, T, D]``, T may be 0."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Summaries:
    """What is known of a key cluster and its values whoever asks. All float, rows in cluster order.

    Attributes:
        key_means, value_means: ``[B, H, C, D]``.
        log_sizes: ``[B, H, C]``, minus infinity for an empty cluster.
        value_norms: ``[B, H, N]``, squared norm of each value.
        value_dots: ``[B, H, N]``, product of each value with the mean value of its cluster.
    """

    key_means: Tensor
    value_means: Tensor
    log_sizes: Tensor
    value_norms: Tensor
    value_dots: Tensor


@dataclass(frozen=True)
class WeightedCentroids:
    """What stands for key cluster j in query group i, beside the plain mean key, so that the mean query loses nothing.

    With ``a_t = s q_i.k_t`` and ``c = s q_i.k_j``: a row q of the group gives the cluster the softmax weight
    ``exp(s q.k_j + log_weight_ij)`` and the value ``value_ij``, where ``exp(log_weight_ij) = sum_t exp(a_t - c)`` takes the
    place of the size and ``value_ij = sum_t exp(a_t) v_t / sum_t exp(a_t)`` that of the mean value.

    Attributes:
        values: ``[B, H, G, C, D]``.
        log_weights: float ``[B, H, G, C]``, minus infinity for an empty cluster; never below the log size (Jensen).
    """

    values: Tensor
    log_weights: Tensor


@dataclass(frozen=True)
class Probe:
    """What the mean query of each group saw. All float.

    Attributes:
        errors: ``[B, H, G, C]``, squared error of its output when key cluster j is compensated by the plain means: the
            error of the numerator over the squared denominator of dense attention.
        masses: ``[B, H, G, C]``, the share of its attention that compensation gives to key cluster j.
        output_norms: ``[B, H, G]``, squared norm of its output with those masses and the plain mean values.
        centroids: the group's own centroids, where the method uses them and the attention stage does not make them itself.
    """

    errors: Tensor
    masses: Tensor
    output_norms: Tensor
    centroids: WeightedCentroids | None = None


@dataclass(frozen=True)
class ExactRows:
    """The exact keys of every query group as a list of short runs of sorted rows, for a kernel to walk.

    Attributes:
        entries: int32 ``[B, H, G, capacity]``: ``32 * first_row + rows``, at most 16 rows each, zero behind the last.
        counts: int32 ``[B, H, G]``, entries of each group.
    """

    entries: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Routing:
    """Which blocks are exact.

    Attributes:
        exact: bool ``[B, H, G, C]``.
        shares: float ``[B, H, G]``, share of the video keys that are exact for the group.
        rows: the same as a list of rows, where the attention kernel needs one.
    """

    exact: Tensor
    shares: Tensor
    rows: ExactRows | None = None


@dataclass(frozen=True)
class Statistics:
    """What one call did. Tensors stay on the device: reading them there would wait for the GPU.

    Attributes:
        density: float32 ``[B, H]``, share of the video query-key pairs that were computed exactly.
        group_shares: float32 ``[B, H, G]``, the same for each query group.
        estimated_error: float32 ``[B, H]``, root of the squared error that the probe expects of the skipped blocks over the
            squared norm of the output: a relative error of the output, as compensation by plain means would make it, errors
            of different tokens taken as independent.
    """

    density: Tensor
    group_shares: Tensor
    estimated_error: Tensor


@dataclass(frozen=True)
class RoutedHeads:
    """How a few heads of one batch item were routed, for those who want to look: see ``observe`` of ``sparse_attention``.

    Attributes:
        item: the batch item.
        heads: its heads, as a range.
        query_groups, key_clusters, probe, routing: results of the stages, of shape ``[1, len(heads), ...]``.
    """

    item: int
    heads: range
    query_groups: Clusters
    key_clusters: Clusters
    probe: Probe
    routing: Routing

    def key_shares(self) -> Tensor:
        """Float32 ``[len(heads), N]``: the share of the computed video queries that see each token's key exactly."""
        sizes = self.query_groups.sizes[0, :, :, None]
        by_cluster = (self.routing.exact[0] * sizes).sum(1) / sizes.sum(1)
        return by_cluster.gather(-1, self.key_clusters.labels[0].long()).float()


@dataclass(frozen=True)
class AttentionResult:
    """Output ``[B, H, L, D]`` in the input dtype (a view of contiguous ``[B, L, H, D]`` memory) and the statistics."""

    output: Tensor
    statistics: Statistics


@dataclass
class ClusterState:
    """Clusters kept from one denoising step to the next, for calls of one shape.

    A call of another shape, dtype, device, settings or implementation needs a new state; :func:`sparse_attention`
    raises ValueError otherwise.

    Attributes:
        calls: calls made with this state.
        signature: shape, device and settings of those calls.
        items: last clusters of each batch item.
    """

    calls: int = 0
    signature: tuple | None = None
    items: dict[int, "KeptClusters"] = field(default_factory=dict)

    def begin(self, shape: tuple, settings: Settings) -> None:
        """Take the first call's shape and settings; raise ValueError when a later call has others."""
        signature = (*shape, settings)
        if self.signature is None:
            self.signature = signature
        elif self.signature != signature:
            raise ValueError(f"this state belongs to calls of {self.signature}, not {signature}; use a new ClusterState")

    def nbytes(self) -> int:
        """Bytes of device memory held."""
        return sum(kept.nbytes() for kept in self.items.values())


@dataclass(frozen=True)
class KeptClusters:
    """What the next call starts from, in the dtype of the inputs: centroids, and labels when a later call reuses them.

    Attributes:
        query_centroids, key_centroids: ``[B, H, count, D]``.
        query_labels, key_labels: integer ``[B, H, N]``, or None.
    """

    query_centroids: Tensor
    key_centroids: Tensor
    query_labels: Tensor | None
    key_labels: Tensor | None

    def nbytes(self) -> int:
        """Bytes of device memory held."""
        tensors = (getattr(self, entry.name) for entry in fields(self))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
