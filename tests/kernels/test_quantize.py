"""Keys and queries in int8: what is lost, and that nothing else is."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from kernel_inputs import clustered, relative_error
from svg_ear.kernels import Settings, reference, sparse_attention
from svg_ear.kernels.torch_stages.attend import attend
from svg_ear.kernels.torch_stages.cluster import cluster
from svg_ear.kernels.torch_stages.probe import probe_tokens
from svg_ear.kernels.torch_stages.quantize import quantize, quantized_rows, rotated
from svg_ear.kernels.torch_stages.route import route
from svg_ear.kernels.torch_stages.summarize import summarize
from svg_ear.kernels.types import Conditioning, SortedKeys

# The package exports a function under the name of this module.
STAGE = import_module("svg_ear.kernels.torch_stages.quantize")
TEXT = 9
FULL, INT8 = Settings(density=0.1), Settings(density=0.1, precision="int8")


def quantized(q, k, v, extra=TEXT, groups=5, clusters=11):
    """Sorted keys and all else in int8, of tensors whose last ``extra`` tokens are text, with the clusters of both."""
    queries, keys, values = (tensor[:, :, : tensor.shape[2] - extra] for tensor in (q, k, v))
    found, own = cluster(queries, groups, 3), cluster(keys, clusters, 3)
    return quantize(queries, keys, values, own, k[:, :, keys.shape[2] :], found), found, own


def dense(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(*(tensor.double() for tensor in (q, k, v)))


@pytest.mark.parametrize("dim", [24, 64, 96, 128])
def test_a_rotation_changes_no_product(dim):
    rows = torch.randn(50, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotated(rows, torch.float64)
    torch.testing.assert_close(turned @ turned.T, rows @ rows.T)
    # One channel ends up in as many as a power of two of them has.
    spike = torch.zeros(dim, dtype=torch.float64)
    spike[1] = 1
    assert rotated(spike, torch.float64).abs().max() == pytest.approx((dim & -dim) ** -0.5)


@pytest.mark.parametrize("dim", [24, 64, 128])
def test_logits_are_those_of_the_tokens_up_to_a_constant_and_half_a_step(dim):
    q, k, v = clustered(160, heads=2, dim=dim)
    sorted_keys, groups, clusters = quantized(q, k, v)
    products = sorted_keys.quantized
    queries = products.queries * products.query_scales[..., None]
    tables = {
        "tokens": (sorted_keys.keys * products.key_scales[..., None, None], torch.take_along_dim(k, clusters.order[..., None], 2)),
        "means": (products.key_means * products.key_scales[..., None, None], clusters.centroids),
        "text": (products.extra * products.extra_scales[..., None], k[:, :, -TEXT:]),
    }
    found, expected = (torch.cat([table[place] for table in tables.values()], dim=2) for place in (0, 1))
    off = queries @ found.mT - q[:, :, :-TEXT] @ expected.mT
    # Softmax sees no constant. Half a step in every channel is the most that either side is off.
    off -= off.mean(-1, keepdim=True)
    scales = products.key_scales.amax().maximum(products.extra_scales.amax())
    most = scales / 2 * q.abs().sum(-1).amax() + products.query_scales.amax() / 2 * found.abs().sum(-1).amax()
    assert 0 < off.abs().max() < 2 * most
    assert off.square().mean().sqrt() < 0.02 * (q @ k.mT).std()


def test_nothing_is_cut_off_and_all_of_the_range_is_used():
    q, k, v = clustered(300, heads=3)
    k[:, 1] *= 1000
    k[:, 2] += 40
    sorted_keys, *_ = quantized(q, k, v)
    for table in (sorted_keys.keys, sorted_keys.quantized.queries, sorted_keys.quantized.extra):
        assert table.abs().amax((2, 3)).eq(127).all() and (table != -128).all()
    assert sorted_keys.quantized.key_scales[:, 1] > 100 * sorted_keys.quantized.key_scales[:, 0]


def test_a_constant_added_to_all_keys_changes_nothing():
    q, k, v = clustered(300, heads=2)
    without, *_ = quantized(q, k, v)
    with_offset, *_ = quantized(q, k + 64 * torch.randn(64, dtype=k.dtype, generator=torch.Generator().manual_seed(1)), v)
    assert torch.equal(without.keys, with_offset.keys)
    assert torch.equal(without.quantized.extra, with_offset.quantized.extra)
    assert (without.quantized.key_means - with_offset.quantized.key_means).abs().max() <= 1


def test_rows_of_zeros_and_equal_keys_are_zeros():
    rows, scales = quantized_rows(torch.zeros(3, 64))
    assert not rows.any() and not scales.any()
    q, k, v = clustered(90)
    output = sparse_attention(q, k[:, :, :1].expand_as(k), v, INT8).output
    assert relative_error(output, v.mean(2, keepdim=True).expand_as(v)) < 1e-6


@pytest.mark.parametrize("extra", [0, TEXT])
@pytest.mark.parametrize(
    "settings",
    [
        replace(INT8, density=0.25),
        replace(INT8, density=0.25, weighted_centroids=False),
        replace(INT8, density=0.0),
        replace(INT8, density=0.25, method="svg2"),
    ],
    ids=str,
)
def test_stages_are_the_reference_of_what_int8_leaves(settings, extra):
    """Rotated, rounded and with an offset, queries and keys are tensors like any others."""
    q, k, v = clustered(301 + extra, heads=3, dim=128)
    sorted_keys, groups, clusters = quantized(q, k, v, extra)
    products, scale = sorted_keys.quantized, 128**-0.5
    conditioning = Conditioning(k[:, :, 301:], v[:, :, 301:])
    summaries = summarize(sorted_keys)
    probe = probe_tokens(groups.centroids, sorted_keys, conditioning, summaries, settings.weights_centroids, scale)
    routing = route(probe, clusters, settings)
    output = torch.full((1, 3, 301, 128), torch.nan, dtype=torch.float64)
    attend(q[:, :, :301], groups, sorted_keys, conditioning, summaries, probe, routing, settings, scale, output)

    left = SortedKeys(sorted_keys.keys * products.key_scales[..., None, None], sorted_keys.values, clusters)
    known = replace(summaries, key_means=products.key_means * products.key_scales[..., None, None])
    seen = Conditioning(products.extra * products.extra_scales[..., None], conditioning.values)
    mean_queries = products.mean_queries * products.mean_query_scales[..., None]
    expected = reference.probe_tokens(mean_queries, left, seen, known, settings.weights_centroids, scale)
    assert relative_error(probe.errors, expected.errors) < 1e-9 and relative_error(probe.masses, expected.masses) < 1e-9
    queries = products.queries * products.query_scales[..., None]
    found = reference.attend(queries, groups.with_centroids(mean_queries), left, seen, known, routing, settings, scale)
    assert relative_error(output, found) < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [64, 128])
def test_hardly_anything_is_lost_beside_what_skipped_blocks_lose(dim, dtype):
    q, k, v = clustered(1000, topics=60, dim=dim, spread=2, dtype=dtype)
    errors = [relative_error(sparse_attention(q, k, v, settings).output, dense(q, k, v)) for settings in (FULL, INT8)]
    assert 0.01 < errors[0] and errors[1] < 1.05 * errors[0]


def with_outlier(k, channel=7):
    """Keys of which one channel is 40 times as large as the others."""
    return torch.where(torch.arange(k.shape[-1]) == channel, 40 * k, k)


def test_an_outlier_channel_costs_little():
    q, k, v = (tensor.bfloat16() for tensor in clustered(2000, topics=100, dim=128, spread=2))
    k = with_outlier(k)
    errors = [relative_error(sparse_attention(q, k, v, settings).output, dense(q, k, v)) for settings in (FULL, INT8)]
    assert 0.01 < errors[0] and errors[1] < 1.2 * errors[0]


def test_an_outlier_channel_costs_much_without_the_rotation(monkeypatch):
    monkeypatch.setattr(STAGE, "rotated", lambda rows, dtype: rows.to(dtype))
    q, k, v = (tensor.bfloat16() for tensor in clustered(2000, topics=100, dim=128, spread=2))
    k = with_outlier(k)
    errors = [relative_error(sparse_attention(q, k, v, settings).output, dense(q, k, v)) for settings in (FULL, INT8)]
    assert errors[1] > 1.2 * errors[0]


def test_text_takes_nothing_from_the_precision_of_the_video():
    q, k, v = clustered(300)
    near, *_ = quantized(q, k, v)
    k[:, :, -TEXT:] *= 100
    far, *_ = quantized(q, k, v)
    assert torch.equal(near.keys, far.keys) and torch.equal(near.quantized.key_scales, far.quantized.key_scales)
    assert (far.quantized.extra_scales > 10 * near.quantized.extra_scales).all()


def test_a_precision_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="precision is 'int4'; choose one of full, int8"):
        Settings(precision="int4")


def test_a_negative_scale_is_refused():
    with pytest.raises(ValueError, match="scale is -0.1; precision int8 takes none below 0"):
        sparse_attention(*clustered(40), INT8, scale=-0.1)
