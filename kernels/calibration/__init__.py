"""Calibrated sparsity (CalibAtt, arXiv 2603.05503): found once from dense runs, then applied without any search.

Tensors in, a :class:`Profile` out; no knowledge of ComfyUI. ``docs/calibration.md`` has the method from end to end.
"""

from .budgets import Density, Thresholds
from .collect import Calibration, CalibrationRun
from .file import ProfileError, read_profile, write_profile
from .profile import ModelIdentity, Profile

__all__ = [
    "Calibration",
    "CalibrationRun",
    "Density",
    "ModelIdentity",
    "Profile",
    "ProfileError",
    "Thresholds",
    "read_profile",
    "write_profile",
]
