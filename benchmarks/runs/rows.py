"""What a run becomes in the CSV, and what rows say of a whole clip. Imports neither torch nor ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from .spec import Spec

if TYPE_CHECKING:
    from .measure import Run
    from .methods import Calls

Row = Mapping[str, object]

CLIP_STEPS = 20


@dataclass(frozen=True)
class Steps:
    """The dense steps of a run, or the sparse ones.

    Attributes:
        seconds: of each, in order. The first of a kind compiles kernels or makes room, so what is usual leaves it out.
    """

    seconds: tuple[float, ...]

    @classmethod
    def sorted(cls, seconds: Sequence[float], sparse_steps: frozenset[int]) -> tuple[Steps, Steps]:
        """The dense ones, and those of ``sparse_steps``."""
        return (
            cls(tuple(taken for step, taken in enumerate(seconds) if step not in sparse_steps)),
            cls(tuple(taken for step, taken in enumerate(seconds) if step in sparse_steps)),
        )

    def __len__(self):
        return len(self.seconds)

    @property
    def usual(self) -> float | None:
        """Median seconds, None without a step."""
        return median(self.seconds[1:] or self.seconds) if self.seconds else None

    @property
    def first_extra(self) -> float | None:
        """What the first took more than usual, None where there is no other."""
        return self.seconds[0] - self.usual if len(self) > 1 else None

    @property
    def total(self) -> float:
        """All of them, the first as long as usual."""
        return sum(self.seconds) - (self.first_extra or 0.0)


@dataclass(frozen=True)
class Sampled:
    """A run as far as a whole clip is reckoned from it.

    Attributes:
        spec, steps: the method, and the steps of its schedule.
        dense, sparse: steps that were made.
        layers, full: blocks of the model that ran, and of the model as published.
        dense_layers: blocks that stay dense in a sparse step.
    """

    spec: Spec
    steps: int
    dense: Steps
    sparse: Steps
    layers: int
    full: int
    dense_layers: float

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to reckon."""
        return self.steps == len(self.dense) + len(self.sparse) == CLIP_STEPS and self.layers == self.full

    @property
    def known(self) -> str:
        """How the figures of a clip are known."""
        fewer = f" of {self.layers} of {self.full} layers" if self.layers != self.full else ""
        return "measured" if self.is_whole else f"reckoned from {len(self.dense) + len(self.sparse)} steps{fewer}"

    def clip(self, dense_step: float | None) -> tuple[float, float] | None:
        """Seconds of the dense and of the sparse steps in a clip of 20, once kernels are compiled.

        Fewer layers are reckoned up block by block.

        Args:
            dense_step: seconds of a dense step of these layers elsewhere; None uses the run's own.

        Returns None where a kind of step is missing, or the dense steps were not those that the method's schedule says.
        """
        if self.is_whole:
            return self.dense.total, self.sparse.total
        count = self.spec.dense_steps(CLIP_STEPS)
        dense = self.dense.usual if len(self.dense) > 1 else dense_step or self.dense.usual
        if count == CLIP_STEPS:
            return None if dense is None else (count * dense * self.full / self.layers, 0.0)
        if len(self.dense) != self.spec.dense_steps(self.steps) or len(self.sparse) < 2 or (dense is None and (count or self.dense_layers)):
            return None
        block = (dense or 0.0) / self.layers
        sparse_block = (self.sparse.usual - self.dense_layers * block) / (self.layers - self.dense_layers)
        sparse = self.dense_layers * block + (self.full - self.dense_layers) * sparse_block
        return count * block * self.full, (CLIP_STEPS - count) * sparse


def figures(run: Run, calls: Calls | None, spec: Spec, steps: int, layers: tuple[int, int], dense_step: float | None) -> dict[str, object]:
    """The measured columns of a row; ``layers`` that ran, and of the full model."""
    dense, sparse = Steps.sorted(run.step_seconds, calls.sparse_steps if calls else frozenset())
    evaluations = run.evaluations / max(len(run.step_seconds), 1)
    dense_layers = layers[0] - calls.sparse / (evaluations * len(sparse)) if sparse.seconds else 0.0
    sampled = Sampled(spec, steps, dense, sparse, *layers, dense_layers)
    clip = sampled.clip(dense_step)
    return {
        "dense_steps": len(dense),
        "sparse_steps": len(sparse),
        "dense_step_s": number(dense.usual),
        "sparse_step_s": number(sparse.usual),
        "first_dense_extra_s": number(dense.first_extra),
        "first_sparse_extra_s": number(sparse.first_extra),
        "run_s": number(run.seconds),
        "clip_dense_s": number(clip and clip[0]),
        "clip_sparse_s": number(clip and clip[1]),
        "clip_s": number(clip and sum(clip)),
        "clip": f"{CLIP_STEPS} steps, {sampled.known}" if clip else "",
        "peak_gib": number(run.peak_bytes and run.peak_bytes / 2**30),
        "finite": "" if run.finite is None else run.finite,
        "sparse_calls": calls.sparse if calls else "",
        "dense_calls": sum(calls.dense.values()) if calls else "",
        "dense_reasons": "; ".join(f"{count} {reason}" for reason, count in calls.dense.items()) if calls else "",
        "exact_share": number(calls and calls.exact_share),
        "state_mib": number(calls and calls.state_bytes and calls.state_bytes / 2**20),
        "step_seconds": " ".join(map(number, run.step_seconds)),
    }


def number(value: float | None) -> str:
    """Four digits, empty for None."""
    return "" if value is None else f"{value:.4g}"
