"""Import the pack the way ComfyUI does before any test module asks for it."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.extend((str(TESTS.parent), str(TESTS)))

from benchmarks import pack  # noqa: E402

pack.load()
