import pytest
import torch
from kernel_inputs import clustered, relative_error
from svg_ear.kernels import Settings, reference
from svg_ear.kernels.counts import cluster_counts
from svg_ear.kernels.torch_stages.cluster import cluster, cluster_from_labels
from svg_ear.kernels.torch_stages.metric import key_metric


def starts(tokens, count):
    return tokens[:, :, torch.randperm(tokens.shape[2], generator=torch.Generator().manual_seed(1))[:count]].clone()


@pytest.mark.parametrize("tokens", [1, 3, 63, 65, 113, 1023])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_matches_the_reference(tokens, dtype):
    _, keys, _ = clustered(tokens, batch=2, heads=3, dtype=dtype)
    centroids = starts(keys.to(torch.promote_types(dtype, torch.float32)), min(tokens, 9))
    found = cluster(keys, centroids.shape[2], 3, centroids)
    expected = reference.cluster(keys.double(), 3, centroids.double())
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.order, expected.order)
    assert relative_error(found.centroids, expected.centroids) < (1e-12 if dtype == torch.float64 else 1e-6)


def test_a_metric_weighs_directions_as_the_reference_does():
    queries, keys, _ = clustered(301, heads=3)
    clusters = cluster(keys, 17, 3)
    metric = key_metric(clusters)
    torch.testing.assert_close(metric, reference.key_metric(clusters))
    centroids = starts(queries, 9)
    found, expected = cluster(queries, 9, 3, centroids, metric=metric), reference.cluster(queries, 3, centroids, metric)
    assert torch.equal(found.labels, expected.labels)
    assert not torch.equal(found.labels, cluster(queries, 9, 3, centroids).labels)


@pytest.mark.parametrize("weighed", [False, True])
def test_a_token_moves_among_the_candidates_of_its_cluster(weighed):
    queries, keys, _ = clustered(400, heads=2)
    metric = key_metric(cluster(keys, 17, 2)) if weighed else None
    centroids = starts(queries, 40)
    labels = torch.randint(40, queries.shape[:3], generator=torch.Generator().manual_seed(2))
    found = cluster(queries, 40, 2, centroids, labels, metric, candidates=16)
    expected = reference.cluster(queries, 2, centroids, metric, labels, 16)
    assert torch.equal(found.labels, expected.labels)
    assert not torch.equal(found.labels, cluster(queries, 40, 2, centroids, metric=metric).labels)
    everywhere = cluster(queries, 40, 2, centroids, labels, metric, candidates=64)
    assert torch.equal(everywhere.labels, cluster(queries, 40, 2, centroids, metric=metric).labels)


def test_centroids_of_any_dtype_have_candidates():
    queries, keys, _ = clustered(200)
    metric = key_metric(cluster(keys, 17, 2))
    centroids, labels = starts(queries, 30), torch.zeros(queries.shape[:3], dtype=torch.int64)
    narrow = cluster(queries, 30, 1, centroids.float(), labels, metric, candidates=16)
    wide = cluster(queries, 30, 1, centroids.float().double(), labels, metric, candidates=16)
    assert torch.equal(narrow.labels, wide.labels)


def test_identical_keys_leave_the_metric_euclidean():
    keys = torch.ones(1, 2, 50, 64)
    assert torch.equal(key_metric(cluster(keys, 5, 2)), torch.eye(64).expand(1, 2, 64, 64))


def test_centroids_are_exact_means_and_order_is_sorted():
    _, keys, _ = clustered(211)
    found = cluster(keys, 13, 2)
    for label in range(13):
        members = keys[0, 1][found.labels[0, 1] == label]
        assert found.sizes[0, 1, label] == len(members)
        if len(members):
            torch.testing.assert_close(found.centroids[0, 1, label], members.mean(0))
    assert found.labels.gather(-1, found.order).diff(dim=-1).min() >= 0
    assert torch.equal(found.offsets[..., -1], torch.full((1, 2), 211))


def test_an_empty_cluster_keeps_its_centroid():
    _, keys, _ = clustered(50, heads=1)
    centroids = torch.cat((keys[:, :, :3], torch.full((1, 1, 1, keys.shape[-1]), 1e3, dtype=keys.dtype)), dim=2)
    found = cluster(keys, 4, 2, centroids)
    assert found.sizes[0, 0, 3] == 0
    assert torch.equal(found.centroids[0, 0, 3], centroids[0, 0, 3])


def test_a_common_offset_does_not_change_the_labels():
    _, keys, _ = clustered(500, dtype=torch.float32)
    offset = 30 * torch.randn(keys.shape[-1], generator=torch.Generator().manual_seed(3))
    assert torch.equal(cluster(keys, 20, 4).labels, cluster(keys + offset, 20, 4).labels)


def test_first_centroids_are_distinct_tokens():
    _, keys, _ = clustered(97)
    found = cluster(keys, 97, 1)
    assert torch.equal(found.sizes, torch.ones_like(found.sizes))


def test_reused_labels_give_fresh_means():
    first, second, _ = clustered(90)
    kept = cluster(first, 8, 2)
    again = cluster_from_labels(second, kept.labels, kept.centroids)
    assert torch.equal(again.labels, kept.labels)
    torch.testing.assert_close(again.centroids[0, 0, 0], second[0, 0][kept.labels[0, 0] == 0].mean(0))


def test_identical_tokens_share_one_cluster():
    tokens = torch.ones(1, 1, 40, 64)
    found = cluster(tokens, 5, 3)
    assert found.sizes.max() == 40
    assert found.centroids.isfinite().all()


@pytest.mark.parametrize(
    ("tokens", "counts"),
    [(1, (1, 1)), (1_680, (105, 105)), (7_920, (260, 495)), (32_760, (260, 512)), (75_600, (300, 600))],
)
def test_automatic_counts_follow_the_token_count(tokens, counts):
    assert cluster_counts(tokens, Settings()) == counts


def test_counts_asked_for_are_clamped():
    assert cluster_counts(10, Settings(query_clusters=300, key_clusters=1000)) == (10, 10)
    assert cluster_counts(5_000, Settings(query_clusters=20, key_clusters=66)) == (20, 66)
