"""Two clips beside each other: how close, and how fast each was made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recording.record import RunRecord
from ..recording.summary import status, warned, warnings
from ..recording.words import Joined, Text, counted, duration

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

    def in_short(self) -> Text:
        """The figure alone."""
        if self.psnr is None:
            return Text("PSNR: not finite, one of the clips has NaN or infinite pixels")
        return Text("Identical in all pixels") if math.isinf(self.psnr) else Text("PSNR {psnr} dB", psnr=f"{self.psnr:.1f}")

    def in_words(self) -> Text:
        """The figure, and of how many frames, and the worst of them."""
        frames = counted(self.frames, "frame")
        if self.psnr is None or math.isinf(self.psnr):
            return self.in_short() if self.psnr is None else Text("{short} ({frames})", short=self.in_short(), frames=frames)
        if self.frames > 1:
            worst = {"worst": self.worst_frame, "psnr": f"{self.worst:.1f}"}
            frames = Text("{frames}; worst frame {worst}, {psnr} dB", frames=frames, **worst)
        return Text("{short} against dense ({frames})", short=self.in_short(), frames=frames)


def side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """Images ``[F, H, W, C]`` with a gap between them, the first on the left."""
    gap = first.new_zeros(*first.shape[:2], GAP, first.shape[3])
    return torch.cat((first, gap, second.to(first)), dim=2)


def comparison(closeness: Closeness, dense: RunRecord | None, sparse: RunRecord | None) -> tuple[str, str]:
    """One line, and all in words; runs are None where they are not known."""
    status_line, lines = closeness.in_short(), [closeness.in_words(), ""]
    if dense is not None and sparse is not None and dense.completed and sparse.completed:
        times = [run.seconds - run.loading for run in (dense, sparse)]
        lines.append(Text("Dense: {dense}, sparse: {sparse}", dense=duration(times[0]), sparse=duration(times[1])))
        if min(times) > 0:
            faster = _faster(*times)
            lines[-1] = Text("{times}: sparse {faster}", times=lines[-1], faster=faster)
            status_line = Joined(", ", (status_line, faster))
        if sparse.times.once >= 0.1:
            once = duration(sparse.times.once)
            lines.append(Text("  of that {time} for first calls, in which kernels compile: run once more with another seed", time=once))
        lines.append(Text("Time in the sampler from the first step on; loading the model is left out."))
        if dense.sparse_calls:
            lines.append(warned(Text("the dense run has sparse calls. Set dense_first_steps of its SVG-EAR Sparse Attention to 10000.")))
        if dense.steps != sparse.steps:
            steps = {"dense": counted(dense.steps, "step"), "sparse": sparse.steps}
            lines.append(warned(Text("the dense run has {dense} and the sparse one {sparse}.", **steps)))
    else:
        lines.append(Text("Times: connect MODEL and LATENT of both samplers; both MODELs come from a SVG-EAR Sparse Attention."))
    if sparse is not None:
        lines += [warned(text) for text in warnings(sparse)] or [Text("Sparse run: {status}", status=status(sparse))]
    return status_line, Joined("\n", lines)


def _faster(dense: float, sparse: float) -> Text:
    if dense >= sparse:
        return Text("{times}x as fast", times=f"{dense / sparse:.2f}")
    return Text("{times}x as slow", times=f"{sparse / dense:.2f}")


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error else math.inf


def _size(images: Tensor) -> str:
    frames, height, width = images.shape[:3]
    return f"{width} x {height}, {counted(frames, 'frame')}"
