"""The values that the stages hand on, and what a caller gets back.

Letters in shapes: B batch items, H heads, L tokens of the whole sequence, N video tokens, D head dimension,
G query groups, C key clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Clusters:
    """A partition of the tokens of every head.

    Attributes:
        labels: integer ``[B, H, N]``, the cluster of each token.
        centroids: float ``[B, H, C, D]``, the exact means of the members; an empty cluster keeps its last centroid.
        sizes: integer ``[B, H, C]``.
        order: integer ``[B, H, N]``, token positions sorted by label, positions ascending within a label.
        rounded: the centroids in the dtype of the tokens, where a stage has made them on the way.
        part: which part of what clusters these are: what is known of all heads need not be found again for some.
    """

    labels: Tensor
    centroids: Tensor
    sizes: Tensor
    order: Tensor
    rounded: Tensor | None = None
    part: Part | None = None

    def parts(self, heads: int) -> list[Clusters]:
        """The clusters of so many heads at a time, as :func:`parts` cuts tensors."""
        tensors = (self.labels, self.centroids, self.sizes, self.order, self.offsets)
        cut = [parts(tensor, heads) for tensor in tensors]
        rounded = [None] * len(cut[0]) if self.rounded is None else parts(self.rounded, heads)
        return [
            Clusters(*own, some_rounded, Part(self, heads, number)).with_offsets(offsets)
            for number, (*own, offsets, some_rounded) in enumerate(zip(*cut, rounded))
        ]

    def items(self, some: slice) -> Clusters:
        """The clusters of some batch items."""
        if some == slice(0, len(self.labels)):
            return self
        rounded = None if self.rounded is None else self.rounded[some]
        own = Clusters(self.labels[some], self.centroids[some], self.sizes[some], self.order[some], rounded)
        return own.with_offsets(self.offsets[some])

    def with_offsets(self, offsets: Tensor) -> Clusters:
        """These clusters, whose offsets were found together with them."""
        self.__dict__["offsets"] = offsets
        return self

    def with_centroids(self, centroids: Tensor, rounded: Tensor | None = None) -> Clusters:
        """The same members with other centroids; what follows from the sizes is found once for both."""
        clusters = replace(self, centroids=centroids, rounded=rounded)
        clusters.__dict__["derived"] = self.derived
        return clusters.with_offsets(self.offsets)

    def rounded_to(self, dtype: torch.dtype) -> Tensor:
        """The centroids in the dtype of the tokens."""
        return self.centroids.to(dtype) if self.rounded is None else self.rounded

    @cached_property
    def derived(self) -> dict[tuple, object]:
        """What the stages found out from the sizes, to be found once for all heads."""
        return {}

    @property
    def sorted_labels(self) -> Tensor:
        """int64 ``[B, H, N]``: the label of each row in cluster order."""
        return self.labels.gather(-1, self.order.long()).long()

    @cached_property
    def offsets(self) -> Tensor:
        """Integer ``[B, H, C + 1]``: the sorted members of cluster ``j`` are ``order[offsets[j]:offsets[j + 1]]``."""
        return pad(self.sizes.cumsum(-1, dtype=self.sizes.dtype), (1, 0))


@dataclass(frozen=True)
class Part:
    """The part number ``number`` of ``whole``, cut into parts of so many ``heads``."""

    whole: Clusters
    heads: int
    number: int


def parts(tensor: Tensor, heads: int) -> list[Tensor]:
    """``[B, H, ...]`` as ``[1, heads, ...]``, one batch item after the other; the last part of each has what is left."""
    whole, rest = divmod(tensor.shape[1], heads)
    sizes = [heads] * whole + [rest] * (rest > 0)
    items = tensor.split_with_sizes([1] * len(tensor)) if len(tensor) > 1 else (tensor,)
    return [part for item in items for part in item.split_with_sizes(sizes, dim=1)]


@dataclass(frozen=True)
class Quantized:
    """What products of queries and keys are made of in int8, beside the sorted keys.

    Queries and keys are rotated alike, and one vector of each head is taken from its keys, see :mod:`.torch_stages.quantize`.

    Attributes:
        key_means: int8 ``[B, H, C, D]``.
        key_scales: float ``[B, H]``, of the sorted keys and of ``key_means``.
        extra: int8 ``[B, H, T, D]``, the keys of the conditioning.
        extra_scales: float ``[B, H, T]``, one for each of them.
        mean_queries: int8 ``[B, H, G, D]``, those of the groups.
        mean_query_scales: float ``[B, H, G]``, one for each of them.
        queries: int8 ``[B, H, N, D]``, in token order.
        query_scales: float ``[B, H, N]``, one for each of them.
    """

    key_means: Tensor
    key_scales: Tensor
    extra: Tensor
    extra_scales: Tensor
    mean_queries: Tensor
    mean_query_scales: Tensor
    queries: Tensor
    query_scales: Tensor


@dataclass(frozen=True)
class SortedKeys:
    """Keys and values in cluster order.

    Attributes:
        keys, values: ``[B, H, N, D]``, row ``r`` is token ``clusters.order[r]``. Keys are in the input dtype or int8; values too in the
            input dtype, beside int8 in :func:`~.numerics.weighed_in`. Behind the last row memory has further ones, of values zeros,
            see :mod:`.behind`.
        clusters: the key clusters that gave the order.
        quantized: what belongs to ``keys`` in int8; None where they are in the input dtype.
    """

    keys: Tensor
    values: Tensor
    clusters: Clusters
    quantized: Quantized | None = None


@dataclass(frozen=True)
class Conditioning:
    """Keys and values that are exact for every query: ``[B, H, T, D]``, T may be 0.

    Attributes:
        biases: float ``[B, H, T]``, added to the logits of the keys; None adds nothing.
    """

    keys: Tensor
    values: Tensor
    biases: Tensor | None = None


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
        log_denominators: ``[B, H, G]``, in base 2, of its attention with keys in int8, where the attention kernel starts from them
            and marks in them what it computes again.
        centroids: the group's own centroids, where the method uses them and the attention stage does not make them itself.
    """

    errors: Tensor
    masses: Tensor
    output_norms: Tensor
    log_denominators: Tensor | None = None
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
        skipped_errors: float ``[B, H, G]``, the sum of the probe's errors of the other blocks, where the stage has it on the way.
    """

    exact: Tensor
    shares: Tensor
    rows: ExactRows | None = None
    skipped_errors: Tensor | None = None


@dataclass(frozen=True)
class Statistics:
    """What one call did. Tensors stay on the device: reading them there would wait for the GPU.

    All are finite, whatever the inputs were.

    Attributes:
        density: float32 ``[B, H]``, share of the video query-key pairs that were computed exactly.
        group_shares: float32 ``[B, H, G]``, the same for each query group.
        estimated_error: float32 ``[B, H]``, root of the squared error that the probe expects of the skipped blocks over the
            squared norm of the output: a relative error of the output, as compensation by plain means would make it, errors
            of different tokens taken as independent. At most :data:`~.statistics.LARGEST_ERROR`, which also stands for what
            is no number.
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
