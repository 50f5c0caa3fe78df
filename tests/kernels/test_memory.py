"""What a call needs beyond its inputs."""

import pytest
import torch
from kernel_inputs import clustered
from live_memory import LiveMemory
from svg_ear.kernels import ClusterState, Settings, sparse_attention


@pytest.mark.parametrize(
    ("dtype", "heads", "dim", "density"),
    [
        (torch.float32, 1, 128, 0.1),
        (torch.float32, 1, 64, 0.2),
        (torch.float32, 2, 128, 1.0),
        (torch.bfloat16, 1, 128, 0.1),
        (torch.bfloat16, 4, 64, 1.0),
        (torch.bfloat16, 4, 128, 0.2),
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
