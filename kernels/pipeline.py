"""The stages in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

from torch import Tensor

from .arguments import alike, biases_of, check_tensors, chunks_for, layouts_of, owners_of, settings_for, stages_for
from .blocks import anchored, copy_anchors, exact_blocks
from .clustering import cluster_as, cluster_by_blocks, cluster_tokens
from .device import on_its_device
from .replay import replayed
from .settings import INT8, BlockRouting, SequenceLayout, Settings
from .shared_keys import SharedKeys
from .state import ClusterState
from .statistics import Measured, measure
from .strides import readable
from .surroundings import attend_surroundings, conditioning_of
from .timing import StageTimer
from .tuning import attend_tiles, probe_tiles
from .types import AttentionResult, Clusters, Conditioning, RoutedHeads, SortedKeys, Summaries, parts


@on_its_device
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: Settings = Settings(),
    *,
    layouts: SequenceLayout | Sequence[SequenceLayout] | None = None,
    biases: Tensor | None = None,
    blocks: BlockRouting | None = None,
    state: ClusterState | None = None,
    shared: SharedKeys | None = None,
    owners: Sequence[int] | None = None,
    scale: float | None = None,
    memory_limit: int | None = None,
    timer: StageTimer | None = None,
    observe: Callable[[RoutedHeads], None] | None = None,
    implementation: str | ModuleType | None = None,
) -> AttentionResult:
    """Attention with the video part routed by SVG-EAR (arXiv 2603.08982), by SVG2 (arXiv 2505.18875) or as ``blocks`` say.

    Sums and exponentials are in float32 (float64 for float64 input), exponentials relative to a running maximum or, in int8, to
    the sum that is expected; Triton multiplies in the input dtype (tf32 for float32) what precision int8 does not. The result is
    deterministic, and does not depend on how clusters are numbered.

    Args:
        q, k, v: ``[B, H, L, D]``, one floating dtype and device, any strides, RoPE applied. L of q may be another one where the
            layouts name their queries.
        settings: how blocks are chosen.
        layouts: which tokens are video and which are always exact, one for all batch items or one each;
            None routes all tokens.
        biases: ``[B or 1, H or 1, L of k]`` of any floating dtype, added to the logits of the conditioning keys, minus infinity
            hides one; zero at the video's keys. None adds nothing.
        blocks: what method ``calibrated`` computes; for that method only.
        state: clusters of the previous denoising step; updated in place. None clusters from scratch.
        shared: what calls before with the same video keys and values found out of them; updated in place. None shares nothing.
        owners: for each batch item the one whose clusters it takes, which must be its own owner: the same positions together,
            with means of its own. It costs a fraction of clustering anew. None lets every item have its own clusters.
        scale: factor of the logits; None is ``D ** -0.5``.
        memory_limit: bytes of working memory beyond the output that one chunk of heads should stay under (at least
            one head is processed at a time whatever it needs); None is three quarters of the size of q, k and v together (three
            halves of that of k and v where keys are shared), and on a GPU at least 512 MiB.
        timer: adds up the time per stage.
        observe: called with the routing of every chunk of heads, on the device, before it is forgotten.
        implementation: ``torch`` or ``triton``; None is triton on a GPU and torch on a CPU. Nothing falls back from one
            to the other. Something else has the stages as its functions.

    Returns:
        Output and statistics.

    Raises:
        ValueError: shapes, dtypes, devices, layouts, biases, owners or blocks that do not fit together, a state of another shape,
            shared keys of another one, an unknown implementation, or a scale or head dimension that precision int8 does not take.
        RuntimeError: Triton is wanted and cannot run on the device; the message says why.
    """
    layouts = layouts_of(k, layouts)
    check_tensors(q, k, v, layouts)
    biases = biases_of(k, biases)
    settings = settings_for(q, settings, layouts, blocks)
    stages = stages_for(q, implementation)
    q, k, v = map(readable, (q, k, v))
    batch, heads, length, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    if settings.precision == INT8 and scale < 0:
        raise ValueError(f"scale is {scale}; precision int8 takes none below 0: negate the queries, or take precision full")
    done = timer.start(q.device) if timer else _untimed
    owners = owners_of(layouts, owners)
    queries, tokens, together = len(layouts[0].routed_queries), len(layouts[0].video), alike(layouts, owners)
    sharing = shared is not None
    step, keeps_order = chunks_for(q, k, v, layouts[0], settings, memory_limit, stages, sharing)
    state, shared = state or ClusterState(), shared or SharedKeys()
    kind = (tokens, *map(len, together), q.dtype, q.device, stages.__name__)
    state.begin((*q.shape, k.shape[2], queries, *kind), settings)
    shared.begin((batch, heads, dim, *kind, *owners, settings))
    call = _Call(stages, settings, blocks, scale, layouts, owners, together, step, done, shared, keeps_order)
    repeats = observe is None and not sharing and call.only_launches(q, state)
    output, measured = call.repeated(q, k, v, biases, state) if repeats else call.run(q, k, v, biases, state, observe)
    state.calls += 1
    return AttentionResult(output, measure(measured, batch, queries))


def _untimed(stage: str) -> None:
    """Where nobody asks how long a stage took."""


def _items_of(found: dict[range, tuple[Clusters, Clusters]], first: int, count: int) -> tuple[Clusters, Clusters] | None:
    """What was found for ``count`` batch items from ``first`` on; None for nothing yet."""
    for items, (groups, clusters) in found.items():
        if first in items:
            some = slice(first - items.start, first - items.start + count)
            return groups.items(some), clusters.items(some)
    return None


def _of(span: range, tensor: Tensor) -> Tensor:
    """The tokens of ``span`` from ``[B, H, L, D]``."""
    return tensor if len(span) == tensor.shape[2] else tensor[:, :, span.start : span.stop]


@dataclass(frozen=True)
class _Call:
    """One call, but for its tensors.

    Attributes:
        together: runs of batch items that are clustered together.
        step: heads of a chunk.
        done: told when a stage ends.
        shared: what is known of the keys.
        keeps_order: whether the sorted keys stay with that.
    """

    stages: ModuleType
    settings: Settings
    blocks: BlockRouting | None
    scale: float
    layouts: list[SequenceLayout]
    owners: list[int]
    together: list[range]
    step: int
    done: Callable[[str], None]
    shared: SharedKeys
    keeps_order: bool

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        biases: Tensor | None,
        state: ClusterState,
        observe: Callable[[RoutedHeads], None] | None = None,
    ) -> tuple[Tensor, list[Measured]]:
        """The output ``[B, H, L, D]``, and the figures of every chunk of heads, one batch item after the other."""
        layouts, owners, step = self.layouts, self.owners, self.step
        batch, heads, length, dim = q.shape
        output = q.new_empty(batch, length, heads, dim).transpose(1, 2)
        found: dict[range, tuple[Clusters, Clusters]] = {}
        measured: dict[int, list[Measured]] = {item: [] for item in range(batch)}
        # Owners before those who take what they have.
        for items in sorted(self.together, key=lambda items: owners[items.start] != items.start):
            own = slice(items.start, items.stop)
            owned = _items_of(found, owners[items.start], len(items))
            groups, clusters = found[items] = self.cluster(q[own], k[own], layouts[items.start], state, items, owned)
            places = itertools.product(items, (range(head, min(heads, head + step)) for head in range(0, heads, step)))
            some_biases = itertools.repeat(None) if biases is None else parts(biases[own], step)
            chunks = zip(*(parts(tensor[own], step) for tensor in (q, k, v, output)), some_biases, groups.parts(step), clusters.parts(step))
            for (item, some), chunk in zip(places, chunks):
                routed = self.attend(*chunk, layouts[item], item, some)
                measured[item].append(Measured.of(routed.routing, routed.probe, routed.query_groups))
                if observe is not None:
                    observe(routed)
        return output, list(itertools.chain(*measured.values()))

    def only_launches(self, q: Tensor, state: ClusterState) -> bool:
        """Whether the call may do nothing but launch kernels; a first one does more, and so does one with blocks."""
        # Stages that are no module look at what they hand on, and tensors of another class may have no data.
        launches = isinstance(self.stages, ModuleType) and self.stages.LAUNCHES
        return launches and type(q) is Tensor and bool(state.items) and self.blocks is None

    def repeated(self, q: Tensor, k: Tensor, v: Tensor, biases: Tensor | None, state: ClusterState) -> tuple[Tensor, list[Measured]]:
        """What :meth:`run` gives, by the launches of an earlier call that was alike."""

        def compute(
            done: Callable[[str], None], q: Tensor, k: Tensor, v: Tensor, biases: Tensor | None, *kept: Tensor | None
        ) -> list[Tensor | None]:
            after = state.of(kept)
            output, measured = replace(self, done=done, shared=SharedKeys()).run(q, k, v, biases, after)
            return [output, *(tensor for some in measured for tensor in some.tensors()), *after.tensors()]

        reclusters = state.calls % self.settings.recluster_every == 0
        tiles = attend_tiles(q.device, q.itemsize), probe_tiles(q.device, q.itemsize)
        key = (self.settings, self.scale, *self.layouts, *self.owners, self.step, *state.items, reclusters, *tiles)
        kept = state.tensors()
        output, *found = replayed(compute, key, (q, k, v, biases, *kept), self.done)
        split = len(found) - len(kept)
        state.items = state.of(found[split:]).items
        return output, Measured.all_of(found[:split])

    def cluster(
        self, q: Tensor, k: Tensor, layout: SequenceLayout, state: ClusterState, items: range, owned: tuple[Clusters, Clusters] | None
    ) -> tuple[Clusters, Clusters]:
        """Query groups and key clusters of all heads, which take little memory, of batch items whose video lies at the same place.

        They are in the places of ``owned`` where owners have clusters already.
        """
        queries, keys = _of(layout.routed_queries, q), _of(layout.video, k)
        if self.blocks is not None:
            found = cluster_by_blocks(queries, keys, self.stages, self.blocks)
        elif owned is not None:
            found = cluster_as(queries, keys, owned, self.stages, items, self.shared.clusters)
        else:
            found = cluster_tokens(queries, keys, self.stages, self.settings, state, items, self.shared.clusters)
        self.done("cluster")
        return found

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        output: Tensor,
        biases: Tensor | None,
        groups: Clusters,
        clusters: Clusters,
        layout: SequenceLayout,
        item: int,
        heads: range,
    ) -> RoutedHeads:
        """The other stages for some heads of one batch item; writes ``output``."""
        settings, stages, scale, done = self.settings, self.stages, self.scale, self.done
        queries, video = (_of(layout.routed_queries, tensor) for tensor in (q, output))
        conditioning = conditioning_of(k, v, layout, biases)
        keys, values = _of(layout.video, k), _of(layout.video, v)
        sorted_keys, summaries = self.sort(queries, keys, values, conditioning, groups, clusters, (item, heads))
        if settings.compensates:
            probe = stages.probe_tokens(groups.centroids, sorted_keys, conditioning, summaries, settings.weights_centroids, scale)
        else:
            probe = stages.probe_centroids(groups.centroids, conditioning, summaries, scale)
        done("probe")
        if self.blocks is None:
            routing, computed = stages.route(probe, clusters, settings), groups
        else:
            routing = stages.route_given(exact_blocks(self.blocks, heads, settings.compensates), clusters)
            computed = anchored(groups, self.blocks, heads)
        done("route")
        stages.attend(queries, computed, sorted_keys, conditioning, summaries, probe, routing, settings, scale, video)
        if self.blocks is not None:
            copy_anchors(video, groups, self.blocks, heads)
        done("attend")
        if len(layout.routed_queries) < q.shape[2]:
            attend_surroundings(q, k, v, biases, layout, stages, scale, output)
            done("conditioning")
        return RoutedHeads(item, heads, computed, sorted_keys.clusters, probe, routing)

    def sort(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        conditioning: Conditioning,
        groups: Clusters,
        clusters: Clusters,
        place: tuple[int, range],
    ) -> tuple[SortedKeys, Summaries]:
        """Keys and values of the heads at ``place`` in the order of their clusters, and what is known of those."""
        if place in self.shared.sorted:
            return self.shared.sorted[place]
        if self.settings.precision == INT8:
            sorted_keys = self.stages.quantize(queries, keys, values, clusters, conditioning.keys, groups)
        else:
            sorted_keys = self.stages.permute(keys, values, clusters)
        self.done("permute")
        summaries = self.stages.summarize(sorted_keys)
        self.done("summarize")
        if self.keeps_order:
            self.shared.sorted[place] = sorted_keys, summaries
        return sorted_keys, summaries
