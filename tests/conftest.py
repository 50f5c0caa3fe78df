"""Import the pack the way ComfyUI does before any test module asks for it."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.extend((str(TESTS.parent), str(TESTS)))

import torch  # noqa: E402
from benchmarks import pack  # noqa: E402

pack.load()
# The tensors are small, and threads that wait for each other would fight with the ComfyUI server for the same cores.
torch.set_num_threads(1)
