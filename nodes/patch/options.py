"""What the user set on the SVG-EAR nodes, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from ...kernels import Settings
from ...kernels.calibration import Profile
from ...kernels.settings import CALIBRATED, PRECISIONS
from ..recording.selection import AUTOMATIC as EVENLY
from ..recording.selection import Selection
from ..recording.trace import MapChoice

PRESETS = {
    "quality": Settings(density=0.1),
    "balanced": Settings(density=0.06),
    "fast": Settings(density=0.06),
    "few-step": Settings(density=0.3),
}
# Density in the first step, from where it falls to that of the preset.
WARM_UP = {"quality": 0.6, "balanced": 0.35, "fast": 0.25, "few-step": 0.3}
CUSTOM = "custom"
AUTOMATIC = -1
AUTO = "auto"
# What a value must be, by the type of its default.
KINDS = {bool: (bool, "on or off"), int: (int, "a whole number"), float: ((float, int), "a number"), str: (str, "text")}


def require_kinds(options: type, values: dict) -> None:
    """Raise ValueError for one of ``values`` that is of another kind than the default of that name: links carry anything."""
    for entry in fields(options):
        kind, words = KINDS.get(type(entry.default), (object, ""))
        if entry.name in values and not isinstance(values[entry.name], kind):
            raise ValueError(f"{entry.name} is {values[entry.name]!r}; it must be {words}, such as {entry.default!r}")


def require_least(**numbers: tuple[int, int]) -> None:
    """Raise ValueError for a number below the least one beside it."""
    for name, (given, least) in numbers.items():
        if given < least:
            raise ValueError(f"{name} is {given}; it must be at least {least}")


@dataclass(frozen=True)
class CustomSettings:
    """How attention is routed with preset ``custom``; ``profile`` says what method ``calibrated`` computes."""

    settings: Settings
    profile: Profile | None = None

    def __post_init__(self):
        if (self.settings.method == CALIBRATED) != (self.profile is not None):
            raise ValueError(f"method is {self.settings.method}: connect SVG-EAR Load Calibration to settings for method {CALIBRATED} only")

    @classmethod
    def of(cls, profile: Profile | None = None, **widgets) -> CustomSettings:
        """``widgets`` are fields of :class:`Settings`. Raises ValueError for a value outside its range."""
        require_kinds(Settings, widgets)
        return cls(Settings(**widgets), profile)


@dataclass(frozen=True)
class ScheduleOptions:
    """The widgets of SVG-EAR Schedule. Raises ValueError for a value outside its range."""

    start_percent: float = 0.0
    end_percent: float = 1.0
    dense_last_steps: int = 0

    def __post_init__(self):
        require_kinds(ScheduleOptions, vars(self))
        require_least(dense_last_steps=(self.dense_last_steps, 0))
        if not 0.0 <= self.start_percent <= self.end_percent <= 1.0:
            raise ValueError(
                f"start_percent is {self.start_percent} and end_percent is {self.end_percent}; "
                "both must lie between 0 and 1, and start_percent must not be the larger one"
            )


@dataclass(frozen=True)
class RecordingOptions:
    """The widgets of SVG-EAR Record. Raises ValueError for text that is not understood."""

    layers: str = EVENLY
    steps: str = EVENLY
    heads: str = EVENLY
    limit_mb: int = 64

    def __post_init__(self):
        require_kinds(RecordingOptions, vars(self))
        require_least(limit_mb=(self.limit_mb, 0))
        self.chosen()

    def chosen(self) -> tuple[Selection | None, ...]:
        """Layers, steps and heads; None chooses a few."""
        return tuple(Selection.parse_or_automatic(getattr(self, name), name) for name in ("layers", "steps", "heads"))


@dataclass(frozen=True)
class Options:
    """The widgets of SVG-EAR Sparse Attention under their input ids, with their defaults, and what is connected to it.

    Raises ValueError for a value outside its range, and for values that do not go together.
    """

    preset: str = "balanced"
    density: float = 0.0
    dense_first_steps: int = AUTOMATIC
    dense_blocks: str = "0"
    min_tokens: int = AUTOMATIC
    memory_limit_mb: int = 0
    strict: bool = False
    warm_up_density: float = float(AUTOMATIC)
    precision: str = AUTO
    custom: CustomSettings | None = None
    schedule: ScheduleOptions = ScheduleOptions()
    recording: RecordingOptions = RecordingOptions()

    def __post_init__(self):
        require_kinds(Options, vars(self))
        if self.preset not in (*PRESETS, CUSTOM):
            raise ValueError(f"preset is {self.preset!r}; choose one of {', '.join((*PRESETS, CUSTOM))}")
        if self.precision not in (AUTO, *PRECISIONS):
            raise ValueError(f"precision is {self.precision!r}; choose one of {', '.join((AUTO, *PRECISIONS))}")
        require_least(
            dense_first_steps=(self.dense_first_steps, AUTOMATIC),
            min_tokens=(self.min_tokens, AUTOMATIC),
            memory_limit_mb=(self.memory_limit_mb, 0),
        )
        if self.warm_up_density != AUTOMATIC and not 0 <= self.warm_up_density <= 1:
            raise ValueError(f"warm_up_density is {self.warm_up_density}; it must lie between 0 and 1, or be {AUTOMATIC}")
        self._check_custom()
        self.dense_layers()
        self.settings()

    def _check_custom(self):
        if self.preset == CUSTOM and self.custom is None:
            raise ValueError(
                f"preset is {CUSTOM}, and nothing is connected to settings: connect SVG-EAR Custom Settings or SVG-EAR Load Calibration, "
                f"or choose one of {', '.join(PRESETS)}"
            )
        if self.preset != CUSTOM and self.custom is not None:
            raise ValueError(
                f"preset is {self.preset}, and something is connected to settings, which counts only with preset {CUSTOM}: "
                f"set preset to {CUSTOM}, or disconnect it"
            )
        if self.custom is None:
            return
        settings = self.custom.settings
        if settings.method == CALIBRATED or settings.budget != "density":
            spent = "a calibration says what is computed" if settings.method == CALIBRATED else f"budget {settings.budget} has no density"
            for name, unset in (("density", 0), ("warm_up_density", AUTOMATIC)):
                if getattr(self, name) not in (0, unset):
                    raise ValueError(f"{name} is {getattr(self, name)}, but {spent}: set {name} to {unset}, or connect other settings")

    @property
    def profile(self) -> Profile | None:
        """The calibration to follow."""
        return self.custom.profile if self.custom else None

    def settings(self) -> Settings:
        """How attention is routed: the preset's settings, or with ``custom`` those that are connected."""
        settings = self.custom.settings if self.custom else PRESETS[self.preset]
        return settings if self.density == 0 else replace(settings, density=self.density)

    def dense_layers(self) -> Selection:
        """The layers that stay dense."""
        return Selection.parse(self.dense_blocks, "dense_blocks")

    def recorded(self) -> MapChoice:
        """Which calls have their routing recorded."""
        return MapChoice(*self.recording.chosen(), dense_layers=self.dense_layers(), limit=self.recording.limit_mb * 2**20)

    def require_layers(self, count: int) -> None:
        """Raise ValueError where a layer is named that a model of ``count`` layers does not have."""
        self.dense_layers().require(count, "dense_blocks")
        layers, _, _ = self.recording.chosen()
        if layers is not None:
            layers.require(count, "layers of SVG-EAR Record")

    def warm_up_steps(self, steps: int) -> int:
        """Dense steps at the start of the denoising, for a sampler of ``steps`` steps: none by itself where the density falls."""
        if self.dense_first_steps != AUTOMATIC:
            return self.dense_first_steps
        return 0 if self.preset == "few-step" or self.first_density() is not None else max(1, round(steps / 5))

    def first_density(self) -> float | None:
        """Density in the first step of the denoising, from where it falls to that of the settings; None where it is the same throughout."""
        first = WARM_UP.get(self.preset, 0.0) if self.warm_up_density == AUTOMATIC else self.warm_up_density
        return max(first, self.settings().density) if first else None

    def memory_limit(self) -> int | None:
        """Bytes, or None where the kernels choose."""
        return self.memory_limit_mb * 2**20 or None
