"""What computes an attention call that stays dense, and how the report calls it."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ..recording.reasons import CROSS_ATTENTION, FULL_PRECISION, Reason
from ..recording.summary import UNRELATED
from .backends import Backend, FastestBackend
from .call import AttentionCall
from .evaluation import OVERRIDE, Evaluation
from .memory import is_out_of_memory
from .preferred import UnclearPreference, preferred_attention

logger = logging.getLogger("svg_ear")

FASTEST = FastestBackend()
PLAIN_NAMES = {
    "attention_pytorch": "PyTorch attention",
    "attention_sage": "SageAttention",
    "attention3_sage": "SageAttention 3",
    "attention_flash": "FlashAttention",
    "attention_xformers": "xFormers attention",
    "attention_comfy_kitchen_int8": "int8 attention",
    "attention_sub_quad": "sub-quadratic attention",
    "attention_split": "split attention",
    "attention_basic": "basic attention",
}


class Dense:
    """What computes a call that stays dense; calling it gives the output.

    Attributes:
        name: for the report; known for good once the output is there.
    """

    def __init__(self, compute: Callable[[], Tensor], name: str):
        self._compute, self.name = compute, name

    def __call__(self) -> Tensor:
        return self._compute()


class OnBackend(Dense):
    """A call on one of PyTorch's backends; ``otherwise`` computes it after an error of the backend, and all like it from then on."""

    def __init__(self, backend: Backend, call: AttentionCall, otherwise: Dense):
        super().__init__(partial(backend.attend, call), f"{backend.name} (PyTorch SDPA)")
        self._call, self._otherwise = call, otherwise

    def __call__(self) -> Tensor:
        try:
            return super().__call__()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                FASTEST.leave_out(self._call)
            logger.warning("dense attention: %s failed, %s computes the call: %s", self.name, self._otherwise.name, error)
            self.name = self._otherwise.name
        return self._otherwise()


def dense_attention(
    func: Callable[..., Tensor], args: tuple, kwargs: dict, call: AttentionCall, evaluation: Evaluation, reason: Reason | None
) -> Dense:
    """What computes ``func(*args, **kwargs)``, a call that stays dense, for ``reason`` where it has one.

    That is what the user chose: the override below ours, what the model's modules prefer, or a ``func`` that is not ComfyUI's
    default. Where nobody chose anything the video's own attention runs on the fastest backend that is exact.
    """
    if evaluation.inner is not None:
        return Dense(partial(evaluation.inner, func, *args, **kwargs), name_of_override(evaluation.inner))
    as_it_is = Dense(partial(func, *args, **kwargs), name_of(func))
    # ComfyUI calls these so that no other attention takes them.
    if reason is FULL_PRECISION:
        return as_it_is
    options = kwargs["transformer_options"]
    try:
        preferred = preferred_attention(evaluation, options, is_cross=reason is CROSS_ATTENTION)
    except UnclearPreference:
        return Dense(as_it_is, f"{as_it_is.name} (parts of the model prefer another, but not which calls are theirs)")
    if preferred is not None:
        # Without an override ComfyUI calls it just so.
        kwargs = kwargs | {"transformer_options": {name: value for name, value in options.items() if name != OVERRIDE}}
        return Dense(partial(preferred, *args, **kwargs), f"{name_of(preferred)}, preferred by the model")
    if reason in UNRELATED or not is_default(func):
        return as_it_is
    backend = FASTEST.find(call, func)
    return as_it_is if backend is None else OnBackend(backend, call, otherwise=as_it_is)


def is_default(func: Callable) -> bool:
    """Whether ``func`` is ComfyUI's PyTorch attention, unchanged, and free to add in another order."""
    attention, ops, command_line = (sys.modules.get(f"comfy.{name}") for name in ("ldm.modules.attention", "ops", "cli_args"))
    if attention is None or func is not getattr(attention.attention_pytorch, "__wrapped__", None):
        return False
    # Some packs put another attention in the place of these.
    is_unchanged = (
        ops.scaled_dot_product_attention.__module__ == ops.__name__
        and functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention
    )
    return is_unchanged and not getattr(command_line.args, "deterministic", False)


def name_of(function: Callable) -> str:
    """An attention function in plain words."""
    while isinstance(function, partial):
        function = function.func
    name, module = getattr(function, "__name__", type(function).__name__), getattr(function, "__module__", None) or ""
    if module.split(".")[0] in ("comfy", "comfy_extras"):
        return f"ComfyUI's {PLAIN_NAMES.get(name, name)}"
    # ComfyUI names the modules of a pack by the path of its folder, with other letters for dots.
    pack = re.search(r"custom_nodes[/\\]([^/\\.]+)", module)
    return f"{name} of {pack[1].replace('_x_', '.') if pack else module or 'an unknown module'}"


def name_of_override(override: Callable) -> str:
    """An attention override in plain words: ComfyUI's own holds the function that was chosen."""
    chosen = inspect.getclosurevars(override).nonlocals.get("optimized_attention") if inspect.isfunction(override) else None
    return f"{name_of(chosen)}, chosen for the MODEL" if callable(chosen) else f"the override {name_of(override)}"
