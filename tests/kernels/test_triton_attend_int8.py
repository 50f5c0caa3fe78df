"""The int8 attention kernel where what the probe expects of a group is far from what its rows find."""

import pytest
import torch
from kernel_inputs import relative_error
from svg_ear.kernels import Settings, torch_stages
from svg_ear.kernels.types import Conditioning
from triton_cases import inputs

pytest.importorskip("triton")
from svg_ear.kernels import triton_stages  # noqa: E402

# What overflows inside the interpreter is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SETTINGS = Settings(density=0.25, precision="int8")


def attended(settings, shift, text=5, dtype=torch.float32, factor=1.0):
    """Output of both packages with ``shift`` added to what the probe expects, and what is left of that."""
    q, k, v = inputs(120 + text, dtype, heads=2, spread=1.0)
    queries, keys, values = (tensor[:, :, text:] for tensor in (factor * q, k, v))
    groups, clusters = (torch_stages.cluster(rows, count, 2) for rows, count in ((queries, 3), (keys, 11)))
    conditioning, scale = Conditioning(k[:, :, :text], v[:, :, :text]), 0.125
    outputs = []
    for stages in (torch_stages, triton_stages):
        sorted_keys = stages.quantize(queries, keys, values, clusters, conditioning.keys, groups)
        summaries = stages.summarize(sorted_keys)
        if settings.compensates:
            probe = stages.probe_tokens(groups.centroids, sorted_keys, conditioning, summaries, settings.weights_centroids, scale)
        else:
            probe = stages.probe_centroids(groups.centroids, conditioning, summaries, scale)
        routing = stages.route(probe, clusters, settings)
        if probe.log_denominators is not None:
            probe.log_denominators.add_(shift)
        output = torch.full_like(queries, torch.nan)
        stages.attend(queries, groups, sorted_keys, conditioning, summaries, probe, routing, settings, scale, output)
        outputs.append(output)
    return *outputs, probe.log_denominators


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shift", [0.0, 40.0, -40.0, 300.0, -300.0, torch.inf])
def test_rows_far_from_what_was_expected_are_computed_again(shift, weighted):
    settings = Settings(density=0.25, precision="int8", weighted_centroids=weighted)
    plain, found, references = attended(settings, shift)
    assert relative_error(found, plain) < 1e-4
    assert references.isfinite().all() if abs(shift) < 50 else references.isinf().all()


def test_logits_of_hundreds_are_no_harm():
    plain, found, references = attended(SETTINGS, 0.0, factor=80.0)
    assert not references.isfinite().all()
    assert relative_error(found, plain) < 5e-3


@pytest.mark.parametrize("shift", [0.0, -40.0, 300.0])
def test_float16_holds_what_is_far_from_what_was_expected(shift):
    plain, found, _ = attended(SETTINGS, shift, 5, torch.float16)
    assert relative_error(found, plain) < 2e-3


@pytest.mark.parametrize("text", [0, 5])
def test_dropped_blocks_are_relative_to_the_largest_logit(text):
    plain, found, references = attended(Settings(method="svg2", density=0.25, precision="int8"), torch.nan, text, torch.float16)
    assert relative_error(found, plain) < 2e-3
    assert references is None


def test_a_query_without_a_number_spoils_no_other():
    q, k, v = inputs(120, torch.float32, heads=1)
    q[:, :, 7, 3] = torch.nan
    groups, clusters = (torch_stages.cluster(rows.nan_to_num(), count, 2) for rows, count in ((q, 2), (k, 11)))
    empty = Conditioning(k[:, :, :0], v[:, :, :0])
    sorted_keys = triton_stages.quantize(q, k, v, clusters, empty.keys, groups)
    summaries = triton_stages.summarize(sorted_keys)
    probe = triton_stages.probe_tokens(groups.centroids, sorted_keys, empty, summaries, True, 0.125)
    routing, output = triton_stages.route(probe, clusters, SETTINGS), torch.zeros_like(q)
    triton_stages.attend(q, groups, sorted_keys, empty, summaries, probe, routing, SETTINGS, 0.125, output)
    assert output[:, :, 7].isnan().all() and output.isfinite().sum() == output.numel() - output.shape[-1]
