"""The probe kernel where a call does not go easily: an empty cluster at the end of the memory."""

import pytest
import torch
from kernel_inputs import relative_error
from svg_ear.kernels import torch_stages
from svg_ear.kernels.types import Conditioning
from triton_cases import DEVICE, inputs

pytest.importorskip("triton")
from svg_ear.kernels import triton_stages  # noqa: E402


@pytest.mark.parametrize("weighted", [True, False])
def test_an_empty_last_cluster_sees_nothing_behind_the_keys(weighted):
    queries, keys, values = inputs(70, heads=2)
    labels = (torch.arange(70, device=DEVICE) % 4).expand(1, 2, 70)
    clusters = torch_stages.cluster_from_labels(keys, labels, keys[:, :, :5])
    assert clusters.sizes[..., 4].max() == 0
    sorted_keys = triton_stages.permute(keys, values, clusters)
    summaries = torch_stages.summarize(sorted_keys)
    arguments = (queries[:, :, :3].float(), sorted_keys, Conditioning(keys[:, :, :0], values[:, :, :0]), summaries, weighted, 0.125)
    plain, found = torch_stages.probe_tokens(*arguments), triton_stages.probe_tokens(*arguments)
    for name in ("errors", "masses", "output_norms"):
        assert relative_error(getattr(found, name), getattr(plain, name)) < 2e-3
    assert not weighted or found.centroids.values.isfinite().all()
