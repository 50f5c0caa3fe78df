"""Tile sizes per GPU architecture, chosen by measurement or, where none was at hand, by what compiles without spilling.

There is no autotuning at run time. Measured: sm_90 (docs/kernels.md). Compiled only: the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

# How products of float32 are computed where float32 is what they must be worth.
PRECISE = "ieee" if torch.version.hip else "tf32x3"


@dataclass(frozen=True)
class Tiles:
    """How one kernel is cut: query rows and keys of a tile, warps, and stages of the software pipeline.

    Attributes:
        registers: most registers of a thread, so that more blocks share a multiprocessor; 0 leaves it to the compiler.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int = 0

    @property
    def launch(self) -> dict[str, int]:
        """Launch options."""
        return {"num_warps": self.warps} | ({"maxnreg": self.registers} if self.registers else {})


# For Triton's interpreter, and for GPUs that are not in the tables (AMD among them).
INTERPRETED, SAFE = Tiles(32, 32, 4, 1), Tiles(64, 32, 4, 1)
# Products of float32 take twice the shared memory.
FLOAT32 = Tiles(64, 32, 8, 1)

# One shape, or two: a query group is cut into tiles of the first, and rows that would fill no more than half of one go
# into a tile of the second. On an H200, a tall tile that shares its multiprocessor with another does 18 % more a row.
ATTEND = {
    80: (Tiles(64, 64, 4, 3),),
    86: (Tiles(64, 64, 4, 2),),
    89: (Tiles(64, 64, 4, 2),),
    90: (Tiles(128, 64, 8, 2, registers=128), Tiles(64, 64, 4, 3)),
    100: (Tiles(64, 32, 4, 3),),
    120: (Tiles(64, 64, 4, 2),),
}
INTERPRETED_ATTEND = (Tiles(64, 32, 4, 1), INTERPRETED)
PROBE = {
    80: Tiles(64, 64, 8, 2),
    86: Tiles(64, 32, 8, 2),
    89: Tiles(64, 32, 8, 2),
    90: Tiles(64, 64, 4, 3),
    100: Tiles(64, 32, 8, 2),
    120: Tiles(64, 32, 8, 2),
}


def attend_tiles(device: torch.device, itemsize: int) -> tuple[Tiles, ...]:
    """The one or two tile shapes of the attention kernel for inputs of ``itemsize`` bytes, the taller one first."""
    if device.type == "cpu":
        return INTERPRETED_ATTEND
    if itemsize == 4:
        return (FLOAT32,)
    return ATTEND.get(architecture(device), (SAFE,))


def probe_tiles(device: torch.device, itemsize: int) -> Tiles:
    """Tiles of the probe kernel, whose rows are mean queries."""
    if device.type == "cpu":
        return INTERPRETED
    if itemsize == 4:
        return FLOAT32
    return PROBE.get(architecture(device), SAFE)


@lru_cache
def architecture(device: torch.device) -> int:
    """The GPU's number in the tables; 0 for a CPU and for the GPUs of other makers."""
    if device.type == "cpu" or torch.version.hip:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
