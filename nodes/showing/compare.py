"""Two clips beside each other: how close, and how fast each was made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recording.record import RunRecord
from ..recording.summary import status, warnings
from ..recording.words import counted, duration

GAP = 8


@dataclass(frozen=True)
class Closeness:
    """Peak signal-to-noise ratio of a clip against another: ``-10 log10(mean((a - b) ** 2))`` in dB, for values from 0 to 1.

    Attributes:
        psnr: over all pixels, channels and frames; infinite for equal clips, None where values are not finite.
        worst: the lowest of a single frame; worst_frame: its number, from 1.
        frames: how many there are.
    """

    psnr: float | None
    worst: float | None
    worst_frame: int
    frames: int

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> Closeness:
        """Compare images ``[F, H, W, C]``; ValueError unless both are of one size."""
        if first.shape != second.shape:
            raise ValueError(f"dense is {_size(first)} and sparse is {_size(second)}: compare clips of one size and length")
        # Frame by frame, so that no second clip is held.
        errors = torch.stack([(one.double() - other.double()).square().mean().cpu() for one, other in zip(first, second)])
        if not errors.isfinite().all():
            return cls(None, None, 0, len(errors))
        place = int(errors.argmax())
        return cls(_decibels(float(errors.mean())), _decibels(float(errors[place])), place + 1, len(errors))

    def __str__(self):
        if self.psnr is None:
            return "PSNR: not finite, one of the clips has NaN or infinite pixels"
        if math.isinf(self.psnr):
            return f"Identical in all pixels ({counted(self.frames, 'frame')})"
        single = f"; worst frame {self.worst_frame}, {self.worst:.1f} dB" if self.frames > 1 else ""
        return f"PSNR {self.psnr:.1f} dB against dense ({counted(self.frames, 'frame')}{single})"


def side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """Images ``[F, H, W, C]`` with a gap between them, the first on the left."""
    gap = first.new_zeros(*first.shape[:2], GAP, first.shape[3])
    return torch.cat((first, gap, second.to(first)), dim=2)


def comparison(closeness: Closeness, dense: RunRecord | None, sparse: RunRecord | None) -> tuple[str, str]:
    """One line, and all in words; runs are None where they are not known."""
    lines = [str(closeness), ""]
    faster = None
    if dense is not None and sparse is not None and dense.completed and sparse.completed:
        times = [run.seconds - run.loading for run in (dense, sparse)]
        faster = _faster(*times) if min(times) > 0 else None
        lines.append(f"Dense: {duration(times[0])}, sparse: {duration(times[1])}" + (f": sparse {faster}" if faster else ""))
        if sparse.times.once >= 0.1:
            lines.append(
                f"  of that {duration(sparse.times.once)} for first calls, in which kernels compile: run once more with another seed"
            )
        lines.append("Time in the sampler from the first step on; loading the model is left out.")
        if dense.sparse_calls:
            lines.append("WARNING: the dense run has sparse calls. Set dense_first_steps of its SVG-EAR Sparse Attention to 10000.")
        if dense.steps != sparse.steps:
            lines.append(f"WARNING: the dense run has {counted(dense.steps, 'step')} and the sparse one {sparse.steps}.")
    else:
        lines.append("Times: connect MODEL and LATENT of both samplers; both MODELs come from a SVG-EAR Sparse Attention.")
    if sparse is not None:
        lines += [f"WARNING: {text}" for text in warnings(sparse)] or [f"Sparse run: {status(sparse)}"]
    return f"{lines[0].split(' against')[0]}{f', {faster}' if faster else ''}", "\n".join(lines)


def _faster(dense: float, sparse: float) -> str:
    return f"{dense / sparse:.2f}x as fast" if dense >= sparse else f"{sparse / dense:.2f}x as slow"


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error else math.inf


def _size(images: Tensor) -> str:
    frames, height, width = images.shape[:3]
    return f"{width} x {height}, {counted(frames, 'frame')}"
