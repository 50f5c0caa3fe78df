"""Attention of diffusers' Wan transformer replaced, so that the pack can be tried and measured without ComfyUI."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import torch
from diffusers.models.transformers import transformer_wan
from torch import Tensor

from . import pack

pack.load()
from svg_ear.kernels import ClusterState, RoutedHeads, Settings, sparse_attention  # noqa: E402

# Layer, step, and q, k, v as [B, H, N, D]; returns the same shape.
Attention = Callable[[int, int, Tensor, Tensor, Tensor], Tensor]


class PackAttention:
    """The pack's sparse attention over one clip: clusters are carried from step to step, layer by layer.

    Args:
        settings: how to route.
        observe: called with layer, step and the routing of each call.
        density: the share of exact pairs by layer and step; None is that of the settings.
        owners: the batch item whose clusters each item takes; None lets each have its own.

    Attributes:
        densities: share of exact pairs of each call.
    """

    def __init__(
        self,
        settings: Settings,
        observe: Callable[[int, int, RoutedHeads], None] | None = None,
        density: Callable[[int, int], float] | None = None,
        owners: tuple[int, ...] | None = None,
    ):
        self.settings, self.observe, self.density_at, self.owners = settings, observe, density, owners
        self.densities: list[float] = []
        self.states: dict[int, ClusterState] = {}

    def __call__(self, layer: int, step: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = sparse_attention(
            *(query, key, value),
            replace(self.settings, density=self.density_at(layer, step)) if self.density_at else self.settings,
            state=self.states.setdefault(layer, ClusterState()),
            owners=self.owners,
            observe=self.observe and (lambda routed: self.observe(layer, step, routed)),
        )
        self.densities.append(result.statistics.density.mean().item())
        return result.output

    @property
    def density(self) -> float:
        """Mean share of exact pairs over the calls."""
        return sum(self.densities) / len(self.densities)


class AttentionHost:
    """Takes over the video self-attention of a diffusers ``WanTransformer3DModel``: dense or sparse, and timed.

    Set :attr:`step` before each denoising step. Cross-attention stays as it is.

    Args:
        transformer: the model; its processors are wrapped for good.
        attention: what runs in the sparse calls; None is dense everywhere.
        dense_steps: first steps that stay dense.
        dense_blocks: layers that stay dense.

    Attributes:
        step: the denoising step, from 0.
        calls, dense_calls: attention calls so far, and how many of them were dense.
        seconds: time spent in them.
    """

    def __init__(self, transformer, attention: Attention | None = None, dense_steps: int = 0, dense_blocks: tuple[int, ...] = ()):
        self.attention, self.dense_steps, self.dense_blocks = attention, dense_steps, dense_blocks
        self.step = self.calls = self.dense_calls = 0
        self.seconds = 0.0
        self._dense_attention = transformer_wan.dispatch_attention_fn
        for layer, block in enumerate(transformer.blocks):
            inner = getattr(block.attn1.processor, "inner", block.attn1.processor)
            block.attn1.processor = _HostedProcessor(inner, self, layer)

    def is_sparse(self, layer: int) -> bool:
        """Whether ``layer`` runs sparse in the present step."""
        return self.attention is not None and self.step >= self.dense_steps and layer not in self.dense_blocks

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
        """Attention of ``layer`` on ``[B, N, H, D]``, in the place of diffusers' ``dispatch_attention_fn``."""
        began = self._clock(query.device)
        if self.is_sparse(layer):
            heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
            output = self.attention(layer, self.step, *heads_first).transpose(1, 2)
        else:
            output = self._dense_attention(query, key, value, **options)
            self.dense_calls += 1
        self.calls += 1
        self.seconds += self._clock(query.device) - began
        return output

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
