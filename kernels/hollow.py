"""A call on tensors that hold no data, which launches what the call itself would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from .pipeline import sparse_attention
from .settings import BlockRouting, SequenceLayout, Settings
from .state import ClusterState
from .strides import ALIGNMENT

if TYPE_CHECKING:
    from .triton_stages.launches import Launch


@dataclass(frozen=True)
class HollowTensor:
    """Shape, strides, dtype and device of a tensor; ``misaligned`` elements lie between a multiple of 16 bytes and its first."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    misaligned: int

    @classmethod
    def like(cls, tensor: Tensor, dtype: torch.dtype | None = None) -> HollowTensor:
        """Like ``tensor``, or what it becomes when it is converted to ``dtype``."""
        if dtype in (None, tensor.dtype):
            misaligned = tensor.data_ptr() % ALIGNMENT // tensor.itemsize
            return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, misaligned)
        converted = torch.empty_like(tensor, dtype=dtype, device="meta")
        return cls(tuple(tensor.shape), converted.stride(), dtype, tensor.device, 0)

    def empty(self) -> Tensor:
        """A tensor like that, uninitialised."""
        reach = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride))
        memory = torch.empty(self.misaligned + reach, dtype=self.dtype, device=self.device)
        return memory.as_strided(self.shape, self.stride, self.misaligned)


@dataclass(frozen=True)
class HollowCall:
    """The arguments of :func:`~.pipeline.sparse_attention`, but for the data of ``inputs``, of ``biases`` and of blocks."""

    inputs: tuple[HollowTensor, ...]
    settings: Settings
    layouts: SequenceLayout | Sequence[SequenceLayout] | None
    memory_limit: int | None
    biases: HollowTensor | None = None
    exact: HollowTensor | None = None
    labels: HollowTensor | None = None
    block_size: int = 0
    repeating: tuple[int, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the call would run."""
        return self.inputs[0].device

    @property
    def kind(self) -> tuple:
        """What calls have in common that launch the same kernels, however long they are."""
        query, layouts = self.inputs[0], [self.layouts] if isinstance(self.layouts, SequenceLayout) else self.layouts
        has_text = layouts is not None and len(layouts[0].video) < self.inputs[1].shape[2]
        return query.device, query.dtype, query.shape[3], has_text, self.settings

    @classmethod
    def like(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        settings: Settings,
        layouts: SequenceLayout | Sequence[SequenceLayout] | None,
        blocks: BlockRouting | None,
        memory_limit: int | None,
        dtype: torch.dtype | None = None,
        biases: Tensor | None = None,
    ) -> HollowCall:
        """The call with these arguments, none of which is kept alive; inputs as if converted to ``dtype``."""
        weights = None if biases is None else HollowTensor.like(biases)
        call = cls(tuple(HollowTensor.like(tensor, dtype) for tensor in (q, k, v)), settings, layouts, memory_limit, weights)
        if blocks is None:
            return call
        labels = None if blocks.labels is None else HollowTensor.like(blocks.labels)
        return replace(call, exact=HollowTensor.like(blocks.exact), labels=labels, block_size=blocks.size, repeating=blocks.repeating)

    def launches(self) -> list[Launch]:
        """What the first call of a layer and those after it launch, each launch once. Nothing is launched or allocated."""
        from .triton_stages.launches import recorded_launches

        state = ClusterState()
        # Constants of the stages are tensors with data.
        with FakeTensorMode(allow_non_fake_inputs=True), recorded_launches() as launches:
            inputs, blocks = [tensor.empty() for tensor in self.inputs], self._blocks()
            biases = self.biases and self.biases.empty()
            # Clusters are new, those of the last call, or made anew from them.
            for state.calls in sorted({0, 1, self.settings.recluster_every}):
                sparse_attention(
                    *inputs,
                    self.settings,
                    layouts=self.layouts,
                    biases=biases,
                    blocks=blocks,
                    state=state,
                    memory_limit=self.memory_limit,
                    implementation="triton",
                )
        return launches

    def _blocks(self) -> BlockRouting | None:
        if self.exact is None:
            return None
        return BlockRouting(self.exact.empty(), self.block_size, self.repeating, self.labels and self.labels.empty())
