"""The stages in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .counts import cluster_counts
from .numerics import compute_dtype
from .statistics import join, measure
from .timing import StageTimer
from .torch_stages import (
    attend,
    attend_dense,
    cluster,
    cluster_from_labels,
    group_queries,
    permute,
    probe_centroids,
    probe_tokens,
    route,
    summarize,
)
from .types import (
    AttentionResult,
    Clusters,
    ClusterState,
    Conditioning,
    KeptClusters,
    QueryGroups,
    RoutedHeads,
    SequenceLayout,
    Settings,
    Statistics,
)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: Settings = Settings(),
    *,
    layouts: SequenceLayout | Sequence[SequenceLayout] | None = None,
    state: ClusterState | None = None,
    scale: float | None = None,
    memory_limit: int | None = None,
    timer: StageTimer | None = None,
    observe: Callable[[RoutedHeads], None] | None = None,
) -> AttentionResult:
    """Attention with the video part routed by SVG-EAR (arXiv 2603.08982) or SVG2 (arXiv 2505.18875).

    Arithmetic is in float32 (float64 for float64 input), exponentials relative to a running maximum. The result is
    deterministic, and does not depend on how clusters are numbered.

    Args:
        q, k, v: ``[B, H, L, D]``, one floating dtype and device, any strides, RoPE applied.
        settings: how blocks are chosen.
        layouts: which tokens are video and which are always exact, one for all batch items or one each;
            None routes all tokens.
        state: clusters of the previous denoising step; updated in place. None clusters from scratch.
        scale: factor of the logits; None is ``D ** -0.5``.
        memory_limit: bytes of working memory beyond the output that one chunk of heads should stay under (at least
            one head is processed at a time whatever it needs); None is half the size of q, k and v together.
        timer: adds up the time per stage.
        observe: called with the routing of every chunk of heads, on the device, before it is forgotten.

    Returns:
        Output and statistics.

    Raises:
        ValueError: shapes, dtypes, devices or layouts that do not fit together, or a state of another shape.
    """
    layouts = _layouts(q, layouts)
    _check(q, k, v, layouts)
    batch, heads, length, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    timer = timer or StageTimer()
    state = state or ClusterState()
    tokens = len(layouts[0].video)
    step = _heads_at_once(q, tokens, settings, memory_limit)
    state.begin((*q.shape, tokens, q.dtype, q.device, step), settings)
    output = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    statistics: dict[tuple[int, int], Statistics] = {}
    for item, layout in enumerate(layouts):
        for head in range(0, heads, step):
            some = range(head, min(heads, head + step))
            part = (slice(item, item + 1), slice(some.start, some.stop))
            kept = state.heads.get((item, head))
            routed, state.heads[item, head] = _attend_heads(
                q[part], k[part], v[part], output[part], (item, some), layout, settings, kept, state.calls, scale, timer
            )
            statistics[item, head] = measure(routed.routing, routed.probe, routed.groups)
            if observe is not None:
                observe(routed)
    state.calls += 1
    return AttentionResult(output, join(statistics, batch))


def _attend_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    where: tuple[int, range],
    layout: SequenceLayout,
    settings: Settings,
    kept: KeptClusters | None,
    calls: int,
    scale: float,
    timer: StageTimer,
) -> tuple[RoutedHeads, KeptClusters]:
    """All stages for the batch item and heads of ``where``; writes ``output``, returns what the next step needs."""
    video = slice(layout.video.start, layout.video.stop)
    queries, keys, values = q[:, :, video], k[:, :, video], v[:, :, video]
    conditioning = Conditioning(_tokens(k, layout.conditioning), _tokens(v, layout.conditioning))
    device = q.device

    with timer.stage("cluster", device):
        groups, clusters = _cluster(queries, keys, settings, kept, calls)
    with timer.stage("permute", device):
        sorted_keys = permute(keys, values, clusters)
    with timer.stage("summarize", device):
        summaries = summarize(sorted_keys)
    with timer.stage("probe", device):
        if settings.compensates:
            probe = probe_tokens(groups.probe.centroids, sorted_keys, conditioning, summaries, scale)
        else:
            probe = probe_centroids(groups.probe.centroids, conditioning, summaries, scale)
    with timer.stage("route", device):
        routing = route(probe, groups, clusters.sizes, settings)
    with timer.stage("attend", device):
        attend(queries, groups, sorted_keys, conditioning, summaries, probe, routing, settings, scale, output[:, :, video])
    if len(layout.video) < q.shape[2]:
        with timer.stage("conditioning", device):
            _attend_conditioning(q, k, v, output, layout, scale)

    keep_labels = settings.recluster_every > 1
    return RoutedHeads(*where, groups, clusters, probe, routing), KeptClusters(
        routing_centroids=groups.routing_centroids.to(q.dtype),
        probe_centroids=groups.probe.centroids.to(q.dtype),
        key_centroids=clusters.centroids.to(q.dtype),
        probe_labels=groups.probe.labels if keep_labels else None,
        key_labels=clusters.labels if keep_labels else None,
    )


def _cluster(queries: Tensor, keys: Tensor, settings: Settings, kept: KeptClusters | None, calls: int) -> tuple[QueryGroups, Clusters]:
    routing_count, split, key_count = cluster_counts(queries.shape[2], settings)
    if kept is None:
        groups = group_queries(queries, routing_count, split, settings.kmeans_first)
        return groups, cluster(keys, key_count, settings.kmeans_first)
    if calls % settings.recluster_every:
        probe = cluster_from_labels(queries, kept.probe_labels, kept.probe_centroids)
        groups = QueryGroups(probe, kept.routing_centroids, split)
        return groups, cluster_from_labels(keys, kept.key_labels, kept.key_centroids)
    groups = group_queries(queries, routing_count, split, settings.kmeans_next, kept.routing_centroids, kept.probe_centroids)
    return groups, cluster(keys, key_count, settings.kmeans_next, kept.key_centroids)


def _attend_conditioning(q: Tensor, k: Tensor, v: Tensor, output: Tensor, layout: SequenceLayout, scale: float) -> None:
    """Dense attention of the tokens around the video over all visible keys."""
    visible = sorted((layout.video, *layout.conditioning), key=lambda span: span.start)
    keys, values = _tokens(k, visible), _tokens(v, visible)
    for outside in (slice(0, layout.video.start), slice(layout.video.stop, q.shape[2])):
        if outside.start < outside.stop:
            output[:, :, outside] = attend_dense(q[:, :, outside], keys, values, scale)


def _tokens(tensor: Tensor, spans: Sequence[range]) -> Tensor:
    """The tokens of ``spans`` from ``[B, H, L, D]``, without a copy where they are one run."""
    parts = [tensor[:, :, span.start : span.stop] for span in spans if len(span)]
    return parts[0] if len(parts) == 1 else torch.cat(parts or [tensor[:, :, :0]], dim=2)


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


def _heads_at_once(q: Tensor, tokens: int, settings: Settings, memory_limit: int | None) -> int:
    """Heads of one chunk: sorted keys and values, one float copy of each, and the probe's tables fit the limit."""
    _, heads, _, dim = q.shape
    routing, split, keys = cluster_counts(tokens, settings)
    wide = compute_dtype(q.dtype).itemsize
    rows = tokens * dim * 2 * (q.itemsize + wide)
    tables = 4 * routing * split * keys * wide
    limit = 3 * q.nbytes // 2 if memory_limit is None else memory_limit
    return max(1, min(heads, limit // (rows + tables)))
