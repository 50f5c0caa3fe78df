"""What a warm call asks of the host: milliseconds to enqueue it, and the kernels that it makes the GPU run."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import DeviceType

from .bars import HOST_MILLISECONDS, KERNELS, Bar
from .inputs import Shape, make_inputs

# Those of Wan 1.3B at 480p, 5B at 720p, 14B at 480p (alone and as both branches of guidance, clustered for each and for both) and 720p, and
# of HunyuanVideo; for each batch item the one whose clusters it takes.
CASES = (
    ((0,), Shape("wan-1.3b-480p", 12, (21, 30, 52))),
    ((0,), Shape("wan-5b-720p", 24, (31, 22, 40))),
    ((0,), Shape("wan-480p", 40, (21, 30, 52))),
    ((0, 1), Shape("wan-480p", 40, (21, 30, 52))),
    ((0, 0), Shape("wan-480p", 40, (21, 30, 52))),
    ((0,), Shape("wan-720p", 40, (21, 45, 80))),
    ((0,), Shape("hunyuan-720p", 24, (33, 45, 80), conditioning=256, heads_first=True)),
)
WARM_UP, CALLS = 4, 20


def measure_enqueueing(
    packages: dict[str, ModuleType], settings: dict, kind: str, device: torch.device, say: Callable[[str], None]
) -> list[dict]:
    """One row for each case and each of the ``packages``, the ``kernels`` of checkouts by their commits.

    Calls are timed stage by stage, as in ComfyUI.
    ``host_ms`` is the median time until a call returns when the GPU was idle before it, ``busy_ms`` what its kernels take,
    ``call_ms`` what a call takes when many are made in a row.
    """
    rows = []
    for owners, shape in CASES:
        # As many steps at once as the batch has items.
        inputs = make_inputs(shape, kind, device, steps=len(owners))
        tensors = (torch.cat(inputs.queries), torch.cat(inputs.keys), inputs.values.expand(len(owners), -1, -1, -1))
        for commit, package in packages.items():
            call = _warm_call(package, tensors, shape, owners, settings)
            rows.append(_measured(call, shape, owners, commit, device, say))
        # Before those of the next case are made.
        del inputs, tensors, call
    return rows


def _measured(
    call: Callable[[], object], shape: Shape, owners: tuple[int, ...], commit: str, device: torch.device, say: Callable[[str], None]
) -> dict:
    """The row of one warm call."""
    waits = [_enqueue(call, device) * 1000 for _ in range(CALLS)]
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize(device)
    in_a_row = (time.perf_counter() - began) * 1000 / CALLS
    kernels = _kernels(call, device)
    row = {
        "shape": shape.name,
        "batch": len(owners),
        "clustered": len(set(owners)),
        "heads": shape.heads,
        "tokens": shape.tokens,
        "conditioning": shape.conditioning,
        "host_ms": f"{median(waits):.3g}",
        "least_host_ms": f"{min(waits):.3g}",
        "kernels": len(kernels),
        "busy_ms": f"{sum(kernels) / 1000:.4g}",
        "call_ms": f"{in_a_row:.4g}",
        "extra_mib": f"{_extra_bytes(call, device) / 2**20:.4g}",
        "commit": commit,
    }
    say("  ".join(f"{name} {value}" for name, value in row.items()))
    return row


def enqueueing_bars(rows: list[dict]) -> list[Bar]:
    """At every shape little time of the host, and few kernels, of the first of the packages that were measured."""
    return [
        Bar(f"{row['shape']} x {row['batch']}, {row['clustered']} clustered: {what}", float(row[column]), limit, False)
        for row in rows
        if row["commit"] == rows[0]["commit"]
        for what, column, limit in (("milliseconds of the host", "host_ms", HOST_MILLISECONDS), ("kernels", "kernels", KERNELS))
    ]


def _warm_call(
    package: ModuleType, tensors: tuple[Tensor, Tensor, Tensor], shape: Shape, owners: tuple[int, ...], settings: dict
) -> Callable[[], object]:
    """A call with these q, k, v, after those that compile and cluster for the first time."""
    state, timer = package.ClusterState(), package.StageTimer()
    layout = package.SequenceLayout(shape.layout.video, shape.layout.conditioning)
    how = package.Settings(**settings)

    def call() -> object:
        return package.sparse_attention(*tensors, how, layouts=layout, state=state, owners=owners, timer=timer)

    for _ in range(WARM_UP):
        call()
    return call


def _enqueue(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the host for one call on an idle GPU."""
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _kernels(call: Callable[[], object], device: torch.device) -> list[float]:
    """Microseconds of every kernel and copy of one call."""
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize(device)
    return [event.device_time for event in profile.events() if event.device_type == DeviceType.CUDA]


def _extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Bytes at the peak of a call beyond what was allocated before, its output included."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
