"""Time, memory, compilations and host synchronisations of calls on a GPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


def interleaved(runs: Sequence[Callable[[], object]], rounds: int, milliseconds: float) -> Iterator[list[list[float]]]:
    """After each round, milliseconds of every run so far, as ``triton.testing.do_bench`` measures them.

    A round times all runs one after the other, so that what changes with time (clocks, heat) touches all of them.

    Args:
        milliseconds: time that do_bench repeats one run for, in each round; at least one repetition is timed.
    """
    from triton.testing import do_bench

    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, times in zip(runs, samples):
            times += do_bench(run, warmup=0, rep=milliseconds, return_mode="all")
        yield samples


def extra_memory(run: Callable[[], torch.Tensor], device: torch.device) -> int:
    """Bytes at the peak of ``run`` beyond what was allocated before and its output."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    output = run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before - output.nbytes


def host_synchronisation(run: Callable[[], object]) -> str:
    """Where ``run`` first makes the host wait for the GPU, as torch notices it; empty when nowhere."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}: {frame.line}"
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return ""


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of the Triton kernels specialised inside the ``with`` block, also of those then found in the cache on disk."""
    from triton import knobs

    names: list[str] = []
    before = knobs.compilation.listener

    def listen(*, src, **details) -> None:
        names.append(src.name)

    knobs.compilation.listener = listen
    try:
        yield names
    finally:
        knobs.compilation.listener = before


def relative_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of ``reference``, ``[1, H, L, D]``, head by head so that memory stays small."""
    difference = norm = 0.0
    for head in range(reference.shape[1]):
        expected = reference[:, head].float()
        difference = difference + (output[:, head].float() - expected).square().sum().double()
        norm = norm + expected.square().sum().double()
    return float((difference / norm).sqrt())
