import pytest
import torch
from svg_ear.kernels import reference
from svg_ear.kernels.behind import rows_behind
from svg_ear.kernels.torch_stages.cluster import cluster
from triton_cases import DEVICE, GPU, arranged, dtypes, inputs, layouts, lengths

pytest.importorskip("triton")
from svg_ear.kernels.triton_stages.permute import permute  # noqa: E402
from svg_ear.kernels.types import Clusters  # noqa: E402


@dtypes
@lengths
def test_matches_the_reference(tokens, dtype):
    _, keys, values = inputs(tokens, dtype, batch=2, heads=2)
    clusters = cluster(keys, min(tokens, 7), 1)
    found, expected = permute(keys, values, clusters), reference.permute(keys, values, clusters)
    assert torch.equal(found.keys, expected.keys)
    assert torch.equal(found.values, expected.values)
    assert not rows_behind(found.keys).any() and not rows_behind(found.values).any()


@layouts
@pytest.mark.parametrize("dim", [64, 128])
def test_strides_do_not_matter(layout, dim):
    _, keys, values = inputs(65, batch=2, heads=3, dim=dim)
    clusters = cluster(keys, 7, 1)
    found, expected = permute(arranged(keys, layout), arranged(values, "tokens first"), clusters), permute(keys, values, clusters)
    assert torch.equal(found.keys, expected.keys)
    assert torch.equal(found.values, expected.values)
    assert found.keys.is_contiguous() and found.values.is_contiguous()


@pytest.mark.skipif(not GPU, reason="no CUDA GPU")
def test_more_elements_than_an_int32_counts():
    keys = torch.randn(1, 40, 430_000, 128, dtype=torch.bfloat16, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    order = torch.arange(430_000, device=DEVICE).flip(0).expand(1, 40, -1).contiguous()
    found = permute(keys, -keys, Clusters(order, keys[:, :, :1], order[..., :1], order))
    assert torch.equal(found.keys[:, -1], keys[:, -1].flip(1))
    assert torch.equal(found.values[:, -1], -keys[:, -1].flip(1))
