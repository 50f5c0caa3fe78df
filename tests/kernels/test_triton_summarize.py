from dataclasses import fields

import pytest
import torch
from kernel_inputs import relative_error
from svg_ear.kernels import reference, torch_stages
from svg_ear.kernels.types import Clusters, SortedKeys
from triton_cases import DEVICE, GPU, dtypes, inputs, lengths

pytest.importorskip("triton")
from svg_ear.kernels.triton_stages.summarize import summarize  # noqa: E402

ROUNDING = torch.finfo(torch.float32).eps


def sorted_by(labels, keys, values):
    labels = labels.expand(keys.shape[:3])
    clusters = torch_stages.cluster_from_labels(keys, labels, keys[:, :, :1].expand(-1, -1, 9, -1))
    return torch_stages.permute(keys, values, clusters)


def check(sorted_keys):
    """At most twice the error of plain torch in the same precision, against float64."""
    clusters = sorted_keys.clusters
    wide = Clusters(clusters.labels, clusters.centroids.double(), clusters.sizes, clusters.order)
    expected = reference.summarize(SortedKeys(sorted_keys.keys.double(), sorted_keys.values.double(), wide))
    found, plain = summarize(sorted_keys), torch_stages.summarize(sorted_keys)
    assert torch.equal(found.log_sizes.isinf(), clusters.sizes == 0)
    for field in fields(expected):
        value, rounded, exact = (getattr(summaries, field.name).nan_to_num(neginf=0) for summaries in (found, plain, expected))
        assert value.dtype == torch.float32
        assert (value - exact).norm() <= 2 * max((rounded - exact).norm(), ROUNDING * exact.norm())


@dtypes
@lengths
def test_matches_the_reference(tokens, dtype):
    _, keys, values = inputs(tokens, dtype, batch=2)
    labels = torch.randint(9, (2, 2, tokens), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    check(sorted_by(labels, keys, values))


@pytest.mark.parametrize("dim", [64, 128])
def test_one_giant_cluster_among_empty_ones(dim):
    _, keys, values = inputs(1000, heads=1, dim=dim)
    check(sorted_by(torch.tensor([4], device=DEVICE), keys, values))


def test_repeats_bitwise():
    _, keys, values = inputs(500)
    sorted_keys = sorted_by(torch.arange(500, device=DEVICE) % 9, keys, values)
    first, second = summarize(sorted_keys), summarize(sorted_keys)
    assert all(torch.equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))


@pytest.mark.skipif(not GPU, reason="no CUDA GPU")
def test_more_elements_than_an_int32_counts():
    values = torch.randn(1, 40, 430_000, 128, dtype=torch.bfloat16, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    sizes = torch.full((1, 40, 43), 10_000, device=DEVICE)
    found = summarize(SortedKeys(values, values, Clusters(sizes, values[:, :, :43], sizes, sizes)))
    expected = values[0, 39].double().unflatten(0, (43, 10_000)).mean(1)
    assert relative_error(found.value_means[0, 39], expected) < 1e-5
    assert relative_error(found.value_norms[0, 39], values[0, 39].double().square().sum(-1)) < 1e-6
