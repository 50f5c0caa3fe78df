"""What is spent is what was asked, however the keys are spread over the clusters."""

import pytest
import torch
from kernel_inputs import clustered
from svg_ear.kernels import ClusterState, Settings, reference, sparse_attention, torch_stages
from svg_ear.kernels.counts import LARGEST_MEANS, LARGEST_PART, cluster_counts, largest_key_cluster, routed_counts
from triton_cases import dtypes, separated

TOKENS = 640


def keys_of(kind, tokens=TOKENS):
    q, k, v = clustered(tokens, heads=2, dtype=torch.float32)
    if kind == "one giant cluster":
        k[:, :, 30:] = k[:, :, :1] + 1e-3 * torch.randn(k[:, :, 30:].shape, generator=torch.Generator().manual_seed(3))
        k[:, :, :30] *= 8
    elif kind == "constants":
        q[:], k[:], v[:] = 0.5, 0.25, 1
    elif kind == "duplicates":
        k = k[:, :, :4].repeat_interleave(tokens // 4, dim=2)
    return q, k, v


@pytest.mark.parametrize("kind", ["one giant cluster", "constants", "duplicates", "ordinary"])
@pytest.mark.parametrize("density", [0.03, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("recluster_every", [1, 2])
def test_the_share_that_is_spent_is_the_one_that_was_asked(kind, density, recluster_every):
    settings = Settings(density=density, recluster_every=recluster_every)
    state = ClusterState()
    for _ in range(3):
        spent = sparse_attention(*keys_of(kind), settings, state=state).statistics.group_shares
        tolerance = max(LARGEST_PART * density, LARGEST_MEANS / cluster_counts(TOKENS, settings)[1]) / 2
        assert (spent - density).abs().max() <= tolerance + 2 / TOKENS


@pytest.mark.parametrize("kind", ["one giant cluster", "constants", "duplicates"])
def test_a_floor_is_exceeded_by_a_cluster_at_most(kind):
    settings = Settings(budget="top-p", top_p=0.0, min_share=0.2)
    spent = sparse_attention(*keys_of(kind), settings).statistics.group_shares
    assert spent.min() >= 0.2
    assert spent.max() <= 0.2 + largest_key_cluster(TOKENS, settings) / TOKENS


def test_ordinary_clusters_stay_as_they_are():
    keys = keys_of("ordinary")[1]
    clusters = torch_stages.cluster(keys, 40, 2)
    largest = int(clusters.sizes.max())
    found = torch_stages.split(clusters, keys, largest, 40 + TOKENS // largest)
    occupied = [clusters.centroids[0, head, clusters.sizes[0, head] > 0] for head in range(2)]
    assert all(torch.equal(found.centroids[0, head, : len(rows)], rows) for head, rows in enumerate(occupied))
    assert torch.equal(found.order, clusters.order)


def test_settings_that_spend_nothing_cut_nothing():
    for settings in (Settings(density=0.0), Settings(method="calibrated")):
        assert largest_key_cluster(TOKENS, settings) == TOKENS
        assert routed_counts(TOKENS, settings) == cluster_counts(TOKENS, settings)


@pytest.mark.parametrize("largest", [1, 5, 16, 40, 1000])
def test_matches_the_reference(largest):
    keys = clustered(157, batch=2, dtype=torch.float64)[1]
    clusters = torch_stages.cluster(keys, 9, 2)
    check(torch_stages.split(clusters, keys, largest, 9 + 157 // largest), reference.split(clusters, keys, largest, 9 + 157 // largest))


@dtypes
@pytest.mark.parametrize("largest", [3, 20])
def test_triton_matches_the_reference(largest, dtype):
    pytest.importorskip("triton")
    from svg_ear.kernels import triton_stages

    keys, points = separated(150, dtype, points=4)
    keys[0, 0] = keys[0, 0, :1]
    labels = torch.cdist(keys.float(), points).argmin(-1)
    clusters = triton_stages.cluster_from_labels(keys, labels, points)
    found = triton_stages.split(clusters, keys, largest, 4 + 150 // largest)
    plain = torch_stages.cluster_from_labels(keys.double().cpu(), labels.cpu(), points.double().cpu())
    check(found, reference.split(plain, keys.double().cpu(), largest, 4 + 150 // largest))
    assert torch.equal(found.offsets.diff(dim=-1), found.sizes)


def check(found, expected):
    occupied = expected.sizes > 0
    assert torch.equal(found.labels.cpu().long(), expected.labels)
    assert torch.equal(found.sizes.cpu().long(), expected.sizes)
    assert torch.equal(found.order.cpu().long(), expected.order)
    torch.testing.assert_close(found.centroids.cpu()[occupied].double(), expected.centroids[occupied], rtol=1e-5, atol=1e-5)
