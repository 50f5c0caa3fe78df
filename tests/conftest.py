"""Import the pack the way ComfyUI does before any test module asks for it."""

import os
import sys

import left_out
import pytest
import torch

from benchmarks import pack

if not torch.cuda.is_available():
    # Triton reads this when it is imported and again when a kernel is defined.
    assert "triton" not in sys.modules, "a plugin imported triton before the tests could choose its interpreter"
    os.environ["TRITON_INTERPRET"] = "1"
pack.load()
# The tensors are small, and threads that wait for each other would fight with the ComfyUI server for the same cores.
torch.set_num_threads(1)


# Several workers are no gain where the slowest folder is all that is left.
MOST_WORKERS = 4


def pytest_configure(config):
    # Once for every loop in every interpreted kernel.
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning:triton")
    config.pluginmanager.register(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """How many workers ``-n auto`` is: as many as cores; none beside this process for one core, or for a GPU, which they would share."""
    cores = os.cpu_count() or 1
    return 0 if cores == 1 or torch.cuda.is_available() else min(cores, MOST_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The tests of a file share a worker, as they share what is slow to make; those with a ComfyUI share one server and begin first."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::", 1)[0]
            return left_out.COMFYUI_TESTS if file.startswith(left_out.COMFYUI_TESTS) else file

    return Files(config, log)
