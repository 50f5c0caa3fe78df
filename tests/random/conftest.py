"""Calls that are drawn at random: as many as a profile says, and the same ones in every run of the usual profile.

``RANDOM_TESTS=thorough`` draws many more, and other ones in every run; a failure is then shrunk, and printed with what repeats it.
``RANDOM_TESTS=few`` is what runs without it.
"""

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

FOLDER = Path(__file__).resolve().parent
sys.path += [str(FOLDER), str(FOLDER.parent / "nodes")]

ALWAYS = dict(deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
# The tests have examples of their own number in the usual profile: a call of an interpreted kernel takes a hundred times as long.
settings.register_profile("few", derandomize=True, **ALWAYS)
settings.register_profile("thorough", max_examples=1000, **ALWAYS)
settings.load_profile(os.environ.get("RANDOM_TESTS", "few"))
