"""SVG-EAR inside diffusers' Wan transformer, so that it can be tried without ComfyUI."""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from diffusers.models.transformers import transformer_wan

from . import pack

pack.load()
from svg_ear.kernels import ClusterState, RoutedHeads, Settings, sparse_attention  # noqa: E402


class AttentionHost:
    """Takes over the video self-attention of a diffusers ``WanTransformer3DModel``: dense or sparse, and timed.

    Set :attr:`step` before each denoising step. Cross-attention stays as it is.

    Args:
        transformer: the model; its processors are wrapped for good.
        settings: how to route; None is dense everywhere.
        dense_steps: first steps that stay dense.
        dense_blocks: layers that stay dense.
        observe: called with layer, step and the routing of each sparse call.
    """

    def __init__(
        self,
        transformer,
        settings: Settings | None = None,
        dense_steps: int = 0,
        dense_blocks: tuple[int, ...] = (),
        observe: Callable[[int, int, RoutedHeads], None] | None = None,
    ):
        self.settings, self.dense_steps, self.dense_blocks, self.observe = settings, dense_steps, dense_blocks, observe
        self.step = 0
        self.seconds = 0.0
        self.densities: list[float] = []
        self._states: dict[int, ClusterState] = {}
        self._dense_attention = transformer_wan.dispatch_attention_fn
        for layer, block in enumerate(transformer.blocks):
            inner = getattr(block.attn1.processor, "inner", block.attn1.processor)
            block.attn1.processor = _HostedProcessor(inner, self, layer)

    def attend(self, layer: int, query, key, value, **options):
        """Attention of ``layer`` on ``[B, N, H, D]``, in the place of diffusers' ``dispatch_attention_fn``."""
        began = self._clock(query.device)
        if self.settings is None or self.step < self.dense_steps or layer in self.dense_blocks:
            output = self._dense_attention(query, key, value, **options)
        else:
            output = self._attend_sparsely(layer, query, key, value)
        self.seconds += self._clock(query.device) - began
        return output

    def _attend_sparsely(self, layer: int, query, key, value):
        result = sparse_attention(
            *(tensor.transpose(1, 2) for tensor in (query, key, value)),
            self.settings,
            state=self._states.setdefault(layer, ClusterState()),
            observe=self.observe and (lambda routed: self.observe(layer, self.step, routed)),
        )
        self.densities.append(result.statistics.density.mean().item())
        return result.output.transpose(1, 2)

    @property
    def density(self) -> float:
        """Mean share of exact pairs over the sparse calls; 1 when there were none."""
        return sum(self.densities) / len(self.densities) if self.densities else 1.0

    @staticmethod
    def _clock(device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()


class _HostedProcessor:
    """A block's own processor, with the attention function inside it replaced."""

    def __init__(self, inner, host: AttentionHost, layer: int):
        self.inner, self.host, self.layer = inner, host, layer

    def __call__(self, *args, **kwargs):
        def attend(query, key, value, **options):
            return self.host.attend(self.layer, query, key, value, **options)

        with patch.object(transformer_wan, "dispatch_attention_fn", attend):
            return self.inner(*args, **kwargs)
