"""What a run becomes in the CSV, and what rows say of a whole clip. Imports neither torch nor ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression, median
from typing import TYPE_CHECKING

from .spec import DENSE, DENSE_CUDNN, Spec

if TYPE_CHECKING:
    from .measure import Run
    from .methods import Calls

Row = Mapping[str, object]

CLIP_STEPS = 20
# Our first sparse step clusters from nothing, the second from the first: each has kernels of its own to compile.
WARMING = 2
SAME_SHARE = 0.02
# How the report begins to name the attention that DENSE_CUDNN measures.
CUDNN = "cuDNN"
# So many different shares tell how a step's time depends on its share.
LEAST_SHARES = 3


@dataclass(frozen=True)
class Steps:
    """The dense steps of a run, or the sparse ones.

    Attributes:
        seconds: of each, in order. The first two compile kernels and make room, so what is usual leaves them out.
        shares: exact share of each sparse step, 1 in dense ones; steps of one share should take the same.
    """

    seconds: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def sorted(cls, seconds: Sequence[float], sparse_steps: Mapping[int, float]) -> tuple[Steps, Steps]:
        """The dense ones, and those of ``sparse_steps`` with their exact shares."""
        places = range(len(seconds))
        dense = [step for step in places if step not in sparse_steps]
        sparse = [step for step in places if step in sparse_steps]
        return (
            cls(tuple(seconds[step] for step in dense), (1.0,) * len(dense)),
            cls(tuple(seconds[step] for step in sparse), tuple(sparse_steps[step] for step in sparse)),
        )

    def __len__(self):
        return len(self.seconds)

    @property
    def usual(self) -> float | None:
        """Median seconds, None without a step."""
        return median(self.seconds[WARMING:] or self.seconds[-1:]) if self.seconds else None

    def extra(self, place: int) -> float | None:
        """What one of the first steps took more than later ones of its share, or than these would with it; None where they do not tell."""
        later = list(zip(self.seconds, self.shares))[max(WARMING, place + 1) :] or list(zip(self.seconds, self.shares))[place + 1 :]
        same = [taken for taken, share in later if abs(share - self.shares[place]) <= SAME_SHARE]
        if same or len({share for _, share in later}) < LEAST_SHARES:
            return self.seconds[place] - median(same) if same else None
        line = linear_regression([share for _, share in later], [taken for taken, _ in later])
        return self.seconds[place] - (line.intercept + line.slope * self.shares[place])

    @property
    def total(self) -> float:
        """All of them, the first as long as usual."""
        return sum(self.seconds) - sum(self.extra(place) or 0.0 for place in range(min(WARMING, len(self))))

    @property
    def mean(self) -> float | None:
        """Seconds of a step where shares differ; the median where nothing tells what the first took on top. None without a step."""
        differ = max(self.shares, default=0) - min(self.shares, default=0) > SAME_SHARE
        is_known = all(self.extra(place) is not None for place in range(min(WARMING, len(self))))
        return self.total / len(self) if differ and is_known else self.usual


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
    def has_all_steps(self) -> bool:
        """Whether the steps are those of a clip."""
        return self.steps == len(self.dense) + len(self.sparse) == CLIP_STEPS

    @property
    def known(self) -> str:
        """How the figures of a clip are known."""
        if self.has_all_steps and self.layers == self.full:
            return "measured"
        fewer = f" of {self.layers} of {self.full} layers" if self.layers != self.full else ""
        return f"reckoned from {len(self.dense) + len(self.sparse)} steps{fewer}"

    def clip(self, dense_step: float | None) -> tuple[float, float] | None:
        """Seconds of the dense and of the sparse steps in a clip of 20, once kernels are compiled.

        Fewer layers are reckoned up block by block.

        Args:
            dense_step: seconds of a dense step of these layers elsewhere; None uses the run's own.

        Returns None where a kind of step is missing, or the dense steps were not those that the method's schedule says.
        """
        usual = self.dense.usual if len(self.dense) > 1 else dense_step or self.dense.usual
        if self.has_all_steps:
            count, dense, sparse = len(self.dense), self.dense.total, self.sparse.total
        else:
            # Steps run in order: where none was dense, the density falls from the first on.
            falls = bool(self.sparse.seconds) and not self.dense.seconds
            count = self.spec.dense_steps(CLIP_STEPS, falls)
            is_unlike = len(self.dense) != min(self.spec.dense_steps(self.steps, falls), len(self.dense) + len(self.sparse))
            if is_unlike or (count and usual is None) or (count < CLIP_STEPS and len(self.sparse) < 2):
                return None
            dense, sparse = count * (usual or 0.0), (CLIP_STEPS - count) * (self.sparse.mean or 0.0)
        if self.layers == self.full:
            return dense, sparse
        if usual is None and self.dense_layers:
            return None
        in_dense_blocks = (CLIP_STEPS - count) * self.dense_layers * (usual or 0.0) / self.layers
        sparse_blocks = (sparse - in_dense_blocks) * (self.full - self.dense_layers) / (self.layers - self.dense_layers)
        return dense * self.full / self.layers, in_dense_blocks + sparse_blocks


def dense_step_of(calls: Calls | None, seconds: Mapping[str, float]) -> float | None:
    """Seconds of a dense step on the attention that a run's dense calls used, from ``seconds`` of the dense methods; None if none did."""
    on_cudnn = [name.startswith(CUDNN) for name in calls.dense_attention] if calls else []
    if any(on_cudnn):
        return seconds.get(DENSE_CUDNN) if all(on_cudnn) else None
    return seconds.get(DENSE)


def figures(run: Run, calls: Calls | None, spec: Spec, steps: int, layers: tuple[int, int], dense_step: float | None) -> dict[str, object]:
    """The measured columns of a row; ``layers`` that ran, and of the full model."""
    dense, sparse = Steps.sorted(run.step_seconds, calls.sparse_steps if calls else {})
    evaluations = run.evaluations / max(len(run.step_seconds), 1)
    dense_layers = layers[0] - calls.sparse / (evaluations * len(sparse)) if sparse.seconds else 0.0
    sampled = Sampled(spec, steps, dense, sparse, *layers, dense_layers)
    clip = sampled.clip(dense_step)
    return {
        "dense_steps": len(dense),
        "sparse_steps": len(sparse),
        "dense_step_s": number(dense.usual),
        "sparse_step_s": number(sparse.usual),
        "first_dense_extra_s": number(dense.extra(0) if dense.seconds else None),
        "first_sparse_extra_s": number(sparse.extra(0) if sparse.seconds else None),
        "second_sparse_extra_s": number(sparse.extra(1) if len(sparse) > 1 else None),
        "run_s": number(run.seconds),
        "clip_dense_s": number(clip and clip[0]),
        "clip_sparse_s": number(clip and clip[1]),
        "clip_s": number(clip and sum(clip)),
        "clip": f"{CLIP_STEPS} steps, {sampled.known}" if clip else "",
        "peak_gib": number(run.peak_bytes and run.peak_bytes / 2**30),
        "finite": "" if run.finite is None else run.finite,
        "sparse_calls": calls.sparse if calls else "",
        "dense_calls": sum(calls.dense.values()) if calls else "",
        "dense_reasons": _counts(calls.dense) if calls else "",
        "dense_attention": _counts(calls.dense_attention) if calls else "",
        "precision": _precision(calls) if calls and spec.is_ours else "",
        "exact_share": number(calls and calls.exact_share),
        "state_mib": number(calls and calls.state_bytes and calls.state_bytes / 2**20),
        "step_seconds": " ".join(map(number, run.step_seconds)),
    }


def _precision(calls: Calls) -> str:
    """The precision of the sparse calls, or how many were in int8 where not all were alike."""
    if calls.int8 in (0, calls.sparse):
        return "int8" if calls.int8 else "full" if calls.sparse else ""
    return f"{calls.int8} of {calls.sparse} in int8"


def _counts(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{count} {name}" for name, count in counts.items())


def number(value: float | None) -> str:
    """Four digits, empty for None."""
    return "" if value is None else f"{value:.4g}"
