"""The stages in order."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from .blocks import anchored, block_count, block_labels, copy_anchors, exact_blocks
from .counts import cluster_counts
from .device import unavailable_reason
from .metric import key_metric
from .statistics import Measured, measure
from .timing import StageTimer
from .types import (
    CALIBRATED,
    AttentionResult,
    BlockRouting,
    Clusters,
    ClusterState,
    Conditioning,
    KeptClusters,
    RoutedHeads,
    SequenceLayout,
    Settings,
)

IMPLEMENTATIONS = ("torch", "triton")
# Bytes. Chunks of fewer heads would leave a short sequence waiting for launches.
LEAST_GPU_MEMORY = 512 * 2**20


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: Settings = Settings(),
    *,
    layouts: SequenceLayout | Sequence[SequenceLayout] | None = None,
    blocks: BlockRouting | None = None,
    state: ClusterState | None = None,
    scale: float | None = None,
    memory_limit: int | None = None,
    timer: StageTimer | None = None,
    observe: Callable[[RoutedHeads], None] | None = None,
    implementation: str | None = None,
) -> AttentionResult:
    """Attention with the video part routed by SVG-EAR (arXiv 2603.08982), by SVG2 (arXiv 2505.18875) or as ``blocks`` say.

    Sums and exponentials are in float32 (float64 for float64 input), exponentials relative to a running maximum; Triton
    multiplies in the input dtype (tf32 for float32). The result is deterministic, and does not depend on how clusters are
    numbered.

    Args:
        q, k, v: ``[B, H, L, D]``, one floating dtype and device, any strides, RoPE applied.
        settings: how blocks are chosen.
        layouts: which tokens are video and which are always exact, one for all batch items or one each;
            None routes all tokens.
        blocks: what method ``calibrated`` computes; for that method only.
        state: clusters of the previous denoising step; updated in place. None clusters from scratch.
        scale: factor of the logits; None is ``D ** -0.5``.
        memory_limit: bytes of working memory beyond the output that one chunk of heads should stay under (at least
            one head is processed at a time whatever it needs); None is three quarters of the size of q, k and v together, and on
            a GPU at least 512 MiB.
        timer: adds up the time per stage.
        observe: called with the routing of every chunk of heads, on the device, before it is forgotten.
        implementation: ``torch`` or ``triton``; None is triton on a GPU and torch on a CPU. Nothing falls back from one
            to the other.

    Returns:
        Output and statistics.

    Raises:
        ValueError: shapes, dtypes, devices, layouts or blocks that do not fit together, a state of another shape, or an
            unknown implementation.
        RuntimeError: Triton is wanted and cannot run on the device; the message says why.
    """
    layouts = _layouts(q, layouts)
    _check(q, k, v, layouts)
    settings = _for_blocks(q, settings, layouts, blocks)
    stages = stages_for(q, implementation)
    batch, heads, length, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    timer = timer or StageTimer()
    state = state or ClusterState()
    tokens = len(layouts[0].video)
    state.begin((*q.shape, tokens, q.dtype, q.device, stages.__name__), settings)
    step = _heads_at_once(q, tokens, settings, memory_limit, stages)
    output = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    measured: list[list[Measured]] = []
    for item, layout in enumerate(layouts):
        call = _Call(stages, settings, layout, blocks, scale, timer, item)
        own = slice(item, item + 1)
        groups, clusters = call.cluster(q[own], k[own], state)
        measured.append([])
        for head in range(0, heads, step):
            some = slice(head, min(heads, head + step))
            part = (own, some)
            routed = call.attend(q[part], k[part], v[part], output[part], groups.of_heads(some), clusters.of_heads(some), some)
            measured[-1].append(Measured.of(routed.routing, routed.probe, routed.query_groups))
            if observe is not None:
                observe(routed)
    state.calls += 1
    return AttentionResult(output, measure(measured, tokens))


@dataclass(frozen=True)
class _Call:
    """The stages for one batch item."""

    stages: ModuleType
    settings: Settings
    layout: SequenceLayout
    blocks: BlockRouting | None
    scale: float
    timer: StageTimer
    item: int

    @property
    def video(self) -> slice:
        return slice(self.layout.video.start, self.layout.video.stop)

    def cluster(self, q: Tensor, k: Tensor, state: ClusterState) -> tuple[Clusters, Clusters]:
        """Query groups and key clusters of all heads, which take little memory; keeps in ``state`` what the next step needs."""
        with self.timer.stage("cluster", q.device):
            if self.blocks is not None:
                return self._block(q[:, :, self.video]), self._block(k[:, :, self.video])
            groups, clusters = self._cluster(q[:, :, self.video], k[:, :, self.video], state)
            keep_labels = self.settings.recluster_every > 1 or self.settings.kmeans_candidates > 0
            state.items[self.item] = KeptClusters(
                query_centroids=groups.centroids.to(q.dtype),
                key_centroids=clusters.centroids.to(q.dtype),
                query_labels=_narrow(groups) if keep_labels else None,
                key_labels=_narrow(clusters) if keep_labels else None,
            )
        return groups, clusters

    def _block(self, tokens: Tensor) -> Clusters:
        """Blocks of tokens, as clusters."""
        labels = block_labels(tokens, self.blocks)
        empty = tokens.new_zeros(*tokens.shape[:2], self.blocks.exact.shape[-1], tokens.shape[-1])
        return self.stages.cluster_from_labels(tokens, labels, empty)

    def _cluster(self, queries: Tensor, keys: Tensor, state: ClusterState) -> tuple[Clusters, Clusters]:
        settings, stages, kept = self.settings, self.stages, state.items.get(self.item)
        query_count, key_count = cluster_counts(queries.shape[2], settings)
        if kept is not None and state.calls % settings.recluster_every:
            groups = stages.cluster_from_labels(queries, kept.query_labels, kept.query_centroids)
            return groups, stages.cluster_from_labels(keys, kept.key_labels, kept.key_centroids)
        iterations = settings.kmeans_first if kept is None else settings.kmeans_next
        last_keys = (None, None) if kept is None else (kept.key_centroids, kept.key_labels)
        last_queries = (None, None) if kept is None else (kept.query_centroids, kept.query_labels)
        candidates = settings.kmeans_candidates
        clusters = stages.cluster(keys, key_count, iterations, *last_keys, candidates=candidates)
        metric = key_metric(clusters) if settings.key_metric else None
        return stages.cluster(queries, query_count, iterations, *last_queries, metric=metric, candidates=candidates), clusters

    def attend(self, q: Tensor, k: Tensor, v: Tensor, output: Tensor, groups: Clusters, clusters: Clusters, heads: slice) -> RoutedHeads:
        """The other stages for some heads; writes ``output``."""
        settings, stages, scale, device = self.settings, self.stages, self.scale, q.device
        queries, keys, values = (tensor[:, :, self.video] for tensor in (q, k, v))
        conditioning = conditioning_of(k, v, self.layout)
        with self.timer.stage("permute", device):
            sorted_keys = stages.permute(keys, values, clusters)
        with self.timer.stage("summarize", device):
            summaries = stages.summarize(sorted_keys)
        with self.timer.stage("probe", device):
            if settings.compensates:
                probe = stages.probe_tokens(groups.centroids, sorted_keys, conditioning, summaries, settings.weights_centroids, scale)
            else:
                probe = stages.probe_centroids(groups.centroids, conditioning, summaries, scale)
        with self.timer.stage("route", device):
            if self.blocks is None:
                routing, computed = stages.route(probe, clusters, settings), groups
            else:
                routing = stages.route_given(exact_blocks(self.blocks, heads, settings.compensates), clusters)
                computed = anchored(groups, self.blocks, heads)
        with self.timer.stage("attend", device):
            video = output[:, :, self.video]
            stages.attend(queries, computed, sorted_keys, conditioning, summaries, probe, routing, settings, scale, video)
            if self.blocks is not None:
                copy_anchors(video, groups, self.blocks, heads)
        if len(self.layout.video) < q.shape[2]:
            with self.timer.stage("conditioning", device):
                self._attend_conditioning(q, k, v, output)
        return RoutedHeads(self.item, range(heads.start, heads.stop), computed, clusters, probe, routing)

    def _attend_conditioning(self, q: Tensor, k: Tensor, v: Tensor, output: Tensor) -> None:
        """Dense attention of the tokens around the video over all visible keys."""
        visible = sorted((self.layout.video, *self.layout.conditioning), key=lambda span: span.start)
        keys, values = _tokens(k, visible), _tokens(v, visible)
        for outside in (slice(0, self.layout.video.start), slice(self.layout.video.stop, q.shape[2])):
            if outside.start < outside.stop:
                output[:, :, outside] = self.stages.attend_dense(q[:, :, outside], keys, values, self.scale)


def _narrow(clusters: Clusters) -> Tensor:
    """The labels in as few bytes as their number allows: those of all layers stay in memory until the next step."""
    return clusters.labels.to(torch.int16 if clusters.sizes.shape[2] <= torch.iinfo(torch.int16).max else torch.int32)


def conditioning_of(k: Tensor, v: Tensor, layout: SequenceLayout) -> Conditioning:
    """Keys and values ``[B, H, L, D]`` of the tokens around the video that every query sees."""
    return Conditioning(_tokens(k, layout.conditioning), _tokens(v, layout.conditioning))


def _tokens(tensor: Tensor, spans: Sequence[range]) -> Tensor:
    """The tokens of ascending ``spans`` from ``[B, H, L, D]``, without a copy where they are one run."""
    runs: list[range] = []
    for span in spans:
        if runs and runs[-1].stop == span.start:
            runs[-1] = range(runs[-1].start, span.stop)
        elif len(span):
            runs.append(span)
    parts = [tensor[:, :, run.start : run.stop] for run in runs]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0] if parts else tensor[:, :, :0]


def stages_for(q: Tensor, implementation: str | None) -> ModuleType:
    """The package whose functions compute the stages."""
    implementation = implementation or ("torch" if q.device.type == "cpu" else "triton")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "triton":
        if q.dtype == torch.float64:
            raise ValueError("q, k, v are float64, which the Triton kernels do not compute; pass implementation='torch'")
        reason = unavailable_reason(q.device)
        if reason is not None:
            raise RuntimeError(f"the Triton kernels cannot run: {reason}")
    return importlib.import_module(f".{implementation}_stages", __package__)


def _layouts(q: Tensor, layouts: SequenceLayout | Sequence[SequenceLayout] | None) -> list[SequenceLayout]:
    if layouts is None:
        layouts = SequenceLayout(range(q.shape[2]))
    return [layouts] * q.shape[0] if isinstance(layouts, SequenceLayout) else list(layouts)


def _check(q: Tensor, k: Tensor, v: Tensor, layouts: list[SequenceLayout]) -> None:
    if q.dim() != 4 or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (q, k, v))
        raise ValueError(f"q, k, v have shapes {shapes}; self-attention needs three equal [B, H, L, D]")
    if not (q.dtype == k.dtype == v.dtype and q.is_floating_point() and q.device == k.device == v.device):
        kinds = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in (q, k, v))
        raise ValueError(f"q, k, v are {kinds}; they need one floating dtype on one device")
    if len(layouts) != q.shape[0]:
        raise ValueError(f"{len(layouts)} layouts for {q.shape[0]} batch items; pass one for all or one each")
    for layout in layouts:
        last = max(span.stop for span in (layout.video, *layout.conditioning))
        if last > q.shape[2]:
            raise ValueError(f"{layout} reaches position {last}, but the sequence has {q.shape[2]} tokens")
    if len({len(layout.video) for layout in layouts}) > 1:
        raise ValueError(f"batch items differ in their number of video tokens: {layouts}; split the batch")


def _for_blocks(q: Tensor, settings: Settings, layouts: list[SequenceLayout], blocks: BlockRouting | None) -> Settings:
    """The settings with the counts of ``blocks``, which have to fit the call."""
    if (settings.method == CALIBRATED) != (blocks is not None):
        given = "no blocks" if blocks is None else "blocks"
        raise ValueError(f"method is {settings.method!r} and {given} are given; pass blocks with method {CALIBRATED!r} and with no other")
    if blocks is None:
        return settings
    count = block_count(len(layouts[0].video), blocks.size)
    if tuple(blocks.exact.shape) != (q.shape[1], count, count) or blocks.exact.device != q.device:
        raise ValueError(
            f"exact blocks are {tuple(blocks.exact.shape)} on {blocks.exact.device}; {q.shape[1]} heads and {len(layouts[0].video)} video "
            f"tokens in blocks of {blocks.size} need {(q.shape[1], count, count)} on {q.device}"
        )
    labels, needed = blocks.labels, (q.shape[1], len(layouts[0].video))
    if labels is not None and (tuple(labels.shape) != needed or labels.device != q.device):
        raise ValueError(f"labels of blocks are {tuple(labels.shape)} on {labels.device}; this call needs {needed} on {q.device}")
    return replace(settings, query_clusters=count, key_clusters=count)


def _heads_at_once(q: Tensor, tokens: int, settings: Settings, memory_limit: int | None, stages: ModuleType) -> int:
    """Heads of one chunk: as many as the limit allows, in chunks of about one size."""
    heads = q.shape[1]
    if memory_limit is None:
        memory_limit = max(9 * q.nbytes // 4, LEAST_GPU_MEMORY if q.is_cuda else 0)
    most = max(1, min(heads, memory_limit // stages.working_bytes(q, tokens, settings)))
    return -(-heads // -(-heads // most))
