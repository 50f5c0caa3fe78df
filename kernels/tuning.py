"""Tile sizes per GPU architecture, chosen by measurement or, where none was at hand, by what compiles without spilling.

There is no autotuning at run time. Measured: sm_90 (docs/kernels.md). Compiled only: the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tiles:
    """How one kernel is cut: query rows and keys of a tile, warps, and stages of the software pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


# For Triton's interpreter, and for GPUs that are not in the tables (AMD among them).
INTERPRETED, SAFE = Tiles(32, 32, 4, 1), Tiles(64, 32, 4, 1)
# Products of float32 take twice the shared memory.
FLOAT32 = Tiles(64, 32, 8, 1)

# 64 rows, because a query group rarely fills a tile of 128: on an H200 44 ms against 60 ms at 126 tokens a group.
ATTEND = {
    80: Tiles(64, 64, 4, 3),
    86: Tiles(64, 64, 4, 2),
    89: Tiles(64, 64, 4, 2),
    90: Tiles(64, 64, 4, 3),
    100: Tiles(64, 32, 4, 3),
    120: Tiles(64, 64, 4, 2),
}
PROBE = {
    80: Tiles(64, 64, 8, 2),
    86: Tiles(64, 32, 8, 2),
    89: Tiles(64, 32, 8, 2),
    90: Tiles(64, 64, 4, 3),
    100: Tiles(64, 32, 8, 2),
    120: Tiles(64, 32, 8, 2),
}


def attend_tiles(device: torch.device, itemsize: int) -> Tiles:
    """Tiles of the attention kernel for inputs of ``itemsize`` bytes."""
    return _tiles(ATTEND, device, itemsize)


def probe_tiles(device: torch.device, itemsize: int) -> Tiles:
    """Tiles of the probe kernel, whose rows are mean queries."""
    return _tiles(PROBE, device, itemsize)


def _tiles(table: dict[int, Tiles], device: torch.device, itemsize: int) -> Tiles:
    if device.type == "cpu":
        return INTERPRETED
    if itemsize == 4:
        return FLOAT32
    major, minor = torch.cuda.get_device_capability(device)
    return SAFE if torch.version.hip else table.get(10 * major + minor, SAFE)
