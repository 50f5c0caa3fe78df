"""The stages in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from .arguments import check_tensors, heads_at_once, layouts_of, owners_of, settings_for, stages_for
from .blocks import anchored, copy_anchors, exact_blocks
from .clustering import cluster_by_blocks, cluster_tokens
from .settings import BlockRouting, SequenceLayout, Settings
from .state import ClusterState
from .statistics import Measured, measure
from .strides import readable
from .surroundings import attend_surroundings, conditioning_of
from .timing import StageTimer
from .types import AttentionResult, Clusters, RoutedHeads


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: Settings = Settings(),
    *,
    layouts: SequenceLayout | Sequence[SequenceLayout] | None = None,
    blocks: BlockRouting | None = None,
    state: ClusterState | None = None,
    owners: Sequence[int] | None = None,
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
        owners: for each batch item the one whose clusters it takes, which must be its own owner: the same positions together,
            with means of its own. It costs a fraction of clustering anew. None lets every item have its own clusters.
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
        ValueError: shapes, dtypes, devices, layouts, owners or blocks that do not fit together, a state of another shape, or an
            unknown implementation.
        RuntimeError: Triton is wanted and cannot run on the device; the message says why.
    """
    layouts = layouts_of(q, layouts)
    check_tensors(q, k, v, layouts)
    settings = settings_for(q, settings, layouts, blocks)
    stages = stages_for(q, implementation)
    q, k, v = map(readable, (q, k, v))
    batch, heads, length, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    timer = timer or StageTimer()
    tokens = len(layouts[0].video)
    state = state or ClusterState()
    state.begin((*q.shape, tokens, q.dtype, q.device, stages.__name__), settings)
    step = heads_at_once(q, tokens, settings, memory_limit, stages)
    output = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    owners = owners_of(batch, owners)
    owned: dict[int, tuple[Clusters, Clusters]] = {}
    measured: list[list[Measured]] = [[] for _ in layouts]
    for item in sorted(range(batch), key=lambda item: owners[item] != item):
        call = _Call(stages, settings, layouts[item], blocks, scale, timer, item)
        own = slice(item, item + 1)
        groups, clusters = call.cluster(q[own], k[own], state, owned.get(owners[item]))
        if owners.count(item) > 1:
            owned[item] = groups, clusters
        for head in range(0, heads, step):
            some = slice(head, min(heads, head + step))
            part = (own, some)
            routed = call.attend(q[part], k[part], v[part], output[part], groups.of_heads(some), clusters.of_heads(some), some)
            measured[item].append(Measured.of(routed.routing, routed.probe, routed.query_groups))
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

    def cluster(self, q: Tensor, k: Tensor, state: ClusterState, owned: tuple[Clusters, Clusters] | None) -> tuple[Clusters, Clusters]:
        """Query groups and key clusters of all heads, which take little memory: those of an owner that has its own already, or new ones."""
        queries, keys = q[:, :, self.video], k[:, :, self.video]
        with self.timer.stage("cluster", q.device):
            if self.blocks is not None:
                return cluster_by_blocks(queries, keys, self.stages, self.blocks)
            if owned is not None:
                groups, clusters = owned
                return self.stages.cluster_as(queries, groups), self.stages.cluster_as(keys, clusters)
            return cluster_tokens(queries, keys, self.stages, self.settings, state, self.item)

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
                attend_surroundings(q, k, v, self.layout, stages, scale, output)
        return RoutedHeads(self.item, range(heads.start, heads.stop), computed, clusters, probe, routing)
