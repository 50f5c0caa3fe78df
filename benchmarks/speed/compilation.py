"""What the first call costs: Triton compiles, and must not do so again for a new length."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from .bars import FIRST_CALL_SECONDS, Bar
from .inputs import Shape, make_inputs
from .measure import compilations
from .methods import Settings, SparseCalls

# Video grids of the same model: shorter, longer, and one whose length is odd.
OTHER_GRIDS = ((21, 30, 52), (25, 45, 80), (13, 33, 43))


def measure_compilation(shape: Shape, settings: Settings, kind: str, device: torch.device, say: Callable[[str], None]) -> list[dict]:
    """One row per length: seconds of the first call and of a later one, and the kernels that Triton specialised.

    Must be the first to use Triton in its process, which then keeps its cache in a folder of its own.
    """
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for one in (shape, *(replace(shape, name=f"{shape.name} {grid}", grid=grid) for grid in OTHER_GRIDS)):
            calls = SparseCalls(make_inputs(one, kind, device), one, settings)
            with compilations() as names:
                seconds = [_seconds(calls, device) for _ in range(4)]
            rows.append(
                {
                    "shape": one.name,
                    "heads": one.heads,
                    "tokens": one.tokens,
                    "first_call_s": f"{seconds[0]:.3g}",
                    "second_call_s": f"{seconds[1]:.3g}",
                    "later_call_s": f"{min(seconds[2:]):.3g}",
                    "kernels_specialised": len(names),
                    "kernels": " ".join(sorted(set(names))),
                }
            )
            say("  ".join(f"{name} {value}" for name, value in rows[-1].items()))
    return rows


def compilation_bars(rows: list[dict]) -> list[Bar]:
    """The first call within its seconds, and nothing specialised for the lengths after it."""
    again = sum(row["kernels_specialised"] for row in rows[1:])
    return [
        Bar("seconds of the first call", float(rows[0]["first_call_s"]), FIRST_CALL_SECONDS, False),
        Bar(f"kernels specialised again for {len(rows) - 1} other lengths", again, 0, False),
    ]


def _seconds(calls: SparseCalls, device: torch.device) -> float:
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    calls.once()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began
