import pytest
import torch
from kernel_inputs import clustered, relative_error, stages
from svg_ear.kernels import Settings, sparse_attention
from svg_ear.kernels.statistics import Measured, measure


def test_density_counts_pairs():
    case = stages(Settings(density=0.2), tokens=301)
    found = measure([Measured.of(case.routing, case.probe, case.groups)], 1, 301)
    labels = case.groups.labels
    pairs = torch.take_along_dim(case.routing.exact, labels[..., None], dim=2) * case.clusters.sizes[:, :, None]
    torch.testing.assert_close(found.density, (pairs.sum((-1, -2)) / 301**2).float())


def test_estimated_error_is_measured_at_the_centroids():
    case = stages(Settings(density=0.0, weighted_centroids=False), tokens=301, group_count=7, key_count=1)
    found = measure([Measured.of(case.routing, case.probe, case.groups)], 1, 301).estimated_error
    rows = case.probe.errors.sum(-1)
    norms, sizes = case.probe.output_norms, case.groups.sizes
    torch.testing.assert_close(found, ((rows * sizes).sum(-1) / (norms * sizes).sum(-1)).sqrt().float())


def test_nothing_skipped_is_no_error():
    statistics = sparse_attention(*clustered(300), Settings(density=1.0)).statistics
    assert (statistics.estimated_error == 0).all()


@pytest.mark.parametrize("method", ["svg-ear", "svg2"])
def test_estimated_error_falls_with_density(method):
    q, k, v = clustered(800)
    errors = [
        sparse_attention(q, k, v, Settings(method=method, density=density)).statistics.estimated_error.mean().item()
        for density in (0.05, 0.2, 0.6)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_shapes_cover_all_heads_and_chunks():
    q, k, v = clustered(300, batch=2, heads=3)
    whole = sparse_attention(q, k, v).statistics
    pieces = sparse_attention(q, k, v, memory_limit=1).statistics
    assert whole.density.shape == (2, 3) and whole.group_shares.shape[:2] == (2, 3)
    for name in ("density", "group_shares", "estimated_error"):
        assert relative_error(getattr(pieces, name), getattr(whole, name)) < 1e-6
