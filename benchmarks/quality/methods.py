"""What the quality bench runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from math import prod

import torch
from torch import Tensor

from .. import pack
from ..host import Attention, PackAttention, Settings
from ..position_blocks import attend_blocks, exact_share, morton_order, routed_blocks
from .cost import effective_density, position_blocks_density, sol_attn_density, with_effective_density
from .schedules import SHARED, Plan, plans_to_compare

pack.load()
from svg_ear.kernels.settings import FULL, INT8  # noqa: E402

Grid = tuple[int, int, int]
OURS, PUBLISHED, SVG2, SVG2_COMPENSATED = "ours", "SVG-EAR as published", "SVG2", "SVG2 routing, compensated"
DENSE, RASTER, MORTON, SOL = "dense", "position blocks, raster", "position blocks, Morton", "sol_attn"
# Tokens of a query group and of a key cluster that the papers use; at fixed density smaller groups serve the published routing better.
PUBLISHED_GROUP, PUBLISHED_CLUSTER = 252, 76
# Begins the settings of presets, and ends those of what is computed in int8.
PRESET, IN_INT8 = "preset ", ", int8"
SMALLER_GROUP, BEST_GROUP = 63, 42
# Among the candidates of a token's last cluster only, which leaves more of the budget for exact pairs.
OUR_KMEANS = "our k-means"
# Tokens from which methods are compared at equal effective density rather than at equal exact share.
FULL_SIZE = 16_384
TARGETS = (0.10, 0.13, 0.20)
REFERENCE_TARGET = 0.13
SOL_TAUS, SOL_AUGS = (0.5, 1.0, 1.3, 2.0), (0, 256)
# What sol_attn computes exactly here with the values that ComfyUI core calls it with: the same for ours.
SOL_SHARE = 0.14
CORE_TAU, CORE_AUG = 1.3, 256


def sol_setting(tau: float, token_aug: int) -> str:
    """How rows name a setting of ``comfy_kitchen.sol_attn``."""
    return f"tau {tau}, token_aug {token_aug}"


@dataclass(frozen=True)
class Scale:
    """One clip's size and schedule: token grid ``(t, h, w)``, denoising steps, guidance, and first steps that stay dense."""

    grid: Grid
    steps: int
    guidance: float
    dense_steps: int

    @property
    def tokens(self) -> int:
        """Video tokens."""
        return prod(self.grid)


class CountedAttention:
    """Attention that tells what its calls spent.

    Attributes:
        spent: exact share and effective density of each call.
    """

    def __init__(self):
        self.spent: list[tuple[float, float]] = []


class CountedPack(CountedAttention):
    """The pack's attention; for ``density`` and ``owners`` see :class:`PackAttention`."""

    def __init__(self, settings: Settings, density: Callable[[int, int], float] | None = None, owners: tuple[int, ...] | None = None):
        super().__init__()
        self._attention = PackAttention(settings, density=density, owners=owners)
        self._clustered = len(set(owners)) / len(owners) if owners else 1.0

    def __call__(self, layer: int, step: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        state = self._attention.states.get(layer)
        before = state.calls if state else 0
        output = self._attention(layer, step, query, key, value)
        exact = self._attention.densities[-1]
        self.spent.append((exact, effective_density(self._attention.settings, query.shape[2], exact, before, self._clustered)))
        return output


class CountedBlocks(CountedAttention):
    """Blocks of 64 neighbouring tokens in ``order``, by our own code or by ``kernel``.

    Args:
        tau: the routing threshold.
        order: int64 ``[N]``, token positions; None leaves them as they are.
        kernel: computes the output from q, k, v of ``[B, H, N, D]`` in that order; None computes it here.
        extra: tokens that ``kernel`` adds to the exact ones of every query.
    """

    def __init__(self, tau: float, order: Tensor | None = None, kernel: Callable[..., Tensor] | None = None, extra: int = 0):
        super().__init__()
        self._tau, self._order, self._kernel, self._extra = tau, order, kernel, extra

    def __call__(self, layer: int, step: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens = query.shape[2]
        if self._order is not None:
            self._order = self._order.to(query.device)
            query, key, value = (tensor[:, :, self._order] for tensor in (query, key, value))
        exact = routed_blocks(query, key, self._tau)
        share = exact_share(exact, tokens)
        if self._kernel is None:
            output, cost = attend_blocks(query, key, value, exact), position_blocks_density(share)
        else:
            share = min(1.0, share + self._extra / tokens)
            output, cost = self._kernel(query, key, value), sol_attn_density(tokens, share, self._extra)
        self.spent.append((share, cost))
        return output if self._order is None else torch.empty_like(output).index_copy_(2, self._order, output)


@dataclass(frozen=True)
class Method:
    """One way to compute attention, and when it is used.

    Attributes:
        name, setting: how rows call it.
        start: makes the attention of one clip; None is dense.
        dense_steps: first steps that stay dense; None is those of the scale.
        plan: shares by step and layer, which say what is dense in the place of ``dense_steps``.
        shares_clusters: whether both branches of guidance take the clusters of the conditional one.
    """

    name: str
    setting: str
    start: Callable[[], Attention] | None
    dense_steps: int | None = None
    plan: Plan | None = None
    shares_clusters: bool = False


def standard_methods(scale: Scale, device: torch.device, say: Callable[[str], None]) -> Iterator[Method]:
    """Everything at the schedule of ``scale``."""
    yield Method(DENSE, "", None)
    yield from _presets(("quality", "balanced", "fast"), scale)
    for target in TARGETS:
        yield from _at_density(OURS, "", Settings(), target, scale)
    yield _pack(OURS, f"exact share {SOL_SHARE}", Settings(density=SOL_SHARE))
    smaller = Settings(query_clusters=-(-scale.tokens // SMALLER_GROUP))
    yield from _at_density(OURS, f"{SMALLER_GROUP} queries a group, ", smaller, REFERENCE_TARGET, scale)
    published = _published(scale.tokens, PUBLISHED_GROUP)
    yield from _at_density(SVG2_COMPENSATED, "", replace(published, probe_score="mass"), REFERENCE_TARGET, scale)
    yield from _at_density(SVG2, "", replace(published, method="svg2"), REFERENCE_TARGET, scale)
    for top_p in (published, replace(published, method="svg2")):
        yield _pack(PUBLISHED if top_p.compensates else SVG2, "top-p 0.85", replace(top_p, budget="top-p", top_p=0.85))
    pairs = [(group, REFERENCE_TARGET) for group in (PUBLISHED_GROUP, SMALLER_GROUP)] + [(BEST_GROUP, target) for target in TARGETS]
    for group, target in pairs:
        yield from _at_density(PUBLISHED, f"{group} queries a group, ", _published(scale.tokens, group), target, scale)
    near = replace(_published(scale.tokens, BEST_GROUP), kmeans_candidates=Settings.kmeans_candidates)
    yield from _at_density(PUBLISHED, f"{BEST_GROUP} queries a group, {OUR_KMEANS}, ", near, REFERENCE_TARGET, scale)
    yield Method(RASTER, f"tau {CORE_TAU}", partial(CountedBlocks, CORE_TAU))
    yield Method(MORTON, f"tau {CORE_TAU}", partial(CountedBlocks, CORE_TAU, morton_order(scale.grid)))
    yield from _sol_attn(scale, device, say)


def few_step_methods(scale: Scale) -> Iterator[Method]:
    """Models of few steps: published routing after two dense steps, ours without any."""
    yield Method(DENSE, "", None)
    yield from _presets(("few-step",), scale)
    for target in TARGETS:
        yield from _at_density(OURS, "nothing dense, ", Settings(), target, scale, dense_steps=0)
    for group, target in ((SMALLER_GROUP, REFERENCE_TARGET), (BEST_GROUP, REFERENCE_TARGET), (BEST_GROUP, 0.20)):
        setting = f"2 dense steps, {group} queries a group, "
        yield from _at_density(PUBLISHED, setting, _published(scale.tokens, group), target, scale, dense_steps=2)


def warm_up_methods(scale: Scale) -> Iterator[Method]:
    """What dense first steps are worth against more exact pairs in every step."""
    yield Method(DENSE, "", None)
    for dense_steps, targets in ((scale.dense_steps // 2, (0.13, 0.20)), (0, (0.13, 0.20, 0.30))):
        for target in targets:
            yield from _at_density(OURS, f"{dense_steps} dense steps, ", Settings(), target, scale, dense_steps=dense_steps)


def scheduled_methods(scale: Scale) -> Iterator[Method]:
    """Schedules: those of the presets, of what these were before, and others."""
    yield Method(DENSE, "", None)
    for plan in plans_to_compare(scale.steps):
        for shares in (True, False) if scale.guidance != 1 else (False,):
            yield _planned(f"{plan}{SHARED if shares else ''}", plan, shares)


def _planned(setting: str, plan: Plan, shares_clusters: bool = False, settings: Settings = Settings()) -> Method:
    """Ours with the shares of ``plan``. With guidance a batch of the demo model holds uncond, then cond."""
    start = partial(CountedPack, settings, plan.share, (1, 1) if shares_clusters else None)
    return Method(OURS, setting, start, plan.dense_steps, plan, shares_clusters)


def _published(tokens: int, group: int) -> Settings:
    """The paper's routing: plain centroids, Euclidean k-means in every step."""
    counts = {
        "kmeans_next": 1,
        "kmeans_candidates": 0,
        "recluster_every": 1,
        "query_clusters": -(-tokens // group),
        "key_clusters": -(-tokens // PUBLISHED_CLUSTER),
    }
    return Settings(weighted_centroids=False, key_metric=False, **counts)


def _presets(names: tuple[str, ...], scale: Scale) -> Iterator[Method]:
    """In full precision and in int8."""
    for name in names:
        plan = Plan.of_preset(name, scale.steps)
        for ending, precision in (("", FULL), (IN_INT8, INT8)):
            yield _planned(f"{PRESET}{name}{ending}", plan, scale.guidance != 1, Settings(precision=precision))


def _at_density(
    name: str, setting: str, settings: Settings, target: float, scale: Scale, dense_steps: int | None = None
) -> Iterator[Method]:
    """The method at an effective density of ``target``; nothing where that cannot be met.

    With few tokens, probe and k-means cost as much as attention: there ``target`` is the exact share.
    """
    if scale.tokens < FULL_SIZE:
        yield _pack(name, f"{setting}exact share {target}", replace(settings, density=target), dense_steps)
        return
    calls = scale.steps - (scale.dense_steps if dense_steps is None else dense_steps)
    try:
        settings = with_effective_density(settings, scale.tokens, target, calls)
    except ValueError:
        return
    yield _pack(name, f"{setting}effective density {target}", settings, dense_steps)


def _pack(name: str, setting: str, settings: Settings, dense_steps: int | None = None) -> Method:
    return Method(name, setting, partial(CountedPack, settings), dense_steps)


def _sol_attn(scale: Scale, device: torch.device, say: Callable[[str], None]) -> Iterator[Method]:
    """The kernel of comfy_kitchen, where it runs."""
    try:
        kitchen = import_module("comfy_kitchen")
    except ImportError as error:
        say(f"{SOL} IS LEFT OUT: {error}; pip install -r requirements-bench.txt")
        return
    if not hasattr(kitchen, "sol_attn") or not kitchen.sol_attn_is_available(device):
        say(f"{SOL} IS LEFT OUT: this comfy_kitchen has no kernel for {device.type}")
        return

    def run(tau: float, token_aug: int, *tensors: Tensor) -> Tensor:
        tokens_first = (tensor.transpose(1, 2).contiguous() for tensor in tensors)
        return kitchen.sol_attn(*tokens_first, tau=tau, token_aug=token_aug).transpose(1, 2)

    for tau in SOL_TAUS:
        for aug in SOL_AUGS:
            yield Method(SOL, sol_setting(tau, aug), partial(CountedBlocks, tau, None, partial(run, tau, aug), aug))
    core = partial(CountedBlocks, CORE_TAU, morton_order(scale.grid), partial(run, CORE_TAU, CORE_AUG), CORE_AUG)
    yield Method(SOL, f"{sol_setting(CORE_TAU, CORE_AUG)}, Morton order", core)
