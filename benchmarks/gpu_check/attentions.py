"""Dense attention to compare with, as ComfyUI would call it: q, k and v ``[1, L, H * D]`` and the number of heads."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .. import pack

pack.load()
from svg_ear.nodes.checking.measure import Attention  # noqa: E402

# The first is the one that break-evens are about.
SDPA, CUDNN = "SDPA", "SDPA cuDNN"
BACKENDS = {SDPA: None, CUDNN: SDPBackend.CUDNN_ATTENTION}


def attentions(names: list[str], device: torch.device, say: Callable[[str], None]) -> dict[str, Attention]:
    """SDPA as torch chooses it and on cuDNN, ``names`` first, then comfy-kitchen int8 and SageAttention where they are installed."""
    found = {name: _heads_first(_sdpa(BACKENDS[name])) for name in dict.fromkeys((*names, *BACKENDS))}
    kitchen = _optional("comfy_kitchen", say)
    if kitchen is not None and kitchen.int8_attention_is_available(device):
        found["comfy_kitchen int8"] = _heads_first(kitchen.int8_attention)
    sage = _optional("sageattention", say)
    if sage is not None:
        found["SageAttention"] = _heads_first(sage.sageattn)
    return found


def _sdpa(backend: SDPBackend | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if backend is None:
            return scaled_dot_product_attention(q, k, v)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v)

    return run


def _heads_first(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Attention:
    def run(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        split = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
        return attend(*split).transpose(1, 2).flatten(2)

    return run


def _optional(module: str, say: Callable[[str], None]):
    try:
        return import_module(module)
    except ImportError as error:
        say(f"{module} is left out: {error}")
        return None
