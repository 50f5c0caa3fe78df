"""What to measure, as the command line says it. Imports neither torch nor ComfyUI."""

from __future__ import annotations

from dataclasses import dataclass

DENSE, DENSE_CUDNN, DENSE_INT8, SOL = "dense", "dense-cudnn", "dense-int8", "sol"
PRESETS = ("quality", "balanced", "fast", "few-step", "custom")
NAMES = (DENSE, DENSE_CUDNN, DENSE_INT8, SOL, *PRESETS)
# Before the name of a preset: the pack of --against.
AGAINST = "against/"
FULL, INT8 = "balanced:precision=full", "balanced:precision=int8"
DEFAULT = (DENSE, DENSE_CUDNN, DENSE_INT8, SOL, FULL, INT8, "fast")
AUTOMATIC = -1


@dataclass(frozen=True)
class Spec:
    """One method.

    Attributes:
        text: as it was given, what rows call it.
        name: of :data:`NAMES`.
        settings: inputs of the node, or arguments of ``sol``, by name, as text.
        against: whether the pack of ``--against`` runs it.
    """

    text: str
    name: str
    settings: tuple[tuple[str, str], ...] = ()
    against: bool = False

    @classmethod
    def parse(cls, text: str) -> Spec:
        """``name``, ``name:setting=value,setting=value``, or ``against/name...``; in values + stands for a comma.

        Raises ValueError for a name that is not known and for a setting without a value.
        """
        against, rest = text.startswith(AGAINST), text.removeprefix(AGAINST)
        name, _, settings = rest.partition(":")
        pairs = tuple(tuple(pair.split("=", 1)) for pair in settings.split(",") if pair)
        if name not in (PRESETS if against else NAMES) or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"{text!r} is no method; one is {', '.join(NAMES)}, or {AGAINST}PRESET, then perhaps :density=0.15")
        return cls(text, name, tuple((key, value.replace("+", ",")) for key, value in pairs), against)

    @property
    def is_dense(self) -> bool:
        """Whether every step is dense."""
        return self.name in (DENSE, DENSE_CUDNN, DENSE_INT8)

    @property
    def is_ours(self) -> bool:
        """Whether a pack of ours runs it."""
        return self.name in PRESETS

    def dense_steps(self, steps: int, falls: bool = False) -> int:
        """First steps of ``steps`` that this method's schedule keeps dense.

        As many as were asked for, else none where the density ``falls`` from the first step on, else a fifth.
        """
        asked = int(dict(self.settings).get("dense_first_steps", AUTOMATIC))
        if self.is_dense:
            return steps
        if asked != AUTOMATIC:
            return min(asked, steps)
        return 0 if falls else max(1, round(steps / 5))
