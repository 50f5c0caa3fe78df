from functools import cache
from importlib import import_module

import pytest
import torch
from kernel_inputs import relative_error
from svg_ear.kernels import reference, torch_stages
from triton_cases import DEVICE, GPU, arranged, dtypes, inputs, layouts, lengths, separated

pytest.importorskip("triton")
from svg_ear.kernels.triton_stages.cluster import cluster, cluster_from_labels  # noqa: E402
from svg_ear.kernels.triton_stages.similarity import number_by_similarity  # noqa: E402

# The package exports functions under the names of these modules.
means, nearest, sort = (import_module(f"svg_ear.kernels.triton_stages.{name}") for name in ("cluster", "nearest", "sort"))

on_gpu = pytest.mark.skipif(not GPU, reason="no CUDA GPU")


def same(left, right):
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in ("labels", "centroids", "sizes", "order"))


def excess(tokens, labels, centroids):
    """How much farther the chosen centroids are than the nearest, over the least sum of squared distances."""
    distances = torch.cdist(tokens.double(), centroids.double()).square()
    nearest = distances.amin(-1)
    return ((distances.gather(-1, labels.long()[..., None]).squeeze(-1) - nearest).sum() / nearest.sum()).item()


def check(found, tokens):
    """The clusters fit their labels: order and sizes exactly, means as well as plain torch in the same precision."""
    tokens, labels, previous = tokens.cpu(), found.labels.long().cpu(), found.centroids.cpu()
    expected = reference.cluster_from_labels(tokens.double(), labels, previous.double())
    plain = torch_stages.cluster_from_labels(tokens, labels, previous)
    assert torch.equal(found.order.cpu(), expected.order)
    assert torch.equal(found.sizes.cpu(), expected.sizes)
    assert torch.equal(found.sorted_labels.cpu(), expected.sorted_labels.int())
    error, limit = (relative_error(centroids.cpu(), expected.centroids) for centroids in (found.centroids, plain.centroids))
    assert error <= 2 * max(limit, torch.finfo(torch.float32).eps)


@dtypes
@lengths
def test_matches_the_reference(tokens, dtype):
    keys, points = separated(tokens, dtype)
    points = points[:, :, :tokens]
    found = cluster(keys, points.shape[2], 2, points)
    expected = reference.cluster(keys.double().cpu(), 2, points.double().cpu())
    assert torch.equal(found.labels.cpu(), expected.labels.int())
    assert relative_error(found.centroids.cpu(), expected.centroids) < 1e-6
    check(found, keys)


@dtypes
def test_labels_are_as_near_as_in_plain_torch(dtype):
    keys = inputs(600, dtype, batch=2, heads=1, spread=2.0)[1]
    centroids = keys[:, :, 5:105].contiguous()
    found = cluster(keys, 100, 1, centroids).labels
    plain = (2 * keys @ centroids.mT).float() - centroids.float().square().sum(-1)[:, :, None]
    assert excess(keys, found, centroids) <= 2 * excess(keys, plain.argmax(-1), centroids) + torch.finfo(torch.float32).eps


@dtypes
@lengths
def test_a_token_moves_among_the_candidates_of_its_cluster(tokens, dtype):
    keys, points = separated(tokens, dtype, points=18, heads=1)
    points = points[:, :, :tokens]
    count = points.shape[2]
    labels = torch.randint(count, keys.shape[:3], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found = cluster(keys, count, 1, points, labels, candidates=16)
    check(found, keys)
    keys, points = keys.double(), points.double()
    near = torch.cdist(points, points).argsort(-1)[..., :16].gather(2, labels[..., None].expand(-1, -1, -1, min(16, count)))
    distances = torch.cdist(keys, points)
    chosen = distances.gather(-1, found.labels.long()[..., None]).squeeze(-1)
    assert (chosen <= 1.01 * distances.gather(-1, near).amin(-1)).all()
    assert tokens <= 16 or (chosen > 1.01 * distances.amin(-1)).any()


@cache
def strided_keys(dim):
    """Keys, and their clusters where everything is contiguous: around 9 centroids, around 64, and with candidates."""
    keys = inputs(70, batch=2, heads=2, dim=dim)[1]
    one_head = keys[:, 1:2]
    near = (one_head[:, :, :17], torch.arange(70, device=DEVICE).expand(2, 1, 70) % 17, None, 16)
    few, many = (cluster(keys, count, 1, keys[:, :, :count].contiguous()) for count in (9, 64))
    return keys, near, few, many, cluster(one_head, 17, 1, *near)


@layouts
@pytest.mark.parametrize("dim", [64, 128])
def test_strides_do_not_matter(layout, dim):
    keys, near, few, many, of_candidates = strided_keys(dim)
    assert same(cluster(arranged(keys, layout), 9, 1, arranged(keys[:, :, :9], "tokens first")), few)
    assert same(cluster(keys, 64, 1, arranged(keys[:, :, :64], layout)), many)
    assert same(cluster(arranged(keys[:, 1:2], layout), 17, 1, *near), of_candidates)


def test_iterations_are_calls_in_a_row_and_repeat_bitwise():
    keys = inputs(200)[1]
    first = cluster(keys, 20, 1, keys[:, :, :20])
    assert same(cluster(keys, 20, 2, keys[:, :, :20]), cluster(keys, 20, 1, first.centroids))
    assert same(cluster(keys, 20, 2), cluster(keys, 20, 2))


def test_ties_go_to_the_lower_label():
    # Whole numbers and a mean of zero make every product exact: otherwise the place of a column in a product may decide a tie.
    keys = (8 * inputs(300, heads=1)[1]).round().clamp(-8, 8)
    keys[:, :, 25:50] = -keys[:, :, :25]
    centroids = keys[:, :, :50].repeat(1, 1, 3, 1)
    assert cluster(keys, 150, 1, centroids).labels.max() < 50


def test_an_empty_cluster_keeps_its_centroid():
    keys = inputs(50, torch.float32, heads=1)[1]
    centroids = torch.cat((keys[:, :, :3], torch.full_like(keys[:, :, :1], 1e3)), dim=2)
    found = cluster(keys, 4, 2, centroids)
    assert found.sizes[0, 0, 3] == 0
    assert torch.equal(found.centroids[0, 0, 3], centroids[0, 0, 3])


def test_all_tokens_in_one_cluster():
    keys = inputs(1000, heads=1)[1]
    labels = torch.full(keys.shape[:3], 6, dtype=torch.int32, device=DEVICE)
    check(cluster_from_labels(keys, labels, keys[:, :, :9]), keys)
    identical = cluster(torch.ones_like(keys), 5, 2)
    assert identical.sizes.max() == 1000
    assert identical.centroids.isfinite().all()


@dtypes
def test_a_common_offset_does_not_drown_the_differences(dtype):
    keys = inputs(500, dtype)[1]
    moved = keys + 8 * torch.randn(keys.shape[-1], generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype)
    centroids = moved[:, :, :20].float()
    assert excess(moved, cluster(moved, 20, 1, centroids).labels, centroids) < 1e-4


def test_broken_tokens_get_some_label():
    keys = inputs(70, heads=1)[1]
    keys[:, :, 7] = torch.nan
    keys[:, :, 8] = torch.inf
    labels = cluster(keys, 5, 2, inputs(70, heads=1)[0][:, :, :5]).labels
    assert 0 <= labels.min() and labels.max() < 5


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 100])
def test_numbering_is_a_permutation_that_brings_similar_rows_together(count):
    rows = inputs(count, torch.float32)[1]
    numbered = number_by_similarity(rows)
    assert torch.equal(numbered.sort(2).values, rows.sort(2).values)
    if count > 50:
        assert numbered.diff(dim=2).norm(dim=-1).mean() < 0.7 * rows.diff(dim=2).norm(dim=-1).mean()


def test_clusters_from_scratch_have_similar_neighbours_and_exact_means():
    keys = inputs(600)[1]
    found, plain = cluster(keys, 60, 2), torch_stages.cluster(keys, 60, 2)
    gaps, plain_gaps = (clusters.centroids.diff(dim=2).norm(dim=-1).mean() for clusters in (found, plain))
    assert gaps < 0.7 * plain_gaps
    check(found, keys)


@on_gpu
def test_nothing_waits_for_the_gpu():
    keys = inputs(3000, dim=128)[1]
    kept = cluster(keys, 40, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        cluster(keys, 40, 2)
        cluster(keys, 40, 1, kept.centroids)
        cluster(keys, 40, 1, kept.centroids, kept.labels, candidates=16)
        cluster_from_labels(keys, kept.labels, kept.centroids)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_a_new_length_compiles_nothing():
    kernels = (nearest._points, nearest._nearest, nearest._nearest_candidate, sort._count, sort._place, means._means)

    def compiled():
        return [sum(len(cache[0]) for cache in kernel.device_caches.values()) for kernel in kernels]

    counts = []
    for tokens, count in ((2000, 40), (2001, 41), (1, 1), (4096, 64)):
        keys = arranged(inputs(tokens)[1], "tokens first")
        cluster(keys, count, 2, candidates=16)
        counts.append(compiled())
    assert counts[1:] == counts[:1] * 3


@on_gpu
def test_more_elements_than_an_int32_counts():
    tokens = torch.randn(1, 40, 430_000, 128, dtype=torch.bfloat16, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    found = cluster(tokens, 30, 1, tokens[:, :, :30])
    last = slice(39, 40)
    alone = cluster(tokens[:, last].clone(), 30, 1, tokens[:, last, :30])
    for name in ("labels", "centroids", "sizes", "order"):
        assert torch.equal(getattr(found, name)[:, last], getattr(alone, name))
