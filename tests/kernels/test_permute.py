import pytest
import torch
from kernel_inputs import clustered
from svg_ear.kernels import reference
from svg_ear.kernels.torch_stages.cluster import cluster
from svg_ear.kernels.torch_stages.permute import permute


@pytest.mark.parametrize("tokens", [1, 64, 113])
def test_matches_the_reference_for_any_strides(tokens):
    _, keys, values = clustered(tokens, batch=2, heads=3, dtype=torch.float16)
    strided = keys.transpose(1, 2).contiguous().transpose(1, 2)
    clusters = cluster(strided, min(tokens, 7), 2)
    found, expected = permute(strided, values, clusters), reference.permute(keys, values, clusters)
    assert torch.equal(found.keys, expected.keys)
    assert torch.equal(found.values, expected.values)
    assert found.keys.is_contiguous() and found.values.is_contiguous()
