"""Tensors alive at once, counted by watching every operation."""

import weakref

import pytest
import torch
from kernel_inputs import clustered
from svg_ear.kernels import ClusterState, Settings, sparse_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Peak bytes of storages created inside the block beyond ``inputs``, and the largest number of elements of one."""

    def __init__(self, *inputs):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.live = self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), tensor.itemsize)
        return result

    def _count(self, storage, itemsize):
        if storage._cdata in self.known or storage.nbytes() == 0:
            return
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.live += size
        self.peak, self.largest = max(self.peak, self.live), max(self.largest, size // itemsize)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key, size):
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize(
    ("dtype", "heads", "dim", "density"),
    [
        (torch.float32, 1, 128, 0.1),
        (torch.float32, 1, 64, 0.2),
        (torch.float32, 2, 128, 1.0),
        (torch.bfloat16, 1, 128, 0.1),
        (torch.bfloat16, 8, 64, 1.0),
        (torch.bfloat16, 8, 128, 0.2),
    ],
)
def test_extra_memory_is_bounded_at_8192_tokens(dtype, heads, dim, density):
    q, k, v = clustered(8192, heads=heads, dim=dim, dtype=dtype)
    inputs = q.nbytes + k.nbytes + v.nbytes
    with LiveMemory(q, k, v) as memory:
        sparse_attention(q, k, v, Settings(density=density), state=ClusterState())
    assert memory.peak < 2 * inputs
    assert memory.largest < 8192 * 8192


def test_the_counter_sees_a_matrix_of_all_pairs():
    q = torch.randn(1000, 8)
    with LiveMemory() as memory:
        (q @ q.T).softmax(-1)
    assert memory.peak >= 2 * 1000 * 1000 * 4


def test_one_giant_group_makes_no_matrix_of_all_pairs():
    tokens = torch.ones(1, 1, 4096, 64)
    with LiveMemory() as memory:
        sparse_attention(tokens, tokens, torch.randn(1, 1, 4096, 64), Settings(density=1.0))
    assert memory.largest < 4096 * 4096
