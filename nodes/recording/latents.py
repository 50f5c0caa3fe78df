"""Latents by name: what a sampler returned is found again in what a node behind it is given."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def latent_digest(latent) -> str | None:
    """Name a latent by its contents, in half precision because ComfyUI may pass latents on in that.

    Audio and video together have one name whether they are nested, a list, or packed as samplers see them. None for what is no latent.
    """
    parts = streams(latent)
    if not parts:
        return None
    packed = parts[0] if len(parts) == 1 else torch.cat([part.reshape(part.shape[0], 1, -1) for part in parts], dim=-1)
    return hashlib.blake2b(packed.detach().half().cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def stream_digests(latent, shapes: Sequence[Sequence[int]] | None) -> tuple[str, ...]:
    """The names of the streams of a latent, video first; none where it has but one. ``shapes`` are those of a packed one."""
    parts = streams(latent)
    if len(parts) == 1 and shapes is not None and len(shapes) > 1:
        lengths = [math.prod(shape[1:]) for shape in shapes]
        if parts[0].ndim == 3 and parts[0].shape[-1] == sum(lengths):
            parts = list(parts[0].split(lengths, dim=-1))
    return tuple(map(latent_digest, parts)) if len(parts) > 1 else ()


def streams(latent) -> list[Tensor]:
    """The tensors of a latent: of ComfyUI's nested ones those inside, none of what is no latent."""
    if not isinstance(latent, (Tensor, list, tuple)) and getattr(latent, "is_nested", False):
        latent = latent.unbind()
    parts = [latent] if isinstance(latent, Tensor) else list(latent) if isinstance(latent, (list, tuple)) else []
    batches = {part.shape[:1] for part in parts if isinstance(part, Tensor)}
    return parts if parts and all(isinstance(part, Tensor) for part in parts) and len(batches) == 1 else []
