"""What the sparse calls of a model will be like, told from the model before it runs."""

from __future__ import annotations

import torch

from ...kernels import HollowCall, HollowTensor, SequenceLayout, Settings
from .call import DTYPES, FLOAT32_RUNS_IN, HEAD_DIMS
from .compiled import uncompiled
from .sequence import find_architecture

# Kernels depend on no length. Such a video is among those that are long enough; the text is there where a model has text in its sequence.
VIDEO, TEXT = 32768, 256
# The names under which models keep how many heads they have, and the channels of all.
WIDTHS = ("dim", "hidden_size")


def expected_call(patcher, settings: Settings, memory_limit: int | None) -> HollowCall | None:
    """A sparse call as the model of ComfyUI's ``patcher`` should make them on its GPU; None where that cannot be told.

    It compiles what real calls of whatever length do, but for models that compute in another dtype than they say.
    """
    base_model, device = patcher.model, patcher.load_device
    model = uncompiled(base_model.diffusion_model)
    architecture = find_architecture(model)
    dtype = getattr(base_model, "manual_cast_dtype", None) or patcher.model_dtype()
    dtype = FLOAT32_RUNS_IN if dtype == torch.float32 else dtype
    heads, dim = _heads(model)
    if architecture is None or device.type != "cuda" or device.index is None or dtype not in DTYPES or dim not in HEAD_DIMS:
        return None
    layouts = ((VIDEO + text, architecture.layout(VIDEO + text, VIDEO)) for text in (TEXT, 0))
    found = next(((tokens, layout) for tokens, layout in layouts if isinstance(layout, SequenceLayout)), None)
    if found is None:
        return None
    tokens, layout = found
    tensor = HollowTensor((1, heads, tokens, dim), (heads * tokens * dim, dim, heads * dim, 1), dtype, device, 0)
    return HollowCall((tensor,) * 3, settings, layout, memory_limit)


def _heads(model) -> tuple[int, int]:
    """Heads of a diffusion model and the channels of each; (0, 0) where it does not say."""
    if hasattr(model, "attention_head_dim"):
        return model.num_attention_heads, model.attention_head_dim
    heads = getattr(model, "num_heads", 0)
    width = next((getattr(model, name) for name in WIDTHS if hasattr(model, name)), 0)
    return (heads, width // heads) if heads and width % heads == 0 else (0, 0)
