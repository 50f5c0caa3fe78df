"""Calls that compute the blocks of a calibration, which is made here from the inputs of the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from .. import pack
from .inputs import HEAD_DIM, Inputs, Shape
from .methods import Method, Settings, our_method

pack.load()
from svg_ear.kernels.calibration import Calibration, ModelIdentity, Profile  # noqa: E402
from svg_ear.kernels.settings import CALIBRATED  # noqa: E402

COMPENSATED = f"{CALIBRATED}, compensated"
# The one attention call, and the noise level of the one step, of a profile.
SITE, SIGMA = (0, 0), 1.0


def calibrated_methods(inputs: Inputs, shape: Shape, settings: Settings, densities: Sequence[float]) -> list[Method]:
    """For each density ``sparse_attention`` with the blocks of most attention: skipped ones dropped, and compensated.

    Every call looks its blocks up, as one of the node does; finding them is not timed.

    Args:
        settings: of the calls, but for their method.
    """
    found = []
    for density in densities:
        blocks = partial(profile_of(inputs, shape, density).routing, SITE, SIGMA, inputs.values.device)
        for name, compensate in ((CALIBRATED, False), (COMPENSATED, True)):
            own = replace(settings, method=CALIBRATED, compensate=compensate, density=density)
            found.append(our_method(inputs, shape, own, name, blocks))
    return found


def profile_of(inputs: Inputs, shape: Shape, density: float) -> Profile:
    """What a calibration on the first step alone finds."""
    q, k, v = inputs.step(0)
    calibration = Calibration(density)
    run = calibration.start((SIGMA, 0.0), shape.grid)
    run.observe(SITE, 0, q, k, v, layouts=[shape.layout])
    run.finish()
    return calibration.profile(ModelIdentity(shape.name, 1, shape.heads, HEAD_DIM, (shape.heads * HEAD_DIM,)), q.device)
