"""Launching kernels; which kernels some code launches, and compiling them without a launch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import triton
from torch import Tensor
from triton.runtime.jit import KernelInterface

from ..strides import ALIGNMENT

# From this version on a compiled kernel takes all arguments, constexprs among them.
TAKES_ALL = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)

# What a launch of a thread goes to instead of being made, with the kernel, its grid, arguments and options.
_TAKEN_OVER: dict[int, Callable[[Kernel, tuple[int, ...], tuple, dict], None]] = {}


class Kernel:
    """What ``triton.jit`` made, launched as ``kernel[grid](*arguments, **options)``.

    In the signature constexprs follow the other parameters; they are given as options.
    """

    def __init__(self, jitted: KernelInterface):
        self.jitted = jitted

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self._launch, grid)

    def launch(self, grid: tuple[int, ...], arguments: tuple, options: dict) -> Callable[..., None] | None:
        """Launch, and return what launches the same again on the then current stream of the device.

        It takes the arguments, addresses in the place of tensors, which are to be multiples of :data:`ALIGNMENT` where those of the
        tensors are. None where Triton's interpreter runs the kernel, or a Triton that cannot.
        """
        compiled = self.jitted[grid](*arguments, **options)
        if compiled is None or not TAKES_ALL:
            return None
        constants = [options[name] for name in self.jitted.arg_names[len(arguments) :]]
        again = compiled[(*grid, 1, 1)[:3]]
        return lambda *values: again(*values, *constants)

    def _launch(self, grid: tuple[int, ...], *arguments, **options) -> None:
        instead = _TAKEN_OVER.get(threading.get_ident())
        if instead is None:
            self.jitted[grid](*arguments, **options)
        else:
            instead(self, grid, arguments, options)


@contextmanager
def taken_over(instead: Callable[[Kernel, tuple[int, ...], tuple, dict], None]) -> Iterator[None]:
    """Within the block hand this thread's launches to ``instead``. Those of other threads are as ever."""
    thread = threading.get_ident()
    before = _TAKEN_OVER.get(thread)
    _TAKEN_OVER[thread] = instead
    try:
        yield
    finally:
        if before is None:
            del _TAKEN_OVER[thread]
        else:
            _TAKEN_OVER[thread] = before


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
    """The launches of this thread within the block, of which none is made; each one once."""
    found: dict[Launch, None] = {}
    launches: list[Launch] = []
    with taken_over(lambda kernel, grid, arguments, options: found.setdefault(Launch.of(kernel.jitted, arguments, options))):
        try:
            yield launches
        finally:
            launches += found
