"""Kernels compiled while the first steps run dense, so that the first sparse one need not wait for them."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from ... import kernels
from ...kernels import BlockRouting, Preparation, SequenceLayout, Settings
from ..recording.words import counted, duration
from .call import AttentionCall

logger = logging.getLogger("svg_ear")


class Preparations:
    """What was compiled in this process, and what is being compiled. Safe for one thread per device."""

    def __init__(self):
        self._begun: set[tuple] = set()
        self._running: dict[torch.device, list[Preparation]] = defaultdict(list)
        self._lock = threading.Lock()

    def begin(
        self,
        call: AttentionCall,
        layouts: Sequence[SequenceLayout],
        settings: Settings,
        blocks: BlockRouting | None,
        memory_limit: int | None,
    ) -> None:
        """Have the kernels of such a sparse call compiled, unless they were before. Returns at once; no tensor is kept."""
        device, video = call.q.device, len(layouts[0].video)
        if device.type == "cpu":
            return
        # Where the text lies, and how long it is, makes no difference.
        place = (device, call.q.dtype, call.shape[:2], call.head_dim, video, call.tokens > video, settings)
        with self._lock:
            if place in self._begun:
                return
            self._begun.add(place)
        q, k, v = call.split_heads()
        each = layouts if len(layouts) > 1 else layouts[0]
        preparation = kernels.prepare(q, k, v, settings, layouts=each, blocks=blocks, memory_limit=memory_limit)
        with self._lock:
            self._running[device].append(preparation)

    def finish(self, device: torch.device, tell: Callable[[str], None]) -> float:
        """Wait for what is being compiled for ``device``, and ``tell`` the user so; the seconds that took.

        What could not be compiled is for the call that needs it, which will raise the same error.
        """
        if device not in self._running:
            return 0.0
        with self._lock:
            preparations = self._running.pop(device, ())
        began, waiting = time.perf_counter(), not all(preparation.has_ended for preparation in preparations)
        if waiting:
            tell("Compiling kernels, once")
        for preparation in preparations:
            preparation.wait()
        seconds = time.perf_counter() - began
        if waiting:
            tell("Running")
        for preparation in preparations:
            ready, took, waited = counted(len(preparation.kernels), "kernel"), duration(preparation.seconds), duration(seconds)
            logger.info("%s compiled or loaded in %s, of which sampling waited for %s", ready, took, waited)
            for error in preparation.errors:
                logger.warning("a kernel could not be compiled ahead of its use: %s: %s", type(error).__name__, error)
        return seconds
