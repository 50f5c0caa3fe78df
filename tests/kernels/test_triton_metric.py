import pytest
import torch
from kernel_inputs import relative_error
from svg_ear.kernels import torch_stages
from svg_ear.kernels.torch_stages.cluster import _points
from triton_cases import DEVICE, inputs

pytest.importorskip("triton")
from svg_ear.kernels import triton_stages  # noqa: E402
from svg_ear.kernels.triton_stages.nearest import points  # noqa: E402


@pytest.mark.parametrize(("count", "dim"), [(1, 64), (17, 64), (70, 128)])
def test_a_metric_is_what_torch_gives(count, dim):
    keys = inputs(200, torch.float32, batch=2, dim=dim)[1] + 5
    clusters = torch_stages.cluster(keys, count, 1)
    found, expected = triton_stages.key_metric(clusters), torch_stages.key_metric(clusters)
    # The covariance of one centroid is zero up to rounding, whose directions mean nothing.
    assert count == 1 or relative_error(found, expected) < 1e-5


def test_identical_keys_have_no_directions_to_prefer():
    clusters = torch_stages.cluster(torch.ones(1, 2, 60, 64, device=DEVICE), 5, 2)
    assert torch.equal(triton_stages.key_metric(clusters), torch.eye(64, device=DEVICE).expand(1, 2, 64, 64))


@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("count", [1, 64, 70])
def test_points_are_what_torch_gives(count, weighed):
    centroids = inputs(count, torch.float32, batch=2)[1] + 5
    metric = torch_stages.key_metric(torch_stages.cluster(inputs(90, torch.float32, batch=2)[0], 9, 1)) if weighed else None
    found = points(centroids, centroids, metric)
    scaled, bias = _points(centroids, metric)
    assert relative_error(found.relative[:, :, :count] + 1, scaled + 1) < 1e-5
    assert relative_error(found.bias[:, :, :count] + 1, bias[:, :, 0] + 1) < 1e-5
    assert (found.relative[:, :, count:] == 0).all() and (found.bias[:, :, count:] == torch.inf).all()
