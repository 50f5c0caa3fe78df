"""Whole calls with the Triton stages against the torch stages: probe, routing and attention together."""

import pytest
import torch
from kernel_inputs import relative_error
from svg_ear.kernels import SequenceLayout, Settings, sparse_attention
from triton_cases import dtypes, inputs

pytest.importorskip("triton")
LAYOUT = SequenceLayout(range(7, 140), (range(0, 5), range(140, 149)))
COUNTS = {"query_clusters": 5, "key_clusters": 11, "kmeans_first": 2}


@dtypes
@pytest.mark.parametrize(
    "settings",
    [
        Settings(density=0.25, **COUNTS),
        Settings(density=0.25, weighted_centroids=False, key_metric=False, **COUNTS),
        Settings(density=0.0, **COUNTS),
        Settings(density=1.0, **COUNTS),
        Settings(budget="top-p", top_p=0.7, min_share=0.3, **COUNTS),
        Settings(method="svg2", density=0.2, **COUNTS),
    ],
    ids=str,
)
def test_a_call_gives_what_torch_gives(settings, dtype):
    q, k, v = inputs(149, dtype, heads=1)
    plain, fused = (
        sparse_attention(q, k, v, settings, layouts=LAYOUT, implementation=name).output[:, :, 7:140] for name in ("torch", "triton")
    )
    tolerance = {torch.float32: 2e-3 if q.is_cuda else 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert relative_error(fused, plain) < tolerance
