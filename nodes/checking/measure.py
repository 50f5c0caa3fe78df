"""Milliseconds of attention calls on a GPU, dense and sparse."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor

from ...kernels import ClusterState, Settings, StageTimer, sparse_attention, tuning
from ..patch.memory import is_out_of_memory
from .inputs import HEAD_DIM, made_up

# q, k and v [1, L, H * D] and the number of heads to [1, L, H * D], as ComfyUI's attention functions.
Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
WARM_UP, MOST_CALLS, TRIAL_CALLS = 2, 20, 4
TRIAL_DENSITY = 0.1
# Tiles differ by rounding, and by blocks that are as good as each other. Every so many rows of the output are compared.
MOST_DIFFERENT, ROWS_COMPARED = 0.05, 7
# Of the size of q: q, k and v themselves, output and what a sparse call works in, with room to spare; and what it takes at least.
TENSORS, LEAST_ROOM = 12, 2**30


class SparseCalls:
    """Sparse calls on the same inputs with their clusters carried along, as from one denoising step to the next."""

    def __init__(self, inputs: Sequence[Tensor], heads: int, density: float):
        self._inputs = [tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in inputs]
        self._settings = Settings(density=density)
        self._state = ClusterState()

    def __call__(self, timer: StageTimer | None = None) -> Tensor:
        output = sparse_attention(*self._inputs, self._settings, state=self._state, timer=timer).output
        return output.transpose(1, 2).flatten(2)

    def stage(self, name: str) -> float:
        """Milliseconds of one stage, mean of some calls."""
        timer = StageTimer()
        for _ in range(TRIAL_CALLS):
            self(timer)
        return timer.seconds()[name] * 1000 / TRIAL_CALLS


class Measure:
    """Times calls on one GPU, each several times in a row: what the host needs to launch them counts where it takes longer.

    What goes wrong with one call is handed back in the place of its time, unless memory runs out, which is raised.

    Args:
        attentions: dense attention by name, the one that is set first.
        milliseconds: time that a call is repeated for in a round: at least once, at most ``MOST_CALLS`` times.
        rounds: of which the median counts. Each times all calls, so that what changes with time (clocks, heat) touches all of them.
    """

    def __init__(self, device: torch.device, attentions: Mapping[str, Attention], milliseconds: float = 60.0, rounds: int = 3):
        self.device, self.attentions = device, attentions
        self._milliseconds, self._rounds = milliseconds, rounds

    def fits(self, heads: int, tokens: int) -> bool:
        """Whether calls of this size find memory."""
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return 2 * HEAD_DIM * heads * tokens * TENSORS + LEAST_ROOM <= free

    def times(
        self, heads: int, tokens: int, methods: Sequence[str | float], begin: Callable[[str | float], None]
    ) -> dict[str | float, float | Exception]:
        """Milliseconds of a call of each method: a name of dense attention, or the density of a sparse call.

        ``begin`` is told of each method before it runs, so that what runs can be shown, and stopped by an error.
        """
        inputs = made_up(heads, tokens, self.device)
        found: dict[str | float, float | Exception] = {}
        ready = {}
        for method in methods:
            begin(method)
            call = SparseCalls(inputs, heads, method) if isinstance(method, float) else partial(self.attentions[method], *inputs, heads)
            repeats = _caught(partial(self._warm_up, call))
            if isinstance(repeats, Exception):
                found[method] = repeats
            else:
                ready[method] = partial(self._once, call, repeats)
        return found | self._medians(ready, begin)

    def trials(
        self, kernel: str, heads: int, tokens: int, choices: Sequence[Hashable], begin: Callable[[Hashable], None]
    ) -> dict[Hashable, float | Exception]:
        """Milliseconds of the stage ``kernel`` of a sparse call with each of some choices of its tiles; the table's are left in use.

        A choice whose output is another than that of the first one that works has failed.
        """
        inputs = made_up(heads, tokens, self.device)
        calls = SparseCalls(inputs, heads, TRIAL_DENSITY)
        outputs: list[Tensor] = []

        def compare(choice: Hashable) -> None:
            tuning.use(self.device, **{kernel: choice})
            outputs.append(SparseCalls(inputs, heads, TRIAL_DENSITY)()[:, ::ROWS_COMPARED].float())
            error = float((outputs[-1] - outputs[0]).norm() / outputs[0].norm())
            if not error <= MOST_DIFFERENT:
                raise RuntimeError(f"the output is {error:.0%} off that of the other tiles: they do not compute what they should here")

        def stage(choice: Hashable) -> float:
            tuning.use(self.device, **{kernel: choice})
            calls()
            return calls.stage(kernel)

        found: dict[Hashable, float | Exception] = {}
        try:
            for choice in choices:
                begin(choice)
                failed = _caught(partial(compare, choice))
                if isinstance(failed, Exception):
                    found[choice] = failed
            return found | self._medians({choice: partial(stage, choice) for choice in choices if choice not in found}, begin)
        finally:
            tuning.use(self.device)

    def _medians(self, timed: Mapping[Hashable, Callable[[], float]], begin: Callable[[Hashable], None]) -> dict[Hashable, float]:
        samples = {name: [] for name in timed}
        for _ in range(self._rounds):
            for name, run in timed.items():
                begin(name)
                samples[name].append(run())
        return {name: median(times) for name, times in samples.items()}

    def _warm_up(self, call: Callable[[], object]) -> int:
        """Call until it is as it stays; how often to repeat it in a round."""
        for _ in range(WARM_UP):
            call()
        return max(1, min(MOST_CALLS, int(self._milliseconds / self._once(call, 1))))

    def _once(self, call: Callable[[], object], repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats


def _caught(run: Callable[[], float | None]) -> float | None | Exception:
    """What ``run`` returns, or the error that it stops with, unless memory ran out."""
    try:
        return run()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return error
