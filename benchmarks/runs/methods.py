"""What runs side by side: a model patched for one sampler run, and what is known of it afterwards."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import torch
from comfy import ops
from comfy.ldm.modules.attention import get_attention_function

from .. import pack
from .sol import SolAttention
from .spec import DENSE_CUDNN, DENSE_INT8, SOL, Spec

AGAINST_PACKAGE = "svg_ear_against"
NODE, ATTACHMENT = "SVGEARAttention", "svg_ear"


class Unavailable(RuntimeError):
    """A method that cannot run here; the message says why."""


@dataclass(frozen=True)
class Calls:
    """What a run's attention calls did.

    Attributes:
        sparse, dense: how many; ``dense`` by reason.
        dense_attention: those of the video by what computed them; empty where it is not known.
        sparse_steps: the steps in which any ran sparse, with their mean exact share; 0 where it is not known.
        exact_share: mean share of the video pairs computed exactly in the sparse calls, None where it is not known.
        state_bytes: what was kept between the steps.
        int8: how many of the sparse ones multiplied queries and keys in int8.
    """

    sparse: int = 0
    dense: dict[str, int] = field(default_factory=dict)
    dense_attention: dict[str, int] = field(default_factory=dict)
    sparse_steps: dict[int, float] = field(default_factory=dict)
    exact_share: float | None = None
    state_bytes: int | None = None
    int8: int = 0


class Packs:
    """The pack of this repository, and another checkout of it under a name of its own.

    Args:
        against: folder of the other one, None without.
        common: inputs of the node that every method gets where its own settings do not say otherwise.
    """

    def __init__(self, against: Path | None, common: dict[str, str]):
        self.common = common
        self.nodes = {False: _node(pack.load())}
        if against is not None:
            self.nodes[True] = _node(pack.load(against, AGAINST_PACKAGE))

    def patched(self, patcher, spec: Spec):
        """``patcher`` through the node of the pack, as ComfyUI's executor calls it."""
        node = self.nodes[spec.against]
        inputs = {entry.id: entry for entry in node.GET_SCHEMA().inputs}
        given = self.common | dict(spec.settings)
        if unknown := set(given) - set(inputs):
            raise ValueError(f"the node has no {', '.join(sorted(unknown))}; it has {', '.join(inputs)}")
        values = {name: _value(text, inputs[name].default) for name, text in given.items()}
        node.VALIDATE_CLASS()
        clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        return clone.EXECUTE_NORMALIZED(model=patcher, preset=spec.name, **values).args[0]


def _node(module):
    async def found() -> dict:
        nodes = await (await module.comfy_entrypoint()).get_node_list()
        return {node.GET_SCHEMA().node_id: node for node in nodes}

    return asyncio.run(found())[NODE]


def _value(text: str, default: object) -> object:
    """The text of a setting in the type of the input's default."""
    return text if isinstance(default, str) else json.loads(text.lower())


class Method:
    """A patched clone of a model for one run.

    Args:
        spec: which.
        patcher: ComfyUI's patcher around the model.
        packs: of ours.
        steps, tokens: of the run, and of the video.

    Raises Unavailable where this machine cannot run it.
    """

    def __init__(self, spec: Spec, patcher, packs: Packs, steps: int, tokens: int):
        self.spec, self.steps, self.sol = spec, steps, None
        if spec.is_ours:
            self.model = packs.patched(patcher, spec)
            return
        self.model = patcher.clone()
        if spec.name == DENSE_CUDNN:
            _require(patcher.load_device.type == "cuda", "cuDNN needs a CUDA GPU")
            _require(hasattr(ops, "SDPA_BACKEND_PRIORITY"), "this ComfyUI has no order of attention backends")
        elif spec.name == DENSE_INT8:
            function = get_attention_function("comfy_kitchen_int8", None)
            _require(function is not None, "comfy-kitchen has no int8 attention for this device")
            self.model.set_model_optimized_attention(function)
        elif spec.name == SOL:
            kitchen = import_module("comfy_kitchen") if find_spec("comfy_kitchen") else None
            _require(hasattr(kitchen, "sol_attn"), "there is no comfy-kitchen from 0.2.40 on; pip install -r requirements-bench.txt")
            _require(kitchen.sol_attn_is_available(patcher.load_device), "comfy-kitchen has no sol_attn for this device")
            self.sol = SolAttention(spec, steps, tokens)
            self.model.model_options["transformer_options"]["optimized_attention_override"] = self.sol

    def active(self):
        """Around the sampler run: what of the process the method needs otherwise."""
        return cudnn_first() if self.spec.name == DENSE_CUDNN else nullcontext()

    def calls(self) -> Calls | None:
        """What the run did; None for dense methods, which nothing counts."""
        if self.sol:
            steps = dict.fromkeys(self.sol.sparse_steps, 0.0)
            return Calls(self.sol.sparse_calls, dict(self.sol.dense_calls), sparse_steps=steps)
        if not self.spec.is_ours:
            return None
        record = self.model.get_attachment(ATTACHMENT).newest()
        dense = {reason.name: count for reason, count in record.dense_calls.items()}
        # A run that was stopped has no trace.
        steps = _shares(record) if record.completed else dict.fromkeys(range(record.dense_steps, self.steps), 0.0)
        # An older checkout does not say these.
        attention, int8 = getattr(record, "dense_attention", {}), getattr(record, "int8_calls", 0)
        return Calls(record.sparse_calls, dense, attention, steps, record.density, record.state_bytes, int8)


def _shares(record) -> dict[int, float]:
    """Mean exact share of each step that ran sparse."""
    found = defaultdict(list)
    for (*_, step), (density, _) in record.trace.sparse.items():
        found[step].append(float(density.mean()))
    return {step: mean(shares) for step, shares in found.items()}


def _require(is_there: bool, otherwise: str) -> None:
    if not is_there:
        raise Unavailable(otherwise)


@contextmanager
def cudnn_first() -> Iterator[None]:
    """ComfyUI's SDPA asks cuDNN before FlashAttention 2."""
    order = ops.SDPA_BACKEND_PRIORITY
    before = list(order)
    order.sort(key=lambda backend: backend != torch.nn.attention.SDPBackend.CUDNN_ATTENTION)
    try:
        yield
    finally:
        order[:] = before
