"""``comfy_kitchen.sol_attn`` under the schedule of our node, as an attention override of ComfyUI."""

from __future__ import annotations

from collections import Counter
from importlib import import_module

import torch
from torch import Tensor

from .spec import Spec

TAU, TOKEN_AUG = 1.3, 256
# Of ComfyUI's own node for it.
MIN_TOKENS = 12288
# Samplers recompute sigmas through logarithms.
ROUNDING = 1e-5


class SolAttention:
    """Counts what it does, and runs the video's own attention sparse after the dense first steps, but for layer 0.

    Args:
        spec: settings ``tau``, ``token_aug``, ``dense_first_steps``, ``min_tokens``.
        steps: of the sampler.
        tokens: video tokens; shorter sequences are text.

    Attributes:
        sparse_calls: how many calls ran sparse.
        sparse_steps: the steps in which one did.
        dense_calls: the other calls by reason, named as our report names them.
    """

    def __init__(self, spec: Spec, steps: int, tokens: int):
        settings = dict(spec.settings)
        self.dense_steps = spec.dense_steps(steps)
        self.tau, self.token_aug = float(settings.pop("tau", TAU)), int(settings.pop("token_aug", TOKEN_AUG))
        self.least = max(int(settings.pop("min_tokens", MIN_TOKENS)), tokens)
        settings.pop("dense_first_steps", None)
        if settings:
            raise ValueError(f"sol has no {', '.join(settings)}; it has tau, token_aug, min_tokens and dense_first_steps")
        self.attend = import_module("comfy_kitchen").sol_attn
        self.sparse_calls, self.sparse_steps, self.dense_calls = 0, set(), Counter()

    def __call__(
        self, func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **options
    ) -> Tensor:
        """The override: shapes as ComfyUI's attention functions have them."""
        known = options["transformer_options"]
        # [B, T, H, D]
        parts = [part.transpose(1, 2) if skip_reshape else part.unflatten(-1, (heads, -1)) for part in (q, k, v)]
        step = step_of(known)
        reason = self.dense_reason(parts, mask, step, known)
        if reason is not None:
            self.dense_calls[reason] += 1
            options |= {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
            return func(q, k, v, heads, mask=mask, attn_precision=attn_precision, **options)
        self.sparse_calls += 1
        self.sparse_steps.add(step)
        # It takes half precision only; ComfyUI computes in full on some devices.
        halves = [part.to(torch.bfloat16) if part.dtype == torch.float32 else part for part in parts]
        output = self.attend(*halves, tau=self.tau, scale=options.get("scale"), token_aug=self.token_aug).to(q.dtype)
        return output.transpose(1, 2) if skip_output_reshape else output.flatten(2)

    def dense_reason(self, parts: list[Tensor], mask: Tensor | None, step: int, known: dict) -> str | None:
        """Why a call stays dense, None when it runs sparse."""
        query, key, _ = parts
        if query.shape != key.shape:
            return "cross-attention"
        if query.shape[1] < self.least:
            return "short-sequence"
        if mask is not None:
            return "mask"
        if query.shape[-1] != 128:
            return "head-dim"
        if step < self.dense_steps:
            return "warm-up-step"
        is_first = known.get("block_index") == 0 and known.get("block_type") != "single"
        return "dense-block" if is_first else None


def step_of(transformer_options: dict) -> int:
    """The step of an evaluation, from its sigma and the schedule's."""
    schedule, sigma = transformer_options["sample_sigmas"], transformer_options["sigmas"].flatten()[0]
    return max(int((schedule >= sigma.to(schedule) * (1 - ROUNDING)).sum()) - 1, 0)
