"""Shares by step and layer, and what a clip takes with them.

A clip's time is reckoned for Wan 14B at 720p: calls at the rates of the speed bench, and the rest of each step, which is the same for all.
"""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from .. import pack, results

pack.load()
from svg_ear.nodes.patch.options import Options  # noqa: E402

RATES = results.FOLDER / "speed_nvidia-h200.csv"
SHAPE, LAYERS = "wan-720p", 40
CUDNN, FLASH = "SDPA cuDNN", "SDPA flash"
# The part of a dense step that is not video attention, over the video attention of that step on cuDNN: an H100 took 11.8 s for a step
# and 0.2117 for each of its 40 calls.
REST = 11.8 / (LAYERS * 0.2117) - 1
# Follows the name of a plan where both branches of guidance take the clusters of the conditional one.
SHARED = ", clusters of cond"
# Models of at most so many steps get the preset few-step.
FEW = 8
# Plans of more different shares in a row are told by their ends.
LISTED = 6


@dataclass(frozen=True)
class Plan:
    """Which part of the pairs is exact; 1 is dense attention.

    Attributes:
        shares: of each step.
        first_layer: least share of layer 0.
    """

    shares: tuple[float, ...]
    first_layer: float = 1.0

    def share(self, layer: int, step: int) -> float:
        """Of one call."""
        return max(self.shares[step], self.first_layer) if layer == 0 else self.shares[step]

    @property
    def dense_steps(self) -> int:
        """Steps without any sparse call."""
        return sum(share == 1 for share in self.shares)

    def __str__(self):
        runs = [(share, len(list(same))) for share, same in groupby(self.shares)]
        words = [f"{count} dense" if share == 1 else f"{count} x {share:g}" for share, count in runs]
        falling = [share for share, _ in runs if share < 1]
        if len(falling) > LISTED:
            words = [*words[: len(runs) - len(falling)], f"{falling[0]:.3g} falling to {falling[-1]:.3g}"]
        return ", ".join(words + ([] if self.first_layer == 1 else [f"layer 0 at least {self.first_layer:g}"]))

    @classmethod
    def after(cls, first: tuple[float, ...], then: float, steps: int, first_layer: float = 1.0) -> Plan:
        """``first`` shares, and ``then`` in the rest of ``steps``."""
        return cls((*first, *[then] * (steps - len(first)))[:steps], first_layer)

    @classmethod
    def falling(cls, highest: float, lowest: float, steps: int) -> Plan:
        """From ``highest`` in the first step to ``lowest`` in the last, by the same factor each."""
        factor = (lowest / highest) ** (1 / max(steps - 1, 1))
        return cls(tuple(round(highest * factor**step, 6) for step in range(steps)))

    @classmethod
    def of_preset(cls, name: str, steps: int) -> Plan:
        """What the node does with preset ``name`` in a sampler run of ``steps`` steps, with its other inputs as they are."""
        options = Options(preset=name)
        first, last = options.first_density(), options.settings().density
        if first is None:
            return cls.after((1,) * options.warm_up_steps(steps), last, steps)
        return cls.falling(first, last, steps)


def plans_before(steps: int) -> dict[str, Plan]:
    """What the first presets did: the first fifth of the steps dense, or none."""
    dense = (1,) * max(1, round(steps / 5))
    presets = {name: Plan.after(dense, share, steps) for name, share in (("quality", 0.2), ("balanced", 0.1), ("fast", 0.05))}
    return presets | {"few-step": Plan.after((), 0.3, steps)}


def plans_to_compare(steps: int) -> list[Plan]:
    """Those of the presets and of those before, and others that show where the front lies; each once."""
    names = plans_before(steps) if steps > FEW else ("few-step",)
    presets = [plan for name in names for plan in (Plan.of_preset(name, steps), plans_before(steps)[name])]
    return list({str(plan): plan for plan in presets + (_tried(steps) if steps > FEW else _tried_with_few(steps))}.values())


def _tried(steps: int) -> list[Plan]:
    fifth = max(1, round(steps / 5))
    constant = [((share,) * fifth, then) for share, then in ((0.2, 0.1), (0.25, 0.1), (0.3, 0.1), (0.3, 0.15), (0.3, 0.2), (0.5, 0.12))]
    dense = [((1,) * count, then) for count, then in ((fifth // 2, 0.12), (fifth // 2, 0.15), (fifth, 0.12), (fifth, 0.15), (0, 0.15))]
    ends = ((0.2, 0.06), (0.3, 0.05), (0.3, 0.07), (0.35, 0.08), (0.4, 0.08), (0.5, 0.12), (0.6, 0.06), (0.7, 0.12))
    falling = [Plan.falling(*pair, steps) for pair in ends]
    return [Plan.after(first, then, steps) for first, then in constant + dense] + falling


def _tried_with_few(steps: int) -> list[Plan]:
    first = [((), 0.2), ((1,), 0.15), ((1,), 0.2), ((0.4,) * 2, 0.2), ((0.5,) * 2, 0.2), ((0.5,), 0.25)]
    return [Plan.after(shares, then, steps) for shares, then in first] + [Plan.falling(0.5, 0.15, steps)]


def call_time(share: float, dense: str = CUDNN, branches_sharing: float = 0.0) -> float:
    """Time of a call over one of dense attention on cuDNN, between the measured shares by a straight line.

    Args:
        share: of the pairs; 1 is dense.
        dense: what computes a dense call.
        branches_sharing: part of the batch that takes the clusters of another part.
    """
    rates = _rates()
    if share == 1:
        return rates.dense[dense]
    points = rates.sparse
    place = min(max(bisect([point[0] for point in points], share), 1), len(points) - 1)
    (left, low), (right, high) = points[place - 1], points[place]
    return low + (high - low) * (share - left) / (right - left) - branches_sharing * rates.clustering


def clip_time(plan: Plan, dense: str = CUDNN, branches_sharing: float = 0.0) -> float:
    """Time of a clip over that of the dense clip on cuDNN."""
    calls = sum(call_time(plan.share(layer, step), dense, branches_sharing) for step in range(len(plan.shares)) for layer in range(LAYERS))
    steps = len(plan.shares) * LAYERS
    return (calls + steps * REST) / (steps * (1 + REST))


@dataclass(frozen=True)
class _Rates:
    dense: dict[str, float]
    sparse: list[tuple[float, float]]
    clustering: float


@cache
def _rates() -> _Rates:
    rows = [row for row in results.read(RATES) if (row["shape"], row["data"], row["part"]) == (SHAPE, "structured", "attention")]
    times = {row["method"]: float(row["ms"]) for row in rows}
    ours = [row for row in rows if row["method"] == "svg-ear" and row.get("precision") != "int8"]
    unit = times[CUDNN]
    return _Rates(
        dense={name: times[name] / unit for name in (CUDNN, FLASH)},
        sparse=sorted((round(float(row["exact_share"]), 3), float(row["ms"]) / unit) for row in ours),
        clustering=sum(float(row["cluster_ms"]) for row in ours) / len(ours) / unit,
    )
