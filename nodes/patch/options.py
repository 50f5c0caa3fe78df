"""What the user set on the SVG-EAR node, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from ...kernels import Settings
from ...kernels.settings import CALIBRATED
from ..recording.selection import AUTOMATIC as EVENLY
from ..recording.selection import Selection
from ..recording.trace import MapChoice

PRESETS = {
    "quality": Settings(density=0.2),
    "balanced": Settings(density=0.1),
    "fast": Settings(density=0.05),
    "few-step": Settings(density=0.3),
}
CUSTOM = "custom"
AUTOMATIC = -1


@dataclass(frozen=True)
class Options:
    """The widgets of the SVG-EAR node under their input ids, with their defaults.

    Raises ValueError for a value outside its range; the message says what is accepted.
    """

    preset: str = "balanced"
    density: float = 0.0
    method: str = Settings.method
    budget: str = Settings.budget
    top_p: float = Settings.top_p
    min_share: float = Settings.min_share
    query_clusters: int = Settings.query_clusters
    key_clusters: int = Settings.key_clusters
    kmeans_first: int = Settings.kmeans_first
    kmeans_next: int = Settings.kmeans_next
    kmeans_candidates: int = Settings.kmeans_candidates
    recluster_every: int = Settings.recluster_every
    weighted_centroids: bool = Settings.weighted_centroids
    key_metric: bool = Settings.key_metric
    probe_score: str = Settings.probe_score
    start_percent: float = 0.0
    end_percent: float = 1.0
    dense_first_steps: int = AUTOMATIC
    dense_last_steps: int = 0
    dense_blocks: str = "0"
    min_tokens: int = 24576
    memory_limit_mb: int = 0
    strict: bool = False
    verbose: bool = False
    record_layers: str = EVENLY
    record_steps: str = EVENLY
    record_heads: str = EVENLY
    record_limit_mb: int = 64
    compensate: bool = Settings.compensate

    def __post_init__(self):
        if self.preset not in (*PRESETS, CUSTOM):
            raise ValueError(f"preset is {self.preset!r}; choose one of {', '.join((*PRESETS, CUSTOM))}")
        if self.preset == CUSTOM and self.method != CALIBRATED and self.budget == "density" and self.density == 0:
            raise ValueError(
                "density is 0, and the custom preset has no density of its own; "
                "set density to the share of pairs to compute, such as 0.1, or set budget to top-p"
            )
        if not 0.0 <= self.start_percent <= self.end_percent <= 1.0:
            raise ValueError(
                f"start_percent is {self.start_percent} and end_percent is {self.end_percent}; "
                "both must lie between 0 and 1, and start_percent must not be the larger one"
            )
        self.dense_layers()
        self.recorded()
        self.settings()

    def settings(self) -> Settings:
        """How attention is routed: the preset's settings, or with ``custom`` those of the widgets."""
        if self.preset == CUSTOM:
            return Settings(**{entry.name: getattr(self, entry.name) for entry in fields(Settings)})
        preset = PRESETS[self.preset]
        return preset if self.density == 0 else replace(preset, density=self.density)

    def check_profile(self, is_connected: bool) -> None:
        """Raise ValueError unless a calibration is connected exactly where the method is ``calibrated``."""
        is_used = self.settings().method == CALIBRATED
        if is_used and not is_connected:
            raise ValueError(
                "method is calibrated, and no calibration is connected: connect SVG-EAR Load Calibration to profile, "
                "or choose another method"
            )
        if is_connected and not is_used:
            raise ValueError(
                f"a calibration is connected to profile, but preset is {self.preset} and method is {self.method}: "
                "set preset to custom and method to calibrated, or disconnect it"
            )

    def dense_layers(self) -> Selection:
        """The layers that stay dense."""
        return Selection.parse(self.dense_blocks, "dense_blocks")

    def recorded(self) -> MapChoice:
        """Which calls have their routing recorded."""
        chosen = (Selection.parse_or_automatic(getattr(self, name), name) for name in ("record_layers", "record_steps", "record_heads"))
        return MapChoice(*chosen, dense_layers=self.dense_layers(), limit=self.record_limit_mb * 2**20)

    def warm_up_steps(self, steps: int) -> int:
        """Dense steps at the start of the denoising, for a sampler of ``steps`` steps."""
        if self.dense_first_steps != AUTOMATIC:
            return self.dense_first_steps
        return 0 if self.preset == "few-step" else max(1, round(steps / 5))

    def memory_limit(self) -> int | None:
        """Bytes, or None where the kernels choose."""
        return self.memory_limit_mb * 2**20 or None
