"""Kernels compiled and tested before the first sparse call, while a model loads or the first steps run dense, so that it need not wait."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import kernels
from ...kernels import BlockRouting, HollowCall, Preparation, SelfTest, SequenceLayout, Settings
from ...kernels.tuning import attend_tiles, probe_tiles
from ..recording.words import counted, duration
from .call import AttentionCall
from .failures import first_line
from .trust import has_passed, key_of, remember

logger = logging.getLogger("svg_ear")


@dataclass(frozen=True)
class Prepared:
    """What became of preparations.

    Attributes:
        seconds: that somebody waited for them.
        wrong: what a self-test found wrong, or what stopped it.
    """

    seconds: float = 0.0
    wrong: str | Exception | None = None


class Preparations:
    """What was compiled and tested in this process, and what is being so. Safe for one thread per device."""

    def __init__(self):
        # Each begins with its device.
        self._begun: set[tuple] = set()
        # Preparations with the key of the self-test that they make, if they do.
        self._running: dict[torch.device, list[tuple[Preparation, str | None]]] = defaultdict(list)
        self._expected: dict[torch.device, list[tuple[Preparation, str | None]]] = defaultdict(list)
        self._testing: set[str] = set()
        self._lock = threading.Lock()

    def begin(
        self,
        call: AttentionCall,
        layouts: Sequence[SequenceLayout],
        settings: Settings,
        blocks: BlockRouting | None,
        memory_limit: int | None,
        biases: Tensor | None = None,
    ) -> None:
        """Have the kernels of such a sparse call compiled, and tested, unless they were before. Returns at once; no tensor is kept.

        What was expected for calls of another kind is given up.
        """
        device, video = call.q.device, len(layouts[0].video)
        if device.type == "cpu":
            return
        test = SelfTest(device, call.dtype, settings, call.head_dim, call.key_tokens > video)
        # Where the text lies, and how long it is, makes no difference.
        if not self._is_new(device, test, call.shape[:2], video, len(layouts[0].routed_queries), biases is not None):
            return
        each = layouts if len(layouts) > 1 else layouts[0]
        found = HollowCall.like(*call.split_heads(), settings, each, blocks, memory_limit, call.dtype, biases)
        self._settle(found)
        self._start(found, test)

    def expect(self, call: HollowCall) -> None:
        """Have the kernels of a call that is likely to come compiled, and tested, unless they were before. Returns at once."""
        device, dtype, head_dim, has_text, settings = call.kind
        test = SelfTest(device, dtype, settings, head_dim, has_text)
        if device.type != "cpu" and kernels.unavailable_reason(device) is None and self._is_new(device, test):
            started = self._start(call, test)
            with self._lock:
                self._expected[device].append(started)

    def _is_new(self, device: torch.device, test: SelfTest, *what: Hashable) -> bool:
        """Whether that was not begun before; now it is."""
        size = test.dtype.itemsize
        place = (device, test, *what, attend_tiles(device, size), probe_tiles(device, size))
        with self._lock:
            is_new = place not in self._begun
            self._begun.add(place)
        return is_new

    def _start(self, call: HollowCall, test: SelfTest) -> tuple[Preparation, str | None]:
        key = key_of(test)
        with self._lock:
            untested = key not in self._testing and not has_passed(key)
            if untested:
                self._testing.add(key)
        started = kernels.prepare(call, test if untested else None), key if untested else None
        with self._lock:
            self._running[call.device].append(started)
        return started

    def _settle(self, call: HollowCall) -> None:
        """Give up what was expected on the device of ``call`` and is of another kind."""
        with self._lock:
            for preparation, key in self._expected.pop(call.device, ()):
                if preparation.call.kind != call.kind:
                    preparation.stop()
                    self._testing.discard(key)

    def finish(self, device: torch.device, tell: Callable[[str], None]) -> Prepared:
        """Wait for what is being compiled and tested for ``device``, and ``tell`` the user so.

        What could not be compiled is for the call that needs it, which will raise the same error. A self-test that did not pass is made
        again when it is asked for again.
        """
        if device not in self._running:
            return Prepared()
        with self._lock:
            running = self._running.pop(device, [])
        preparations = [preparation for preparation, _ in running]
        began, waiting = time.perf_counter(), not all(preparation.has_ended for preparation in preparations)
        if waiting:
            tell("Compiling kernels, once")
        for preparation in preparations:
            preparation.wait()
        seconds = time.perf_counter() - began
        if waiting:
            tell("Running")
        wanted = [(preparation, key) for preparation, key in running if not preparation.stopped]
        for preparation, key in wanted:
            self._conclude(preparation, key, seconds)
        wrong = [preparation.wrong for preparation, _ in wanted if preparation.wrong is not None]
        if wrong:
            with self._lock:
                self._begun = {place for place in self._begun if place[0] != device}
        return Prepared(seconds, wrong[0] if wrong else None)

    def _conclude(self, preparation: Preparation, key: str | None, waited: float) -> None:
        """Log what became of a preparation, and remember a self-test that has passed."""
        ready, took, what = counted(len(preparation.kernels), "kernel"), duration(preparation.seconds), "compiled or loaded"
        if key is not None:
            what += ", and tested,"
            if preparation.wrong is None:
                remember(key)
            with self._lock:
                self._testing.discard(key)
        logger.info("%s %s in %s, of which sampling waited for %s", ready, what, took, duration(waited))
        # A self-test that was stopped says it all.
        if preparation.errors and not isinstance(preparation.wrong, Exception):
            failed = counted(len(preparation.errors), "kernel")
            logger.warning("%s could not be compiled ahead of use, the first: %s", failed, first_line(preparation.errors[0]))
