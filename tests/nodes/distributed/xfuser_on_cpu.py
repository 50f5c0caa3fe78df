"""xFuser from PyPI on CPUs, with gloo between the processes.

xFuser 0.7.0 refuses to be imported without an accelerator, and leaves out what makes its groups. What is replaced here is that alone: the
question what device there is, its pipelines (which nothing here uses), and the groups that yunchang makes on a GPU. The all-to-alls, the
registry and ``USP`` are xFuser's own.
"""

import sys
from importlib.metadata import distribution
from types import ModuleType, SimpleNamespace

import torch

VERSION = "0.7.0"
# Their __init__ import every pipeline; their modules are found as ever.
BARE = ("xfuser", "xfuser.core", "xfuser.model_executor", "xfuser.model_executor.layers")


def load():
    """Import xFuser's sequence parallelism; returns its module."""
    # The one device without CUDA that xFuser takes, for which it chooses gloo.
    torch.backends.mps.is_available = lambda: True
    folder = distribution("xfuser").locate_file("xfuser")
    for name in BARE:
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    from xfuser.model_executor.layers import usp

    return usp


def join(rank: int, ranks: int, meeting: str) -> None:
    """Make this process one of ``ranks`` that share every sequence; they meet through the file ``meeting``."""
    from xfuser.core.distributed import parallel_state, runtime_state
    from xfuser.core.distributed.attention_backend import AttentionBackendType
    from xfuser.model_executor.layers import usp

    parallel_state.init_distributed_environment(ranks, rank, f"file://{meeting}", rank, "gloo")
    parallel_state.initialize_model_parallel(sequence_parallel_degree=ranks, ulysses_degree=ranks, backend="gloo")
    group = parallel_state.get_sp_group()
    group.ulysses_world_size, group.ulysses_rank = ranks, rank
    usp.PROCESS_GROUP = SimpleNamespace(ULYSSES_PG=group.device_group, RING_PG=None)
    runtime_state._RUNTIME = SimpleNamespace(
        attention_backend=AttentionBackendType.SDPA_MATH, fp8_comms=None, runtime_config=SimpleNamespace(use_spargeattn_head_balance=False)
    )
