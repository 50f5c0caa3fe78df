"""Import the pack the way ComfyUI does before any test module asks for it."""

import os
import sys

import torch

from benchmarks import pack

if not torch.cuda.is_available():
    # Triton reads this when it is imported and again when a kernel is defined.
    assert "triton" not in sys.modules, "a plugin imported triton before the tests could choose its interpreter"
    os.environ["TRITON_INTERPRET"] = "1"
pack.load()
# The tensors are small, and threads that wait for each other would fight with the ComfyUI server for the same cores.
torch.set_num_threads(1)


def pytest_configure(config):
    # Once for every loop in every interpreted kernel.
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning:triton")


def pytest_terminal_summary(terminalreporter):
    """Say loudly what a run without a GPU leaves out."""
    if not torch.cuda.is_available():
        left_out = "tests/kernels/test_cuda.py and tests/nodes/patch/test_dense_cuda.py"
        terminalreporter.write_line(f"NO CUDA GPU: {left_out} did not run; nothing here ran on a GPU.", yellow=True)
