"""One attention call on several GPUs of one host, with its all-to-alls, beside one GPU and beside dense attention.

python -m benchmarks.distributed                     all GPUs, Wan 14B at 720p, density 10 %
python -m benchmarks.distributed --gpus 2 --engine xfuser
python -m benchmarks.distributed --tiny              two processes on a CPU, to try it

First it checks that several GPUs give what one gives, to rounding: otherwise nothing is timed, and the status is 1. Calls are warm: they
start from the clusters of the step before. The methods take turns; a time is that of the slowest rank. ``ms`` is the time of a call of
several in a row, as a model makes them, ``idle_ms`` that of one on idle GPUs, which also waits for the host's first kernels, and
``host_ms`` the host's part of that: until all is enqueued. "heads of one GPU" is a rank's share of the call without any all-to-all. Last
come the stages of a call of all heads, of a rank's and of as few heads that no rank shares, which have less working memory: what is not
divided by the ranks costs the same for few heads as for many.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, distributed, multiprocessing

from . import pack, results, ulysses
from .speed.inputs import SHAPES, Shape, make_inputs
from .ulysses import ENGINES, part

pack.load()
from svg_ear.kernels import ClusterState, Settings, StageTimer, sparse_attention  # noqa: E402
from svg_ear.kernels.arguments import working_memory  # noqa: E402
from svg_ear.nodes.distributed.gathered import Gathered  # noqa: E402
from svg_ear.nodes.distributed.xfuser import SparseCall  # noqa: E402

TINY = Shape("tiny", 4, (3, 3, 7))
DENSITY = 0.1
CALLS_IN_A_ROW = 5
# Before stages are timed: the first two calls of a state are unlike those after them, and the next one is recorded.
WARM_UP = 4
ALONE, OWN_HEADS = ", 1 GPU", "sparse, heads of one GPU"
COLUMNS = ("ms", "idle_ms", "host_ms")
# Relative error (root mean square) that bfloat16 allows between two roundings of the same result, and float32.
ROUNDING = {torch.bfloat16: 5e-3, torch.float32: 1e-5}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 2 when it cannot run here, 1 when several GPUs do not give what one gives, 0 otherwise."""
    options = parse(arguments)
    found = torch.cuda.device_count()
    if not options.tiny and found < max(options.gpus or 2, 2):
        print(f"benchmarks.distributed needs {options.gpus or 2} GPUs, and torch finds {found}; --tiny tries it on a CPU")
        return 2
    ranks = options.gpus or (2 if options.tiny else found)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "localhost", str(_free_port())
    with tempfile.TemporaryDirectory() as folder:
        arguments = (ranks, options, folder)
        # Forks of a process that has used a GPU cannot use it.
        method = "fork" if options.tiny else "spawn"
        multiprocessing.start_processes(_rank, args=arguments, nprocs=ranks, start_method=method)
        return int(Path(folder, "status").read_text())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, help="GPUs that share the call; all without it")
    parser.add_argument("--engine", choices=ENGINES, default="torch", help="who exchanges the heads: xfuser, or the same by torch alone")
    parser.add_argument("--shape", choices=SHAPES, default="wan-720p")
    parser.add_argument("--density", type=float, default=DENSITY)
    parser.add_argument("--rounds", type=int, default=10, help="times that every method is timed")
    parser.add_argument("--commit", help="the commit, for a copy without its history")
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the CSV")
    parser.add_argument("--tiny", action="store_true", help="two processes on a CPU")
    return parser.parse_args(arguments)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def _rank(rank: int, ranks: int, options: argparse.Namespace, folder: str) -> None:
    device = torch.device("cpu") if options.tiny else torch.device("cuda", rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    distributed.init_process_group("gloo" if options.tiny else "nccl", rank=rank, world_size=ranks)
    with torch.inference_mode():
        status = Bench(rank, ranks, device, options).run()
    if rank == 0:
        Path(folder, "status").write_text(str(status))
    distributed.destroy_process_group()


class Bench:
    """One process of the bench."""

    def __init__(self, rank: int, ranks: int, device: torch.device, options: argparse.Namespace):
        self._rank, self._ranks, self._device, self._options = rank, ranks, device, options
        self._shape = TINY if options.tiny else SHAPES[options.shape]
        self._engine = ENGINES[options.engine](rank, ranks)
        inputs = make_inputs(self._shape, "structured", device)
        dtype = torch.float32 if options.tiny else torch.bfloat16
        # Two steps of q, k, v [B, tokens, H, D]; those of rank 0 count.
        self._steps = [[tensor.transpose(1, 2).to(dtype).contiguous() for tensor in inputs.step(number)] for number in (0, 1)]
        for tensor in (tensor for step in self._steps for tensor in step):
            distributed.broadcast(tensor, 0)
        self._parts = [[part(tensor, rank, ranks) for tensor in step] for step in self._steps]
        # This rank's heads of the first step, as the all-to-alls give them.
        self._own = [tensor.chunk(ranks, dim=2)[rank].contiguous() for tensor in self._steps[0]]
        # What a rank takes for them.
        self._memory = working_memory(sum(tensor.nbytes for tensor in self._own), device, ranks)
        self._alone, self._shared = self._call(1), self._call(ranks)

    def _call(self, ranks: int) -> SparseCall:
        shape = self._shape
        streams = (shape.conditioning, shape.tokens) if shape.conditioning else (shape.tokens,)
        return SparseCall(Gathered(streams, ranks), Settings(density=self._options.density), shape.layout, ClusterState())

    def run(self) -> int:
        """The status of the bench."""
        worst = self._check()
        if worst > ROUNDING[self._steps[0][0].dtype]:
            self._say(f"{self._ranks} GPUs do not give what one gives: relative error {worst:.1e}")
            return 1
        self._say(f"{self._ranks} GPUs give what one gives: relative error {worst:.1e}")
        methods = self._methods()
        samples = {name: [] for name in methods}
        for _ in range(self._options.rounds):
            for name, (run, everywhere) in methods.items():
                samples[name].append(self._time(run, everywhere))
        self._say_stages()
        if self._rank == 0:
            self._write({name: [median(column) for column in zip(*rounds)] for name, rounds in samples.items()}, worst)
        return 0

    def _check(self) -> float:
        """The largest relative error of any rank over two steps."""
        worst = torch.zeros(1, device=self._device)
        for step, parts in zip(self._steps, self._parts):
            here = self._engine.call(*parts, self._shared)
            whole = part(self._here(self._alone.attend, step), self._rank, self._ranks)
            error = (here - whole).float().norm() / whole.float().norm()
            worst = torch.maximum(worst, error.reshape(1))
        distributed.all_reduce(worst, distributed.ReduceOp.MAX)
        return worst.item()

    @staticmethod
    def _here(attention: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """Attention without other ranks."""
        return attention(*(tensor.transpose(1, 2) for tensor in tensors)).transpose(1, 2)

    def _methods(self) -> dict[str, tuple[Callable[[], object], bool]]:
        """What is timed, and whether all ranks take part."""
        step, parts, engine, state = self._steps[0], self._parts[0], self._engine, ClusterState()
        return {
            f"dense{ALONE}": (lambda: self._here(ulysses.dense, step), False),
            f"sparse{ALONE}": (lambda: self._here(self._alone.attend, step), False),
            "dense": (lambda: engine.call(*parts), True),
            "sparse": (lambda: engine.call(*parts, self._shared), True),
            OWN_HEADS: (lambda: self._sparse(self._own, state, self._memory), True),
            "all-to-alls": (lambda: engine.scatter(engine.gather(*parts)[0]), True),
        }

    def _time(self, run: Callable[[], object], everywhere: bool) -> list[float]:
        """Milliseconds of ``COLUMNS``, of the slowest rank, or of rank 0 where the others wait."""
        milliseconds = torch.zeros(len(COLUMNS), device=self._device)
        takes_part = everywhere or self._rank == 0
        self._wait()
        if takes_part:
            began = time.perf_counter()
            run()
            enqueued = time.perf_counter()
            self._finish()
            idle, host = time.perf_counter() - began, enqueued - began
        self._wait()
        if takes_part:
            began = time.perf_counter()
            for _ in range(CALLS_IN_A_ROW):
                run()
            self._finish()
            in_a_row = (time.perf_counter() - began) / CALLS_IN_A_ROW
            milliseconds += 1000 * torch.tensor([in_a_row, idle, host], device=self._device)
        distributed.all_reduce(milliseconds, distributed.ReduceOp.MAX)
        return milliseconds.tolist()

    def _sparse(self, tensors: Sequence[Tensor], state: ClusterState, memory: int | None, timer: StageTimer | None = None) -> None:
        """A call of one GPU alone."""
        heads_first, settings = (tensor.transpose(1, 2) for tensor in tensors), self._alone.settings
        sparse_attention(*heads_first, settings, layouts=self._shape.layout, state=state, memory_limit=memory, timer=timer)

    def _say_stages(self) -> None:
        """The milliseconds of every stage: of all heads, of a rank's, and of these as a call that no rank shares."""
        for name, tensors, memory in (
            ("all heads", self._steps[0], None),
            ("a rank's", self._own, self._memory),
            ("few heads", self._own, None),
        ):
            state, timer = ClusterState(), StageTimer()
            for number in range(WARM_UP + self._options.rounds):
                self._sparse(tensors, state, memory, timer if number >= WARM_UP else None)
            seconds = timer.seconds()
            stages = "  ".join(f"{stage} {1000 * value / self._options.rounds:.3f}" for stage, value in seconds.items())
            self._say(f"{name:12} {1000 * sum(seconds.values()) / self._options.rounds:9.3f} ms: {stages}")

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _wait(self) -> None:
        self._finish()
        distributed.barrier()
        self._finish()

    def _write(self, times: dict[str, list[float]], error: float) -> None:
        options, shape = self._options, self._shape
        common = {"shape": shape.name, "tokens": shape.length, "heads": shape.heads, "engine": self._engine.name}
        origin = results.provenance(self._device, options.commit)
        rows = []
        for name, milliseconds in times.items():
            method, alone, _ = name.partition(ALONE)
            row = {"method": method, "gpus": 1 if alone else self._ranks, "density": options.density if "sparse" in method else ""}
            one = times.get(f"{method}{ALONE}")
            row |= {column: f"{value:.3f}" for column, value in zip(COLUMNS, milliseconds)}
            row |= {"times_one_gpu": f"{one[0] / milliseconds[0]:.2f}" if one else ""}
            rows.append(row | {"relative_error": f"{error:.1e}"} | common | origin)
            figures = "  ".join(f"{column} {row[column]:>8}" for column in COLUMNS)
            self._say(f"{method:24} {row['gpus']} GPUs  {figures}  {row['times_one_gpu'] or '-':>5} times as fast as one GPU")
        path = options.results / results.file_name(f"distributed_{self._ranks}x_{options.engine}", self._device)
        results.write(path, rows)
        self._say(f"written to {path}")

    def _say(self, text: str) -> None:
        if self._rank == 0:
            print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
