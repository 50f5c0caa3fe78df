"""Import the pack the way ComfyUI does before any test module asks for it."""

import torch

from benchmarks import pack

pack.load()
# The tensors are small, and threads that wait for each other would fight with the ComfyUI server for the same cores.
torch.set_num_threads(1)
