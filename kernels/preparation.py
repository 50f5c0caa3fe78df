"""Kernels compiled and tested before the calls that need them, several at once, while other things run."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .device import on_device, unavailable_reason
from .hollow import HollowCall
from .selftest import SelfTest

if TYPE_CHECKING:
    from .triton_stages.launches import Launch

# Threads that compile at once. Most of the time they are in the compiler, which lets Python go on.
MOST_THREADS = 16
# The kernels that take longest to compile, the slowest first: measured for sm_90 on one core, 2.6 to 0.7 s, and all others 0.6 at most.
SLOWEST = ("_place", "_attend_int8", "_quantize", "_attend", "_attend_again", "_probe", "_dense", "_denominators")
# Triton's caches are not made for two threads that compile the same kernel.
_ONE_AT_A_TIME = threading.Lock()


def prepare(call: HollowCall, test: SelfTest | None = None) -> Preparation:
    """Begin to compile what calls of :func:`~.pipeline.sparse_attention` like ``call`` launch, the first and later ones.

    Returns at once, and keeps no tensor. A ``test`` is compiled too, and run then.

    Raises:
        ValueError: the device is a CPU.
        RuntimeError: Triton cannot run on the device; the message says why.
    """
    if call.device.type == "cpu":
        raise ValueError("q, k, v are on a CPU, where nothing is compiled; prepare calls on a GPU only")
    reason = unavailable_reason(call.device)
    if reason is not None:
        raise RuntimeError(f"the Triton kernels cannot run: {reason}")
    return Preparation(call, test)


class Preparation:
    """The kernels of a call being compiled, and tested, in threads of their own.

    A call on the same device has to :meth:`wait` first: Triton does not expect that a kernel is launched while another thread
    loads it. Nothing else depends on it, for what was not compiled ahead a call compiles itself.

    Attributes:
        call: what it is for.
        kernels: what is ready, a kernel for each of the variants that the call needs.
        stopped: whether it was given up.
        seconds: how long it took, 0 until it has ended.
        errors: what went wrong. A call that needs the same kernel will raise the same.
        wrong: what the self-test found wrong, or what stopped it; None where nothing did, or without one.
    """

    def __init__(self, call: HollowCall, test: SelfTest | None = None):
        self.call, self._test = call, test
        self.kernels: set = set()
        self.seconds = 0.0
        self.errors: list[Exception] = []
        self.wrong: str | Exception | None = None
        self.stopped = False
        # No daemon, which would be stopped in the middle of the compiler: an exit waits for what is being compiled.
        self._thread = threading.Thread(target=self._run, name="SVG-EAR kernels")
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether :meth:`wait` would return at once."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return when everything is compiled that can be."""
        self._thread.join()

    def stop(self) -> None:
        """Begin no other kernel, and no test; those in the compiler end."""
        self.stopped = True

    def _run(self) -> None:
        began = time.perf_counter()
        with _ONE_AT_A_TIME:
            try:
                with on_device(self.call.device):
                    calls = () if self.stopped else (self.call, *(self._test.hollow() if self._test else ()))
                    launches = dict.fromkeys(launch for call in calls for launch in call.launches())
                self._compile(launches)
            except Exception as error:
                self.errors.append(error)
            try:
                self.wrong = self._test.run() if self._test and not self.stopped else None
            except Exception as error:
                self.wrong = error
        self.seconds = time.perf_counter() - began

    def _compile(self, launches: Iterable[Launch]) -> None:
        # One core is left to whatever else runs.
        with ThreadPoolExecutor(min(MOST_THREADS, max(1, (os.cpu_count() or 1) - 1))) as threads:
            for compiled in [threads.submit(self._compile_one_by_one, some) for some in _queues(launches)]:
                compiled.result()

    def _compile_one_by_one(self, variants: list[Launch]) -> None:
        with on_device(self.call.device):
            for launch in variants:
                if self.stopped:
                    return
                try:
                    self.kernels.add(launch.compile())
                except Exception as error:
                    self.errors.append(error)


def _queues(launches: Iterable[Launch]) -> list[list[Launch]]:
    """Launches that are compiled one after the other, because they may need the same kernel; those that take longest come first.

    Of a kernel that is wanted with different constants the others come last: at the first Triton also prepares what all of them share.
    """
    places, queues = {name: place for place, name in enumerate(SLOWEST)}, defaultdict(list)
    for launch in sorted(launches, key=lambda launch: places.get(launch.kernel.fn.__name__, len(places))):
        queues[launch.kernel, launch.options].append(launch)
    first, others = {}, []
    for queue in queues.values():
        if first.setdefault(queue[0].kernel, queue) is not queue:
            others.append(queue)
    return [*first.values(), *others]
