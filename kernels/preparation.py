"""Kernels compiled and tested before the calls that need them, several at once, while other things run."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .device import on_device, unavailable_reason
from .hollow import HollowCall
from .selftest import SelfTest
from .settings import BlockRouting, SequenceLayout, Settings

if TYPE_CHECKING:
    from .triton_stages.launches import Launch

# Threads that compile at once. Most of the time they are in the compiler, which lets Python go on.
MOST_THREADS = 16
# Triton's caches are not made for two threads that compile the same kernel.
_ONE_AT_A_TIME = threading.Lock()


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    settings: Settings = Settings(),
    *,
    layouts: SequenceLayout | Sequence[SequenceLayout] | None = None,
    blocks: BlockRouting | None = None,
    memory_limit: int | None = None,
    dtype: torch.dtype | None = None,
    test: SelfTest | None = None,
) -> Preparation:
    """Begin to compile what calls of :func:`~.pipeline.sparse_attention` with such arguments launch, the first and later ones.

    None of the tensors is kept. With ``dtype`` the calls will have them converted to that. A ``test`` is compiled too, and run then.

    Raises:
        ValueError: the device is a CPU.
        RuntimeError: Triton cannot run on the device; the message says why.
    """
    if q.device.type == "cpu":
        raise ValueError("q, k, v are on a CPU, where nothing is compiled; prepare calls on a GPU only")
    reason = unavailable_reason(q.device)
    if reason is not None:
        raise RuntimeError(f"the Triton kernels cannot run: {reason}")
    return Preparation(HollowCall.like(q, k, v, settings, layouts, blocks, memory_limit, dtype), q.device, test)


class Preparation:
    """The kernels of a call being compiled, and tested, in threads of their own.

    A call on the same device has to :meth:`wait` first: Triton does not expect that a kernel is launched while another thread
    loads it. Nothing else depends on it, for what was not compiled ahead a call compiles itself.

    Attributes:
        kernels: what is ready, a kernel for each of the variants that the call needs.
        seconds: how long it took, 0 until it has ended.
        errors: what went wrong. A call that needs the same kernel will raise the same.
        wrong: what the self-test found wrong, or what stopped it; None where nothing did, or without one.
    """

    def __init__(self, call: HollowCall, device: torch.device, test: SelfTest | None = None):
        self.kernels: set = set()
        self.seconds = 0.0
        self.errors: list[Exception] = []
        self.wrong: str | Exception | None = None
        # No daemon, which would be stopped in the middle of the compiler: an exit waits for what is being compiled.
        self._thread = threading.Thread(target=self._run, args=(call, device, test), name="SVG-EAR kernels")
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`wait` would return at once."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return when everything is compiled that can be."""
        self._thread.join()

    def _run(self, call: HollowCall, device: torch.device, test: SelfTest | None) -> None:
        began = time.perf_counter()
        with _ONE_AT_A_TIME:
            try:
                with on_device(device):
                    calls = (call, *(test.hollow() if test else ()))
                    launches = dict.fromkeys(launch for some in calls for launch in some.launches())
                self._compile(launches, device)
            except Exception as error:
                self.errors.append(error)
            try:
                self.wrong = test and test.run()
            except Exception as error:
                self.wrong = error
        self.seconds = time.perf_counter() - began

    def _compile(self, launches: Iterable[Launch], device: torch.device) -> None:
        variants = defaultdict(list)
        for launch in launches:
            variants[launch.kernel].append(launch)
        # One core is left to whatever else runs.
        with ThreadPoolExecutor(min(MOST_THREADS, max(1, (os.cpu_count() or 1) - 1))) as threads:
            for compiled in [threads.submit(self._compile_one_by_one, some, device) for some in variants.values()]:
                compiled.result()

    def _compile_one_by_one(self, variants: list[Launch], device: torch.device) -> None:
        with on_device(device):
            for launch in variants:
                try:
                    self.kernels.add(launch.compile())
                except Exception as error:
                    self.errors.append(error)
