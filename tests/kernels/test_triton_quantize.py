"""The kernels that make int8 of queries and keys against the torch stage."""

import pytest
import torch
from kernel_inputs import relative_error
from svg_ear.kernels import torch_stages
from svg_ear.kernels.behind import rows_behind
from svg_ear.kernels.types import Conditioning
from triton_cases import arranged, dtypes, inputs, layouts, lengths

pytest.importorskip("triton")
from svg_ear.kernels import triton_stages  # noqa: E402

SCALES = ("key_scales", "extra_scales", "mean_query_scales", "query_scales")
INTEGERS = ("key_means", "extra", "mean_queries", "queries")


def arguments(tokens, text=0, layout="heads first", **options):
    q, k, v = (arranged(tensor, layout) for tensor in inputs(tokens + text, heads=2, **options))
    queries, keys, values = (tensor[:, :, text:] for tensor in (q, k, v))
    groups, clusters = (torch_stages.cluster(rows, min(tokens, 7), 1) for rows in (queries, keys))
    return queries, keys, values, clusters, k[:, :, :text], groups


def check(given, dtype):
    plain, found = torch_stages.quantize(*given), triton_stages.quantize(*given)
    assert torch.equal(plain.values, found.values) and not rows_behind(found.values).any()
    # Sums in another order: an integer may be the other of two that are equally near.
    pairs = {name: (getattr(plain.quantized, name), getattr(found.quantized, name)) for name in (*INTEGERS, *SCALES)}
    for name, (expected, value) in (pairs | {"keys": (plain.keys, found.keys)}).items():
        assert value.shape == expected.shape and value.dtype == expected.dtype and value.is_contiguous(), name
        if name in SCALES:
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
        elif value.numel():
            off = (value.int() - expected.int()).abs()
            assert off.max() <= 1 and off.float().mean() < 0.01, name
    return found


@dtypes
@lengths
def test_gives_what_torch_gives(tokens, dtype):
    check(arguments(tokens, 11, dtype=dtype), dtype)


@layouts
@pytest.mark.parametrize("dim", [64, 128])
def test_strides_do_not_matter(layout, dim):
    found = check(arguments(65, 5, layout, dim=dim), torch.float16)
    expected = triton_stages.quantize(*arguments(65, 5, dim=dim))
    assert torch.equal(found.keys, expected.keys) and torch.equal(found.quantized.extra, expected.quantized.extra)


def test_no_text_and_large_offsets():
    queries, keys, values, _, extra, groups = arguments(130)
    keys = keys + 30
    check((queries, keys, values, torch_stages.cluster(keys, 7, 1), extra, groups), torch.float16)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_probe_of_keys_that_are_all_alike_and_of_no_query(weighted):
    """Factors of zero: logits are zero, and keys that do not exist have no weight all the same."""
    queries, keys, values, clusters, extra, groups = arguments(70, 5)
    keys = keys[:, :, :1].expand_as(keys).contiguous()
    given = (
        torch.zeros_like(queries),
        keys,
        values,
        torch_stages.cluster_as(keys, clusters),
        extra,
        torch_stages.cluster_as(0 * queries, groups),
    )
    sorted_keys = triton_stages.quantize(*given)
    conditioning, summaries = Conditioning(extra, values[:, :, :5]), torch_stages.summarize(sorted_keys)
    call = (given[5].centroids, sorted_keys, conditioning, summaries, weighted, 0.125)
    plain, found = torch_stages.probe_tokens(*call), triton_stages.probe_tokens(*call)
    for name in ("errors", "masses", "output_norms"):
        assert relative_error(getattr(found, name), getattr(plain, name)) < 2e-3, name


def test_a_head_dimension_that_int8_cannot_is_refused():
    with pytest.raises(ValueError, match="the head dimension is 16; precision int8 computes 32, 64, 128, 256"):
        triton_stages.quantize(*arguments(40, dim=16))
