"""Full-size models with random weights, loaded as ComfyUI loads a checkpoint, and what its samplers need beside them."""

from __future__ import annotations

import gc
import json
import math

import torch
from comfy import model_management, ops, sd
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from .models import Model, Size

Conditioning = list[list]


def load(model: Model):
    """ComfyUI's patcher around the model, as its UNETLoader makes it from a file with these weights.

    Random weights: times, memory and calls mean something, pictures do not.

    Raises RuntimeError where ComfyUI takes the weights for another model.
    """
    device = model_management.get_torch_device()
    network, configuration = model.load_class(), model.configuration(model.width, model.depths)
    with torch.device("meta"):
        empty = network(**configuration, dtype=torch.bfloat16, device="meta", operations=ops.disable_weight_init).state_dict()
    # ComfyUI may make its own copy while these are still there.
    fits = device.type == "cuda" and 2.1 * sum(2 * value.numel() for value in empty.values()) < model_management.get_free_memory(device)
    weights = random_weights(empty, device, device if fits else torch.device("cpu"))
    told = {"metadata": {"config": json.dumps({"transformer": configuration})}} if model.is_told else {}
    patcher = sd.load_diffusion_model_state_dict(weights, **told)
    weights.clear()
    gc.collect()
    model_management.soft_empty_cache()
    found = None if patcher is None else type(patcher.model.model_config).__name__
    if found != model.detected:
        raise RuntimeError(f"ComfyUI takes {model.title} for {found}, not for {model.detected}")
    return patcher


def random_weights(empty: dict[str, Tensor], device: torch.device, store: torch.device) -> dict[str, Tensor]:
    """Values of trained size for the keys and shapes of ``empty``: made on ``device``, kept on ``store``."""
    generator = torch.Generator(device).manual_seed(1)
    return {key: _weight(key, value, generator).to(store) for key, value in empty.items()}


def _weight(key: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Scaled by fan-in so that activations keep their size; norms around 1."""
    shape, dtype = tuple(like.shape), like.dtype if like.dtype.is_floating_point else torch.bfloat16
    tensor = torch.empty(shape, dtype=dtype, device=generator.device).normal_(generator=generator)
    if "modulation" in key and key.count(".") <= 2:
        return tensor.mul_(shape[-1] ** -0.5)
    if len(shape) == 1:
        return tensor.mul_(0.02).add_(1 if key.endswith("weight") else 0)
    return tensor.mul_(math.prod(shape[1:]) ** -0.5)


def empty_latent(model: Model, size: Size) -> Tensor | NestedTensor:
    """Zeros, as ComfyUI's nodes for an empty video give them, with the audio where the model has any."""
    video = torch.zeros(model.latent_shape(size))
    return NestedTensor((video, torch.zeros(model.audio_shape(size)))) if model.audio else video


def conditionings(model: Model) -> tuple[Conditioning, Conditioning]:
    """Positive and negative, random, in ComfyUI's format and of the same length."""
    generator = torch.Generator().manual_seed(11)

    def conditioning() -> Conditioning:
        text = 0.3 * torch.randn(1, *model.text, generator=generator)
        extra = {"pooled_output": torch.randn(1, model.pooled, generator=generator) if model.pooled else None}
        return [[text, extra if model.guidance is None else extra | {"guidance": model.guidance}]]

    return conditioning(), conditioning()
