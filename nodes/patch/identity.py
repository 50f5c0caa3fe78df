"""Whether a calibration belongs to what is running."""

from __future__ import annotations

from ...kernels.calibration import ModelIdentity, Profile
from .sequence import find_architecture


class ProfileMismatch(ValueError):
    """A calibration of something else than what is running."""


def layer_count(model) -> int | None:
    """Transformer blocks of a diffusion model, None where its architecture is not known."""
    architecture = find_architecture(model)
    return architecture.layers(model) if architecture else None


def model_identity(model, heads: int, head_dim: int) -> ModelIdentity:
    """What a calibration remembers of a diffusion model; ``heads`` and ``head_dim`` are those of an attention call."""
    shapes = (tuple(weight.shape) for weight in getattr(model, "parameters", tuple)() if weight.ndim > 1)
    return ModelIdentity(
        architecture=type(model).__name__,
        layers=layer_count(model) or 0,
        heads=heads,
        head_dim=head_dim,
        input_shape=next(shapes, ()),
    )


def require_model(profile: Profile, model, shape: tuple[int, ...] | None = None) -> None:
    """Raise ProfileMismatch unless ``profile`` is of such a diffusion model; ``shape`` of a call is ``B, H, L, D``."""
    heads, head_dim = (profile.model.heads, profile.model.head_dim) if shape is None else (shape[1], shape[3])
    _require(profile.differences(model=model_identity(model, heads, head_dim)))


def require_grid(profile: Profile, grid: tuple[int, int, int], tokens: int) -> None:
    """Raise ProfileMismatch unless ``profile`` is of such a video."""
    _require(profile.differences(grid=grid, tokens=tokens))


def _require(differences: list[str]) -> None:
    if differences:
        raise ProfileMismatch(
            f"the calibration is of {' and '.join(differences)}: load the one of this model and this size, or calibrate again"
        )
