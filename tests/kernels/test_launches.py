"""How much a warm call asks of the host: kernels of Triton, and operations of torch that are kernels of their own."""

from unittest.mock import patch

import pytest
import torch
from kernel_inputs import clustered
from svg_ear.kernels import ClusterState, SequenceLayout, Settings, sparse_attention
from torch.utils._python_dispatch import TorchDispatchMode
from triton_cases import GPU

interpreter = pytest.importorskip("triton.runtime.interpreter")
# As many chunks of heads as the largest models need.
CHUNKS = 4
MOST = 78


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
@pytest.mark.parametrize(("text", "batch"), [(0, 1), (20, 1), (0, 2)])
def test_a_warm_call_makes_few_launches(text, batch):
    inputs = clustered(70 + text, batch=batch, heads=CHUNKS // batch, dtype=torch.float16)
    settings, state = Settings(query_clusters=5, key_clusters=34, kmeans_first=1), ClusterState()
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
