"""Tile sizes per GPU architecture, chosen by measurement or, where none was at hand, by what compiles without spilling.

There is no autotuning at run time. Measured: sm_90 (docs/kernels.md). Compiled only: the others. Whoever has measured a card may have
it run with one of the other choices, see :func:`use`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

# How products of float32 are computed where float32 is what they must be worth.
PRECISE = "ieee" if torch.version.hip else "tf32x3"


def launched(**options: int) -> dict[str, int]:
    """Launch options and sizes of a kernel, with what holds for all of them.

    Products and sums contract into one operation, which newer versions of Triton leave off. On AMD no loop has more than one stage:
    Triton's pipeliner has crashed on RDNA 4 from two on.
    """
    single = {"num_stages": 1} | ({"STAGES": 1} if "STAGES" in options else {}) if torch.version.hip else {}
    return options | single | {"enable_fp_fusion": True}


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
        return launched(num_warps=self.warps, **({"maxnreg": self.registers} if self.registers else {}))


# For Triton's interpreter, and for GPUs that are not in the tables.
INTERPRETED, SAFE = Tiles(32, 32, 4, 1), Tiles(64, 32, 4, 1)
# AMD, as number 0 of the tables: spills nothing but in the attention kernel of full precision on RDNA 3.
AMD = Tiles(64, 32, 8, 1)
# Products of float32 take twice the shared memory.
FLOAT32 = Tiles(64, 32, 8, 1)

# One shape, or two: a query group is cut into tiles of the first, and rows that would fill no more than half of one go
# into a tile of the second. On an H200, a tall tile that shares its multiprocessor with another does 18 % more a row.
ATTEND = {
    # Half the keys: of what has as many rows, and spills none on CDNA 3 and RDNA 4, this spills the fewest registers on RDNA 3.
    0: (Tiles(64, 16, 8, 1),),
    80: (Tiles(64, 64, 4, 3),),
    86: (Tiles(64, 64, 4, 2),),
    89: (Tiles(64, 64, 4, 2),),
    90: (Tiles(128, 64, 8, 2, registers=128), Tiles(64, 64, 4, 3)),
    100: (Tiles(64, 32, 4, 3),),
    120: (Tiles(64, 64, 4, 2),),
}
INTERPRETED_ATTEND = (Tiles(64, 32, 4, 1), INTERPRETED)
PROBE = {
    0: AMD,
    80: Tiles(64, 64, 8, 2),
    86: Tiles(64, 32, 8, 2),
    89: Tiles(64, 32, 8, 2),
    90: Tiles(64, 64, 4, 3),
    100: Tiles(64, 32, 8, 2),
    120: Tiles(64, 32, 8, 2),
}

# Where keys are int8. Not among what a card is measured with.
ATTEND_INT8 = {
    0: (AMD,),
    80: (Tiles(64, 64, 8, 2),),
    86: (Tiles(64, 64, 8, 2),),
    89: (Tiles(64, 64, 8, 2),),
    90: (Tiles(128, 64, 4, 2), Tiles(64, 64, 4, 3)),
    100: (Tiles(64, 64, 8, 2),),
    120: (Tiles(64, 64, 8, 2),),
}
PROBE_INT8 = PROBE
# For the few groups that are computed again.
AGAIN = Tiles(32, 32, 4, 1)

# The other choices, for whoever measures: they compile like those above, and none is better on every card.
ATTEND_CHOICES = {
    0: ((AMD,), (Tiles(32, 32, 4, 1),), (Tiles(64, 64, 8, 1),)),
    80: ((Tiles(64, 32, 4, 3),), (Tiles(64, 64, 4, 2),), (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 3))),
    86: ((Tiles(64, 32, 4, 2),), (Tiles(64, 32, 4, 3),), (Tiles(128, 32, 8, 2), Tiles(64, 64, 4, 2))),
    89: ((Tiles(64, 32, 4, 2),), (Tiles(64, 32, 4, 3),), (Tiles(128, 32, 8, 2), Tiles(64, 64, 4, 2))),
    90: ((Tiles(64, 64, 4, 3),), (Tiles(64, 64, 4, 2),), (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3))),
    100: ((Tiles(64, 32, 4, 2),), (Tiles(128, 32, 8, 3), Tiles(64, 32, 4, 3))),
    120: ((Tiles(64, 32, 4, 2),), (Tiles(64, 32, 4, 3),), (Tiles(128, 32, 8, 2), Tiles(64, 64, 4, 2))),
}
PROBE_CHOICES = {
    0: (SAFE, Tiles(32, 32, 4, 1), Tiles(64, 64, 8, 1)),
    80: (Tiles(64, 64, 4, 3), Tiles(64, 32, 4, 3), Tiles(128, 64, 8, 2)),
    86: (Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3), Tiles(64, 64, 8, 1)),
    89: (Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3), Tiles(64, 64, 8, 1)),
    90: (Tiles(64, 64, 8, 2), Tiles(128, 64, 8, 2), Tiles(64, 32, 4, 3)),
    100: (Tiles(64, 32, 4, 2), Tiles(32, 64, 4, 2), Tiles(64, 32, 4, 3)),
    120: (Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 3), Tiles(64, 64, 8, 1)),
}
SAFE_CHOICES = (Tiles(64, 32, 8, 1), Tiles(32, 32, 4, 1), Tiles(64, 64, 4, 1))

# Chosen rows of the GPUs that have any.
_IN_USE: dict[torch.device, tuple[tuple[Tiles, ...], Tiles]] = {}


def attend_choices(device: torch.device) -> tuple[tuple[Tiles, ...], ...]:
    """Every choice of tile shapes of the attention kernel for half precision, that of the table first."""
    number = architecture(device)
    return (ATTEND.get(number, (SAFE,)), *ATTEND_CHOICES.get(number, tuple((tiles,) for tiles in SAFE_CHOICES)))


def probe_choices(device: torch.device) -> tuple[Tiles, ...]:
    """Every choice of tiles of the probe kernel for half precision, that of the table first."""
    number = architecture(device)
    return (PROBE.get(number, SAFE), *PROBE_CHOICES.get(number, SAFE_CHOICES))


def use(device: torch.device, attend: tuple[Tiles, ...] | None = None, probe: Tiles | None = None) -> None:
    """Run half precision on a GPU with these tiles from the next call on; None takes those of the table.

    Not for use between the calls of one sampler run: other tiles add up in another order. Raises ValueError for tiles that are not
    among the choices of the GPU, which were compiled for it.
    """
    for kernel, given, choices in (("attend", attend, attend_choices(device)), ("probe", probe, probe_choices(device))):
        if given is not None and given not in choices:
            raise ValueError(f"{kernel} tiles are {given}; choose one of {choices}")
    _IN_USE[device] = (attend or attend_choices(device)[0], probe or probe_choices(device)[0])


def attend_tiles(device: torch.device, itemsize: int, int8: bool = False) -> tuple[Tiles, ...]:
    """The one or two tile shapes of the attention kernel for inputs of ``itemsize`` bytes, the taller one first.

    With ``int8`` those for keys in int8.
    """
    if device.type == "cpu":
        return INTERPRETED_ATTEND
    if itemsize == 4:
        return (FLOAT32,)
    if int8:
        return ATTEND_INT8.get(architecture(device), (SAFE,))
    return _IN_USE[device][0] if device in _IN_USE else attend_choices(device)[0]


def probe_tiles(device: torch.device, itemsize: int, int8: bool = False) -> Tiles:
    """Tiles of the probe kernel, whose rows are mean queries; with ``int8`` those for keys in int8."""
    if device.type == "cpu":
        return INTERPRETED
    if itemsize == 4:
        return FLOAT32
    if int8:
        return PROBE_INT8.get(architecture(device), SAFE)
    return _IN_USE[device][1] if device in _IN_USE else probe_choices(device)[0]


def attend_again_tiles(device: torch.device) -> Tiles:
    """Tiles of the attention kernel for groups that are computed again."""
    return INTERPRETED if device.type == "cpu" else AGAIN


@lru_cache
def architecture(device: torch.device) -> int:
    """The GPU's number in the tables; 0 for a CPU and for the GPUs of AMD."""
    if device.type == "cpu" or torch.version.hip:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
