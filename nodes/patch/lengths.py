"""From which length on the calls of a run are sparse, and from which in int8."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...kernels.settings import CALIBRATED, FULL, INT8
from ...kernels.tuning import architecture, use
from ..recording.words import Text
from .break_even import at_heads
from .findings import Findings
from .findings_file import found_on
from .options import AUTO, AUTOMATIC, Options
from .schedule import falling

# Where nothing was found on the GPU. Measured on Hopper; docs/kernels.md has the reasons for the others.
CAUTIOUS = {80: 24576, 86: 24576, 89: 24576, 90: 24576, 100: 32768, 120: 24576}
# Of a GPU that no table knows, AMD among them: its tiles were never run.
CAUTIOUS_ELSEWHERE = 49152
# On a CPU sparse attention is for trying out, and its answer need not depend on a GPU.
CAUTIOUS_ON_CPU = 24576
# Pairs of heads and video tokens from which on precision auto takes int8, by architecture; where there are none it never does.
INT8_FROM: dict[int, tuple[tuple[int, float], ...]] = {90: ((1, 16384),)}
# Calls of other head dimensions were not measured in int8, nor float32 ones.
INT8_HEAD_DIM = 128
# More tokens than any video has.
LONGEST = 2**40


@dataclass(frozen=True)
class Least:
    """Tokens from which on a call is sparse, and in a few words where the number comes from; no words for one that the user set."""

    tokens: int
    origin: str = ""


class Lengths:
    """Least tokens of the calls of one run, by device and heads.

    At the first call on a device it reads what SVG-EAR GPU Check found there, once, and has the kernels take the tiles that suit it, so
    that nothing changes within a run.
    """

    def __init__(self, options: Options):
        self._options = options
        self._found: dict[torch.device, Findings | None] = {}
        self._least: dict[tuple[torch.device, int], Least] = {}

    def least(self, device: torch.device, heads: int) -> Least:
        """For calls of ``heads`` heads on ``device``."""
        key = (device, heads)
        if key not in self._least:
            found = self.prepare(device)
            given = self._options.min_tokens
            self._least[key] = self._automatic(found, device, heads) if given == AUTOMATIC else Least(given)
        return self._least[key]

    def precision(self, device: torch.device, heads: int, tokens: int, measured: bool = True) -> str:
        """What sparse calls of ``heads`` heads and ``tokens`` video tokens on ``device`` multiply queries and keys in.

        ``measured`` tells whether int8 was measured in calls of their kind, see :func:`measured_in_int8`.
        """
        if self._options.precision != AUTO:
            return self._options.precision
        return INT8 if measured and tokens >= int8_tokens(device, heads) else FULL

    def precisions(self, device: torch.device, heads: int, measured: bool = True) -> tuple[str, ...]:
        """Those that sparse calls of any length have."""
        lengths = self.least(device, heads).tokens, LONGEST
        return tuple(dict.fromkeys(self.precision(device, heads, tokens, measured) for tokens in lengths))

    def prepare(self, device: torch.device) -> Findings | None:
        """What was found on ``device``, whose kernels take the tiles that suit it from now on."""
        if device not in self._found:
            found = self._found[device] = found_on(device)
            if device.type == "cuda":
                use(device, *((found.attend, found.probe) if found else ()))
        return self._found[device]

    def _automatic(self, found: Findings | None, device: torch.device, heads: int) -> Least:
        cautious = cautious_tokens(device)
        if found is None or not found.heads:
            return Least(cautious, Text("a cautious number for this device; SVG-EAR GPU Check finds a better one"))
        return Least(found.least_tokens(heads, self._density(found), cautious), Text("found by SVG-EAR GPU Check"))

    def _density(self, found: Findings) -> float:
        """The share of pairs in the middle of the denoising; where it depends on the content, the most that was measured."""
        settings, profile = self._options.settings(), self._options.profile
        if settings.method == CALIBRATED:
            return profile.density
        if settings.budget != "density":
            return found.densities[-1]
        first = self._options.first_density()
        return settings.density if first is None else falling(first, settings.density, 0.5)


def measured_in_int8(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether int8 was measured in calls of this dtype and head dimension."""
    return dtype != torch.float32 and head_dim == INT8_HEAD_DIM


def int8_tokens(device: torch.device, heads: int) -> float:
    """Video tokens from which on int8 pays on ``device`` in calls of ``heads`` heads; infinity where that is not known."""
    known = INT8_FROM.get(architecture(device), ())
    return at_heads(known, heads) if known else math.inf


def cautious_tokens(device: torch.device) -> int:
    """Tokens from which on sparse attention should pay on a GPU that was not checked."""
    return CAUTIOUS_ON_CPU if device.type == "cpu" else CAUTIOUS.get(architecture(device), CAUTIOUS_ELSEWHERE)
