"""What is launched: how much in a warm call, kernels of Triton and operations of torch that are kernels of their own; with what options."""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from kernel_inputs import clustered
from svg_ear.kernels import BlockRouting, ClusterState, SequenceLayout, Settings, sparse_attention
from svg_ear.kernels.calibration import Calibration
from svg_ear.kernels.hollow import HollowCall
from torch.utils._python_dispatch import TorchDispatchMode
from triton_cases import GPU

pytest.importorskip("triton")
from svg_ear.kernels.triton_stages.launches import recorded_launches
from triton.runtime import interpreter
from triton.runtime.jit import KernelInterface

STAGES = "svg_ear.kernels.triton_stages"
# As many chunks of heads as the largest models need.
CHUNKS = 4
MOST = 80


class Launches(TorchDispatchMode):
    """Names of the kernels that the block would launch on a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "empty" not in func.__name__:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))

    def counting(self, run):
        """``run`` of an interpreted kernel, as one launch whatever the interpreter does with tensors."""

        def launch(kernel, *args, **kwargs):
            self.names.append(kernel.fn.__name__)
            before = len(self.names)
            run(kernel, *args, **kwargs)
            del self.names[before:]

        return launch


@pytest.mark.skipif(GPU, reason="test_cuda.py counts kernels")
@pytest.mark.parametrize(("text", "batch", "precision"), [(0, 1, "full"), (20, 1, "full"), (0, 2, "full"), (20, 1, "int8")])
def test_a_warm_call_makes_few_launches(text, batch, precision):
    inputs = clustered(70 + text, batch=batch, heads=CHUNKS // batch, dtype=torch.float16)
    settings, state = Settings(query_clusters=5, key_clusters=34, kmeans_first=1, precision=precision), ClusterState()
    layout = SequenceLayout(range(text, 70 + text))

    def call(state, implementation):
        sparse_attention(*inputs, settings, state=state, layouts=layout, memory_limit=1, implementation=implementation)

    # What the torch stages leave is what a first call leaves, and takes the interpreter no time.
    call(state, "torch")
    warm = ClusterState(calls=1, items=dict(state.items))
    launches = Launches()
    with patch.object(interpreter.GridExecutor, "__call__", launches.counting(interpreter.GridExecutor.__call__)), launches:
        call(warm, "triton")
    assert len(launches.names) <= MOST, launches.names


def entry_kernels():
    """Every kernel of the stages that is launched, by its module and name: those that no kernel uses."""
    names = [f"{STAGES}.{file.stem}" for file in Path(import_module(STAGES).__file__).parent.glob("[a-z]*.py")]
    kernels = {
        (name, kernel.fn.__name__): inspect.getsource(kernel.fn)
        for name in names
        for kernel in (getattr(value, "jitted", value) for value in vars(import_module(name)).values())
        if isinstance(kernel, KernelInterface) and kernel.fn.__module__ == name
    }
    used = {node.id for text in kernels.values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    return {(module, name) for module, name in kernels if name not in used}


@pytest.mark.skipif(GPU, reason="the same launches are found without one")
def test_every_kernel_is_launched_with_the_options_of_all():
    q, k, v = clustered(100, heads=1, dtype=torch.float16)
    layout = SequenceLayout(range(6, 100), (range(6),))
    launches = []
    for options in ({}, {"budget": "top-p"}, {"method": "svg2"}, {"weighted_centroids": False}, {"recluster_every": 2}):
        settings = Settings(density=0.3, query_clusters=3, key_clusters=40, **options)
        launches += HollowCall.like(q, k, v, settings, layout, None, None).launches()
    # Only products that take another dtype than float16 may have to be computed again.
    wide = (tensor.float() for tensor in (q, k, v))
    settings = Settings(density=0.3, query_clusters=3, key_clusters=40, precision="int8")
    launches += HollowCall.like(*wide, settings, layout, None, None).launches()
    blocks = BlockRouting(torch.eye(2, dtype=torch.bool)[None], 64)
    launches += HollowCall.like(q, k, v, Settings(method="calibrated"), layout, blocks, None).launches()
    run = Calibration(shapes=("raster",)).start((1.0, 0.5), (1, 2, 47))
    with recorded_launches() as calibrating:
        run.observe((0, 0), 0, q, k, v, layouts=[layout], implementation="triton")
    launches += calibrating
    assert all(dict(launch.options).get("enable_fp_fusion") is True and "num_warps" in dict(launch.options) for launch in launches)
    assert {(launch.kernel.fn.__module__, launch.kernel.fn.__name__) for launch in launches} == entry_kernels()
