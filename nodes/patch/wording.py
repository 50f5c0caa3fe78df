"""The settings of a run in words."""

from __future__ import annotations

from ...kernels.settings import CALIBRATED
from ..recording.words import Text, counted
from .options import AUTO, AUTOMATIC, CUSTOM, Options

# Steps that models take which were distilled to few, and which take no guidance.
FEW_STEPS = range(3, 9)
FEW_STEP = "few-step"


def advice(options: Options, steps: int) -> Text | None:
    """What another setting would be for, in a denoising of ``steps`` steps without guidance; None where nothing is to be said."""
    if steps not in FEW_STEPS or options.preset in (FEW_STEP, CUSTOM):
        return None
    return Text(
        "{steps} without guidance, as models take that are made for few steps (lightning, turbo): preset few-step is for those, with as "
        "much exact in the last step as in the first.",
        steps=counted(steps, "step"),
    )


def in_words(options: Options, steps: int) -> str:
    """What counts for a sampler of ``steps`` steps, by the names of the inputs."""
    settings = options.settings()
    parts = [f"preset {options.preset}"]
    if options.preset == CUSTOM:
        parts.append(f"method {settings.method}")
    if settings.method != CALIBRATED:
        parts.append(f"density {settings.density:.3g}" if settings.budget == "density" else f"top_p {settings.top_p:.3g}")
    first = options.first_density()
    if first is not None:
        automatic = " (automatic)" if options.warm_up_density == AUTOMATIC else ""
        parts.append(f"warm_up_density {first:.3g}{automatic}")
    automatic = " (automatic)" if options.dense_first_steps == AUTOMATIC else ""
    parts.append(f"dense_first_steps {options.warm_up_steps(steps)}{automatic}")
    schedule = options.schedule
    if schedule.dense_last_steps:
        parts.append(f"dense_last_steps {schedule.dense_last_steps}")
    if (schedule.start_percent, schedule.end_percent) != (0.0, 1.0):
        parts.append(f"start_percent {schedule.start_percent:.3g}, end_percent {schedule.end_percent:.3g}")
    if options.precision != AUTO:
        parts.append(f"precision {options.precision}")
    parts.append(f"dense_blocks {options.dense_blocks.strip() or 'none'}")
    return ", ".join(parts)
