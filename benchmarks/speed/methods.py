"""What the speed bench runs side by side: dense attention, other sparse and quantized attention, k-means, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .. import pack
from ..position_blocks import BLOCK
from .inputs import Inputs, Shape
from .pairs import Pairs, routed_pairs, sol_attn_share

pack.load()
from svg_ear.kernels import BlockRouting, ClusterState, Settings, StageTimer, sparse_attention  # noqa: E402
from svg_ear.kernels.counts import cluster_counts  # noqa: E402
from svg_ear.kernels.settings import INT8  # noqa: E402
from svg_ear.kernels.tuning import attend_tiles  # noqa: E402
from svg_ear.kernels.types import Clusters  # noqa: E402

BASELINE = "SDPA cuDNN"
FLASH = "SDPA flash"
KITCHEN_INT8 = "comfy_kitchen int8"
SOL_TAUS = (1.3, 1.0, 2.0)
TOKEN_AUG = 256
OURS = "svg-ear"


def sol_name(tau: float) -> str:
    """How rows name ``comfy_kitchen.sol_attn``."""
    return f"sol_attn tau {tau} aug {TOKEN_AUG}"


@dataclass
class Method:
    """One way to compute what a row of the bench times.

    Attributes:
        name: the row's ``method``.
        run: does ``calls`` calls, each on the next step's inputs, and returns the output of the last.
        calls: calls of one run.
        part: ``attention`` for a whole call, ``cluster`` for k-means alone.
        facts: further columns of the row.
    """

    name: str
    run: Callable[[], Tensor]
    calls: int = 1
    part: str = "attention"
    facts: dict[str, object] = field(default_factory=dict)


class SparseCalls:
    """Calls of ours over the steps of ``inputs``, clusters carried along: as many a run as the k-means schedule repeats after.

    Args:
        blocks: looks up in every call what method ``calibrated`` computes; None for the other methods.
    """

    def __init__(self, inputs: Inputs, shape: Shape, settings: Settings, blocks: Callable[[], BlockRouting] | None = None):
        self.inputs, self.shape, self.settings, self.blocks = inputs, shape, settings, blocks
        self.state = ClusterState()
        self.calls = settings.recluster_every

    def __call__(self, **options) -> Tensor:
        for _ in range(self.calls):
            output = None  # so that no two outputs count towards the peak of memory
            output = self.once(**options)
        return output

    def once(self, **options) -> Tensor:
        """One call; ``options`` as :func:`sparse_attention` takes them."""
        q, k, v = self.inputs.step(self.state.calls)
        blocks = None if self.blocks is None else self.blocks()
        return sparse_attention(q, k, v, self.settings, layouts=self.shape.layout, blocks=blocks, state=self.state, **options).output

    def on_first_step(self) -> Tensor:
        """The output of a warm call on the inputs that the other methods get."""
        while self.state.calls % len(self.inputs.queries):
            self.once()
        return self.once()

    def pairs(self) -> Pairs:
        """What the next call computes. Waits for the GPU."""
        values = self.inputs.values
        shapes = attend_tiles(values.device, values.itemsize, self.settings.precision == INT8)
        found, compensated = [], self.settings.compensates
        self.once(observe=lambda routed: found.append(routed_pairs(routed, self.shape.conditioning, shapes, compensated)))
        return sum(found, Pairs())

    def stage_milliseconds(self, runs: int) -> dict[str, float]:
        """Milliseconds per stage and call, mean of the run whose total is the median one."""
        totals = []
        for _ in range(runs):
            timer = StageTimer()
            self(timer=timer)
            totals.append({name: seconds * 1000 / self.calls for name, seconds in timer.seconds().items()})
        return sorted(totals, key=lambda stages: sum(stages.values()))[len(totals) // 2]


def dense_methods(inputs: Inputs, names: tuple[str, ...], say: Callable[[str], None]) -> list[Method]:
    """SDPA on the cuDNN and flash backends."""
    usable = {BASELINE: (SDPBackend.CUDNN_ATTENTION, can_use_cudnn_attention), FLASH: (SDPBackend.FLASH_ATTENTION, can_use_flash_attention)}
    found = []
    for name in names:
        backend, check = usable[name]
        if check(SDPAParams(*inputs.step(0), None, 0.0, False, False)):
            found.append(Method(name, _sdpa(inputs, backend), facts={"exact_share": 1.0}))
        else:
            say(f"{name} IS LEFT OUT: torch {torch.__version__} cannot run it on this device")
    return found


def _sdpa(inputs: Inputs, backend: SDPBackend) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*inputs.step(0))

    return run


def kitchen_methods(inputs: Inputs, shape: Shape, taus: tuple[float, ...], int8: bool, say: Callable[[str], None]) -> list[Method]:
    """``int8_attention`` (dense) and ``sol_attn`` of comfy_kitchen, the latter as ComfyUI calls it: text blocks always exact."""
    kitchen = optional("comfy_kitchen", "comfy-kitchen", say)
    if kitchen is None:
        return []
    q, k, v = inputs.step(0)
    found = []
    if int8 and kitchen.int8_attention_is_available(q.device):
        found.append(Method(KITCHEN_INT8, lambda: kitchen.int8_attention(q, k, v), facts={"exact_share": 1.0}))
    elif int8:
        say(f"{KITCHEN_INT8} IS LEFT OUT: comfy_kitchen has no kernel for this device")
    if not kitchen.sol_attn_is_available(q.device):
        say("sol_attn IS LEFT OUT: comfy_kitchen has no kernel for this device")
        return found
    always = -(-shape.conditioning // BLOCK)
    tokens_first = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    for tau in taus:

        def run(tau=tau) -> Tensor:
            options = {"sink_blocks": [0, always], "sink_q": [0, always]} if always else {}
            return kitchen.sol_attn(*tokens_first, tau=tau, token_aug=TOKEN_AUG, **options).transpose(1, 2)

        found.append(Method(sol_name(tau), run, facts={"exact_share": sol_attn_share(q, k, tau, always)}))
    return found


def our_method(
    inputs: Inputs, shape: Shape, settings: Settings, name: str = OURS, blocks: Callable[[], BlockRouting] | None = None
) -> Method:
    """``sparse_attention`` with warm clusters, or with ``blocks`` as :class:`SparseCalls` takes them."""
    calls = SparseCalls(inputs, shape, settings, blocks)
    return Method(name, calls, calls.calls, facts={"density": settings.density, "precision": settings.precision})


def cluster_methods(inputs: Inputs, shape: Shape, settings: Settings, say: Callable[[str], None]) -> list[Method]:
    """Warm k-means of the queries and of the keys, ours and flash_kmeans': same start, tokens, clusters and iterations."""
    cluster = cluster_stage()
    video = slice(shape.conditioning, shape.length)
    found, facts = [], {"iterations": settings.kmeans_next}
    starts = {}
    for what, steps, count in zip(("queries", "keys"), (inputs.queries, inputs.keys), cluster_counts(shape.tokens, settings)):
        before, tokens = (steps[i][:, :, video] for i in (0, -1))
        centroids = cluster(before, count, settings.kmeans_first).centroids.to(tokens.dtype)
        starts[f"{what}, {count} clusters"] = (tokens, centroids)
    for what, (tokens, centroids) in starts.items():
        run = partial(cluster, tokens, centroids.shape[2], settings.kmeans_next, centroids)
        found.append(Method(f"{OURS} {what}", run, part="cluster", facts=facts))

    flash = optional("flash_kmeans", "flash-kmeans", say)
    for what, (tokens, centroids) in starts.items() if flash else ():
        # Its layout is one token after the other: the copy is not counted against it.
        options = {"max_iters": settings.kmeans_next, "init_centroids": centroids[0].contiguous()}
        run = partial(flash.batch_kmeans_Euclid, tokens[0].contiguous(), centroids.shape[2], **options)
        found.append(Method(f"flash_kmeans {what}", run, part="cluster", facts=facts))
    return found


def cluster_stage() -> Callable[..., Clusters]:
    """The k-means that a GPU runs: ``cluster(tokens, count, iterations, centroids)``. Needs Triton."""
    return import_module("svg_ear.kernels.triton_stages.cluster").cluster


def optional(module: str, package: str, say: Callable[[str], None]):
    """The imported module, or None after saying that it is missing or broken."""
    try:
        return import_module(module)
    except ImportError as error:
        say(f"{package} IS LEFT OUT: {error}; pip install -r requirements-bench.txt")
        return None
