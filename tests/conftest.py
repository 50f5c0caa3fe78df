"""Import the pack the way ComfyUI does before any test module asks for it."""

import torch

from benchmarks import pack

pack.load()
# The tensors are small, and threads that wait for each other would fight with the ComfyUI server for the same cores.
torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """Say loudly what a run without a GPU leaves out."""
    if not torch.cuda.is_available():
        terminalreporter.write_line("NO CUDA GPU: tests/kernels/test_cuda.py did not run; nothing here ran on a GPU.", yellow=True)
