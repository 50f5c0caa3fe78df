"""What runs in a worker of raylight: a patch whose attention is asked through raylight's inner attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from types import MethodType

import torch
from torch import Tensor

from ...kernels.arguments import working_memory
from ..patch.call import AttentionCall
from ..patch.compiled import uncompiled
from ..patch.evaluation import Evaluation
from ..patch.options import Options
from ..patch.override import EVALUATION, Patch
from ..patch.patching import recorded, unpatched
from ..patch.sequence import find_architecture
from ..recording import reasons
from ..recording.reasons import Reason
from ..recording.record import Found, find_run
from ..recording.words import Text
from .gathered import Gathered
from .order import gathered_order, text_tokens

NAME = "svg_ear:attention"
# The function that raylight's forwards call, a global of their modules.
ATTENTION = "xfuser_optimized_attention"
# Beyond what ComfyUI's attention has; raylight hands all of them on, with values that mean nothing.
MEANINGLESS = {"dropout_p": 0.0, "causal": False, "window_size": (-1, -1), "alibi_slopes": None}

_OPTIONS: ContextVar[dict | None] = ContextVar("svg_ear_transformer_options", default=None)


class WorkerPatch(Patch):
    """The patch of a model in a worker; each worker has the state of its own heads.

    Where raylight splits the sequence it puts forwards of its own in the place of the model's, which ask no attention override:
    :class:`InnerAttention` is asked instead. Without a split the override of :class:`Patch` is, as on one GPU.
    """

    name = Text("SVG-EAR for raylight")

    def __init__(self, options: Options):
        super().__init__(options)
        # Of the evaluation that is running.
        self._text = 0
        # GPUs that share the heads of the call that is running.
        self._ranks = 1

    def memory_limit(self, call: AttentionCall) -> int | None:
        """What the user says, or what all heads would take on one GPU."""
        nbytes = 3 * call.q.numel() * call.dtype.itemsize
        return super().memory_limit(call) or working_memory(nbytes, call.q.device, self._ranks)

    def apply_model(self, executor, *args, **kwargs):
        model = uncompiled(executor.class_obj.diffusion_model)
        context = kwargs["c_crossattn"] if "c_crossattn" in kwargs else args[3] if len(args) > 3 else None
        self._text = text_tokens(model, context, kwargs.get("txt_byt5"), kwargs.get("clip_fea"))
        knows_forwards = pass_options(model)
        result = super().apply_model(executor, *args, **kwargs)
        if not self.run.asked and not knows_forwards:
            self.run.warn(
                Text(
                    "This raylight has forwards for {model} that SVG-EAR does not know: update raylight and this pack.",
                    model=type(model).__name__,
                )
            )
        return result

    def order(self, evaluation: Evaluation, transformer_options: dict, shape: tuple[int, ...], ranks: int) -> Gathered | Reason:
        """The order of the tokens of a call of ``shape`` ``B, tokens, H / ranks, D``, or why it is not known."""
        self._ranks = ranks
        architecture, (batch, tokens, heads, dim) = evaluation.architecture, shape
        if architecture.is_other_stream((batch, heads * ranks, tokens, dim), math.prod(evaluation.grid), evaluation.model):
            return reasons.OTHER_STREAM
        return gathered_order(architecture, evaluation.grid, self._text, transformer_options.get("block_type"), tokens, ranks)

    def unequal(self, q: Tensor, k: Tensor, evaluation: Evaluation) -> Reason:
        """What a call is whose queries are not its keys: of the text, or of a part of the video's queries."""
        least = max(math.prod(evaluation.own_grid), self.lengths.least(q.device, q.shape[2]).tokens)
        return reasons.PARTIAL_QUERIES if k.shape[1] > q.shape[1] and k.shape[1] >= least else reasons.CROSS_ATTENTION

    def refuse(self, reason: Reason, evaluation: Evaluation, transformer_options: dict) -> None:
        """Note a call that stays as raylight computes it; in strict mode raise StrictModeError."""
        evaluation.calls += 1
        self._report(reason, evaluation.named_block(transformer_options), evaluation.step)


class InnerAttention:
    """A processor of raylight: attention of all tokens of some heads, ``[B, tokens, H / ranks, D]``, after the all-to-all."""

    # Refused here, by name and not by an error.
    supports_ring = True

    def __init__(self, patch: WorkerPatch):
        self._patch = patch

    def __call__(self, dense: Callable, q: Tensor, k: Tensor, v: Tensor, *, transformer_options: dict, **options):
        as_raylight = _OnRaylight(dense, q, k, v, options)
        evaluation: Evaluation | None = transformer_options.get(EVALUATION)
        if evaluation is None:
            return as_raylight()
        order = self._order(q, k, transformer_options, evaluation, options)
        if isinstance(order, Reason):
            self._patch.refuse(order, evaluation, transformer_options)
            return as_raylight()
        streams = (order.collect(tensor).transpose(1, 2) for tensor in (q, k, v))
        output = self._patch.override(
            as_raylight,
            *streams,
            q.shape[2],
            skip_reshape=True,
            skip_output_reshape=True,
            scale=options.get("softmax_scale"),
            transformer_options=transformer_options,
        )
        return output if as_raylight.ran else order.spread(output.transpose(1, 2))

    def _order(self, q: Tensor, k: Tensor, transformer_options: dict, evaluation: Evaluation, options: dict) -> Gathered | Reason:
        if q.shape[1] != k.shape[1]:
            return self._patch.unequal(q, k, evaluation)
        if options.get("joint_tensor_key") is not None:
            return reasons.REPEATED_TOKENS
        if any(options.get(name, meaningless) != meaningless for name, meaningless in MEANINGLESS.items()):
            return reasons.UNKNOWN_OPTION
        ulysses, ring = degrees()
        return reasons.RING_ATTENTION if ring > 1 else self._patch.order(evaluation, transformer_options, tuple(q.shape), ulysses)


class _OnRaylight:
    """The call as raylight computes it, on the gathered tensors: an attention function of ComfyUI's signature, whatever it is given.

    Attributes:
        ran: whether it did.
    """

    def __init__(self, dense: Callable, q: Tensor, k: Tensor, v: Tensor, options: dict):
        self._compute = lambda: dense(q, k, v, **options)
        self.ran = False
        self.__name__, self.__module__ = "attention", "raylight"

    def __call__(self, *args, **kwargs):
        self.ran = True
        return self._compute()


def degrees() -> tuple[int, int]:
    """How many GPUs share the heads of a sequence (Ulysses), and how many its keys (ring)."""
    from xfuser.core.distributed import get_ring_parallel_world_size, get_ulysses_parallel_world_size

    return get_ulysses_parallel_world_size(), get_ring_parallel_world_size()


def pass_options(model: torch.nn.Module) -> bool:
    """Have raylight's forwards hand their ``transformer_options`` to the attention; whether there are any that are known.

    Its Wan and HunyuanVideo forwards take them and leave them out of the call, so that no processor would be asked. Forwards that are
    wrapped already stay; loading a model anew puts unwrapped ones in their place.
    """
    known = False
    for block in _blocks(model):
        for module in block.modules():
            forward = vars(module).get("forward")
            if forward is None or getattr(forward, "hands_on_options", False):
                known = known or forward is not None
                continue
            names = getattr(getattr(forward, "__func__", None), "__globals__", {})
            if ATTENTION in names:
                known = True
                names[ATTENTION] = _given_options(names[ATTENTION])
                module.forward = _remembering_options(forward)
    return known


def _blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    architecture = find_architecture(model)
    lists = () if architecture is None else (*architecture.block_lists, "vace_blocks")
    return [block for name in lists for block in getattr(model, name, ()) if isinstance(block, torch.nn.Module)]


def _remembering_options(forward: MethodType) -> Callable:
    @wraps(forward)
    def remembering(*args, **kwargs):
        token = _OPTIONS.set(kwargs.get("transformer_options"))
        try:
            return forward(*args, **kwargs)
        finally:
            _OPTIONS.reset(token)

    remembering.hands_on_options = True
    return remembering


def _given_options(attention: Callable) -> Callable:
    """``attention`` with the options of the forward that calls it, once."""
    if getattr(attention, "hands_on_options", False):
        return attention

    @wraps(attention)
    def given(*args, **kwargs):
        options = _OPTIONS.get()
        return attention(*args, **kwargs) if options is None else attention(*args, **{"transformer_options": options} | kwargs)

    given.hands_on_options = True
    return given


def install(model, options: Options):
    """The worker's MODEL with sparse attention. Raises ValueError for options that do not fit it."""
    from raylight.distributed_modules.inner_attention import (
        InnerAttentionRegistry,
        create_inner_attention,
        register_inner_attention,
        set_inner_attention,
    )

    if NAME not in InnerAttentionRegistry.available():
        register_inner_attention(NAME)(InnerAttention)
    patch = WorkerPatch(options)
    return set_inner_attention(recorded(model, patch), create_inner_attention(NAME, patch=patch))


def remove(model):
    """The worker's MODEL as it was before :func:`install`."""
    from raylight.distributed_modules.inner_attention import clear_inner_attention

    return clear_inner_attention(unpatched(model), InnerAttention)


def found(model, latent: dict) -> Found:
    """What this worker recorded of the run that made ``latent``."""
    return find_run(model, latent)
