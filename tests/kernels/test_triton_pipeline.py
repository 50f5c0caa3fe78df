"""Whole calls with the Triton stages against the torch stages: probe, routing and attention together."""

from functools import cache

import pytest
import torch
from kernel_inputs import relative_error
from svg_ear.kernels import ClusterState, SequenceLayout, Settings, SharedKeys, sparse_attention
from triton_cases import arranged, dtypes, inputs, layouts

pytest.importorskip("triton")
LAYOUT = SequenceLayout(range(7, 140), (range(0, 5), range(140, 149)))
COUNTS = {"query_clusters": 5, "key_clusters": 11, "kmeans_first": 2, "recluster_every": 2}


@dtypes
@pytest.mark.parametrize(
    "settings",
    [
        Settings(density=0.25, **COUNTS),
        Settings(density=0.25, weighted_centroids=False, key_metric=False, **COUNTS),
        Settings(density=0.0, **COUNTS),
        Settings(density=1.0, **COUNTS),
        Settings(budget="top-p", top_p=0.7, min_share=0.3, **COUNTS),
        Settings(method="svg2", density=0.2, **COUNTS),
        Settings(density=0.25, precision="int8", **COUNTS),
        Settings(density=0.25, precision="int8", weighted_centroids=False, **COUNTS),
        Settings(method="svg2", density=0.2, precision="int8", **COUNTS),
    ],
    ids=str,
)
def test_a_call_gives_what_torch_gives(settings, dtype):
    q, k, v = inputs(149, dtype, heads=1)
    first = ClusterState()
    sparse_attention(q, k, v, settings, layouts=LAYOUT, state=first, implementation="torch")

    def call(implementation):
        # The labels of the first call: a token between two clusters may go to either.
        state = ClusterState(calls=1, items=dict(first.items))
        return sparse_attention(q, k, v, settings, layouts=LAYOUT, state=state, implementation=implementation).output[:, :, 7:140]

    plain, fused = call("torch"), call("triton")
    # In int8 a sum in another order may round to the next integer.
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-3 if q.is_cuda else 5e-5 if settings.precision == "int8" else 1e-6
    # Triton rounds twice to the input dtype where torch rounds once: centroids and output. A GPU multiplies float32 in tf32.
    assert relative_error(fused, plain) < 2 * rounding


@dtypes
@pytest.mark.parametrize("precision", ["full", "int8"])
def test_a_part_of_the_queries_and_biases_give_what_torch_gives(dtype, precision):
    settings = Settings(density=0.25, precision=precision, **COUNTS)
    layout = SequenceLayout(range(7, 140), (range(0, 5), range(140, 149)), range(2, 60))
    q, k, v = inputs(149, dtype, heads=1)
    q = q[:, :, :61]
    biases = torch.zeros(1, 1, 149, device=q.device)
    biases[..., :5], biases[..., 140:] = torch.tensor([1.0, -2, 0.5, -torch.inf, 0]), -0.7
    first = ClusterState()
    sparse_attention(q, k, v, settings, layouts=layout, biases=biases, state=first, implementation="torch")

    def call(implementation, **options):
        state = ClusterState(calls=1, items=dict(first.items))
        return sparse_attention(q, k, v, settings, layouts=layout, state=state, implementation=implementation, **options).output

    plain, fused, unbiased = call("torch", biases=biases), call("triton", biases=biases), call("triton")
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-3 if q.is_cuda else 5e-5 if precision == "int8" else 1e-6
    assert relative_error(fused, plain) < 2 * rounding
    assert relative_error(unbiased, plain) > 0.01


@pytest.mark.parametrize("precision", ["full", "int8"])
def test_calls_that_share_their_keys_give_what_each_gives_alone(precision):
    settings, shared = Settings(density=0.25, query_clusters=2, key_clusters=5, kmeans_first=1, precision=precision), SharedKeys()
    q, k, v = inputs(75, heads=1)
    options = {"layouts": SequenceLayout(range(7, 75), (range(0, 5),), range(30)), "implementation": "triton"}
    for queries in (q[:, :, :30], q[:, :, 30:60]):
        own = sparse_attention(queries, k, v, settings, **options).output
        assert torch.equal(sparse_attention(queries, k, v, settings, **options, shared=shared).output, own)
    # In int8 they come with the queries of the call, and are sorted for each.
    assert len(shared.sorted) == (precision == "full")


@cache
def output(layout, settings):
    """Of contiguous tensors without a ``layout``."""
    given = inputs(149, heads=1)
    tensors = [arranged(tensor, layout) if layout else tensor for tensor in given]
    return sparse_attention(*tensors, settings, layouts=LAYOUT, implementation="triton").output[:, :, 7:140]


@layouts
@pytest.mark.parametrize("settings", [Settings(density=0.25, **COUNTS), Settings(density=0.25, precision="int8", **COUNTS)], ids=str)
def test_strides_do_not_matter(settings, layout):
    assert torch.equal(output(layout, settings), output(None, settings))


@dtypes
def test_an_item_takes_the_clusters_of_its_owner_as_in_torch(dtype):
    q, k, v = (torch.cat((tensor, tensor.flip(2))) for tensor in inputs(149, dtype, heads=1))
    settings, first = Settings(density=0.25, **COUNTS), ClusterState()
    sparse_attention(q, k, v, settings, layouts=LAYOUT, state=first, owners=(1, 1), implementation="torch")

    def call(implementation):
        state = ClusterState(calls=1, items=dict(first.items))
        return sparse_attention(q, k, v, settings, layouts=LAYOUT, state=state, owners=(1, 1), implementation=implementation).output

    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-3 if q.is_cuda else 1e-6
    assert relative_error(call("triton")[:, :, 7:140], call("torch")[:, :, 7:140]) < 2 * rounding


def test_rows_beyond_32_bits_are_found():
    """Views of one fused tensor whose last rows begin beyond 2 ** 31 elements; its pages are not touched between the rows."""
    given = inputs(149, heads=1)
    apart = 2**31 // 100
    memory = torch.empty(148 * apart + 3 * 64, dtype=given[0].dtype, device=given[0].device)
    far = [memory.as_strided(tensor.shape, (tensor.stride(0), 64, apart, 1), 64 * place) for place, tensor in enumerate(given)]
    for view, tensor in zip(far, given):
        view.copy_(tensor)
    settings = Settings(density=0.25, **COUNTS)
    near, found = (sparse_attention(*tensors, settings, layouts=LAYOUT, implementation="triton").output for tensors in (given, far))
    assert torch.equal(found[:, :, 7:149], near[:, :, 7:149])
