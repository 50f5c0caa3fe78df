"""Which kernels some code launches, and compiling them without a launch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from triton.runtime.jit import KernelInterface

# Bytes of which Triton asks whether an address is a multiple.
ALIGNMENT = 16
# Recording takes the place of what all kernels are launched through, so one thread at a time may.
_RECORDING = threading.Lock()


@dataclass(frozen=True)
class Pointer:
    """What of a tensor decides how a kernel is compiled, under the names by which Triton asks for it.

    Attributes:
        dtype: of the elements.
        address: of its first element modulo :data:`ALIGNMENT`, its memory taken as aligned.
        size: bytes of its memory.
    """

    dtype: torch.dtype
    address: int
    size: int

    @classmethod
    def of(cls, tensor: Tensor) -> Pointer:
        """Of a tensor that need not have data."""
        address = tensor.storage_offset() * tensor.itemsize if tensor.numel() else 0
        return cls(tensor.dtype, address % ALIGNMENT, tensor.untyped_storage().nbytes())

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return self.size


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: what ``triton.jit`` made.
        arguments: as they were given, but :class:`Pointer` in the place of tensors.
        options: keywords in their order, which is a part of Triton's key: constexprs, and how to launch.
    """

    kernel: KernelInterface
    arguments: tuple
    options: tuple[tuple[str, object], ...]

    @classmethod
    def of(cls, kernel: KernelInterface, arguments: tuple, options: dict) -> Launch:
        """The launch of ``kernel`` with these arguments."""
        pointers = tuple(Pointer.of(value) if isinstance(value, Tensor) else value for value in arguments)
        return cls(kernel, pointers, tuple(options.items()))

    def compile(self):
        """The compiled kernel, loaded on the current device together with its launcher: a launch then finds everything made."""
        compiled = self.kernel.warmup(*self.arguments, grid=(1,), **dict(self.options))
        # Asked for what runs it, Triton builds and loads that.
        compiled.run
        return compiled


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """The launches of this thread within the block, of which none is made; each one once. Those of other threads are as ever."""
    found: dict[Launch, None] = {}
    launches: list[Launch] = []
    thread, launching = threading.get_ident(), KernelInterface.__getitem__

    def of_grid(kernel: KernelInterface, grid):
        if threading.get_ident() != thread:
            return launching(kernel, grid)
        return lambda *arguments, **options: found.setdefault(Launch.of(kernel, arguments, options))

    with _RECORDING:
        KernelInterface.__getitem__ = of_grid
        try:
            yield launches
        finally:
            KernelInterface.__getitem__ = launching
            launches += found
