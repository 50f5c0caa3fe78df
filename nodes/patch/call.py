"""The arguments of one attention call, and what in them keeps it dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ... import kernels
from ..recording import reasons
from ..recording.reasons import Reason

HEAD_DIMS = (64, 128)
# What float32 inputs are computed in on a GPU, as by ComfyUI's own sparse node: products of float32 are of tf32 there, and slow.
FLOAT32_RUNS_IN = torch.bfloat16
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Keywords that change nothing about the result, or that are handled.
KNOWN_OPTIONS = {"transformer_options", "_inside_attn_wrapper", "scale", "enable_gqa", "low_precision_attention"}


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of ComfyUI's attention functions; ``options`` are the keywords that are not common to all."""

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None
    skip_reshape: bool
    skip_output_reshape: bool
    options: dict

    @classmethod
    def of(cls, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **options):
        """Read a call; softmax is computed in float32 whatever ``attn_precision`` says."""
        return cls(q, k, v, heads, mask, skip_reshape, skip_output_reshape, options)

    @property
    def tokens(self) -> int:
        return self.q.shape[-2]

    @property
    def key_tokens(self) -> int:
        return self.k.shape[-2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[-1] if self.skip_reshape else self.q.shape[-1] // self.heads

    @property
    def shape(self) -> tuple[int, ...]:
        """Batch, heads, tokens, head dimension."""
        return self.q.shape[0], self.heads, self.tokens, self.head_dim

    def split_heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as ``[B, H, L, D]`` views."""
        if self.skip_reshape:
            return self.q, self.k, self.v
        return tuple(t.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for t in (self.q, self.k, self.v))

    @property
    def dtype(self) -> torch.dtype:
        """What the kernels compute in."""
        return FLOAT32_RUNS_IN if self.q.dtype == torch.float32 and self.q.is_cuda else self.q.dtype

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v ``[B, H, L, D]`` in the dtype that the kernels compute in."""
        return tuple(tensor.to(self.dtype) for tensor in self.split_heads())

    def arrange(self, output: Tensor) -> Tensor:
        """Output ``[B, H, L, D]`` in the layout and dtype that the caller expects."""
        output = output.to(self.q.dtype)
        return output if self.skip_output_reshape else output.transpose(1, 2).flatten(2)

    def through(self, attention: Callable[..., Tensor]) -> Tensor:
        """The output of ``attention``, a function of ComfyUI's signature."""
        layout = {"skip_reshape": self.skip_reshape, "skip_output_reshape": self.skip_output_reshape}
        return attention(self.q, self.k, self.v, self.heads, mask=self.mask, **layout, **self.options)

    def first_queries(self, count: int) -> AttentionCall:
        """The call of its first queries alone, about ``count`` over all batch items and heads."""
        rows = min(self.tokens, max(count // (self.q.shape[0] * self.heads), 1))
        # A mask with one row is of all queries.
        mask = self.mask if self.mask is None or self.mask.shape[-2] == 1 else self.mask.narrow(-2, 0, rows)
        return replace(self, q=self.q.narrow(-2, 0, rows), mask=mask)

    def dense_reason(self, is_part: bool = False) -> Reason | None:
        """What in the call itself keeps it dense; ``is_part`` says that it has a part of the queries and all keys.

        For parts the model asks for full precision because masks are not to be relied on in other attention.
        """
        if (self.q.shape[-2] != self.k.shape[-2] and not is_part) or self.q.ndim != self.k.ndim:
            return reasons.CROSS_ATTENTION
        if self.options.get("low_precision_attention") is False and not is_part:
            return reasons.FULL_PRECISION
        unknown = (value for name, value in self.options.items() if name not in KNOWN_OPTIONS)
        if any(value is not None and value is not False for value in unknown):
            return reasons.UNKNOWN_OPTION
        keys = self.k[..., : self.tokens, :] if is_part else self.k
        if self.options.get("enable_gqa") and self.q.shape != keys.shape:
            return reasons.GROUPED_QUERY
        if self.q.shape != keys.shape or self.k.shape != self.v.shape:
            return reasons.CROSS_ATTENTION
        return None

    def unsupported_reason(self) -> Reason | None:
        """What in the tensors the kernels do not support."""
        if self.head_dim not in HEAD_DIMS:
            return reasons.HEAD_DIM
        if self.q.dtype not in DTYPES:
            return reasons.DTYPE
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (self.q, self.k, self.v)):
            return reasons.TRAINING
        unavailable = kernels.unavailable_reason(self.q.device)
        return replace(reasons.DEVICE, sentence=f"{unavailable}.") if unavailable else None
