"""Any sampler run with a patched model: dense's answer within the method's error or a named reason, and a report of it."""

import copy
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest
import torch
from fake_comfyui import MODELS, Harness
from hypothesis import given
from patch_strategies import SamplerRun, sampler_runs
from svg_ear.nodes.recording.reasons import REASONS
from svg_ear.nodes.recording.record import Found
from svg_ear.nodes.recording.summary import headline, report
from svg_ear.nodes.showing.payload import payload
from test_kernels import examples
from torch.nn.functional import scaled_dot_product_attention

ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
RESULTS = {
    "latent": torch.zeros(1, 4),
    "nan": torch.full((1, 4), torch.nan),
    "half": torch.ones(1, 4).half(),
    "tuple": (torch.zeros(1, 4), {}),
    "list": [torch.zeros(1, 4)],
    "dict": {"samples": torch.zeros(1, 4)},
}
# Reasons that are counted for a whole evaluation, whose calls are not seen.
OF_EVALUATIONS = ("unknown-architecture", "not-video", "never-asked")
ODD_OPTIONS = {
    "context_window": [None, SimpleNamespace(index_list=[0, 1]), SimpleNamespace(), SimpleNamespace(index_list=[])],
    "uuids": [[], ["a"], ["a", "b"], ("c",)],
    "patches_replace": [{}, {"dit": {}}, {"dit": {("double_block", 1): None}}, {"other": {}}],
    "cond_or_uncond": [[], [0], [1, 0], [7]],
    "other": [None, torch.zeros(2), "text", {"a": 1}],
    "sigmas": [None, torch.tensor(0.5), torch.tensor([0.3, 0.3]), torch.tensor([[2.0]])],
}
SCHEDULES = {
    "rising": torch.linspace(0, 1, 6),
    "two sigmas": torch.tensor([1.0, 0.0]),
    "many": torch.linspace(1, 0, 200),
}


def dense(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **options):
    """What ComfyUI's attention functions compute, shared key heads included."""
    if not skip_reshape:
        q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    given = {"attn_mask": mask, "scale": options.get("scale"), "enable_gqa": bool(options.get("enable_gqa"))}
    out = scaled_dot_product_attention(q, k, v, **given)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


class Played(Harness):
    """A harness whose dense attention knows shared key heads, and which hands on what an evaluation is given besides."""

    def __init__(self, run: SamplerRun):
        super().__init__(run.model, **run.widgets)
        model = type(run.model, (MODELS[run.model],), {})()
        if run.patch_size is not ...:
            model.patch_size = run.patch_size
        self.base_model.diffusion_model = model
        self.sample_sigmas = SCHEDULES.get(run.schedule, self.sample_sigmas)

    def _func(self, *args, **kwargs):
        self.dense_calls += 1
        kwargs.pop("transformer_options")
        return dense(*args, **kwargs)


def arguments(call):
    """Positional and named arguments of an attention call."""
    named = {"mask": call.read_mask(), "skip_reshape": call.skip_reshape, "skip_output_reshape": call.skip_output_reshape}
    return (*call.tensors(), call.heads), named | call.options


def compare(found, call, is_dense, is_exact):
    """``found`` is what dense attention gives: bit for bit, up to rounding where ``is_exact``, or within the method's error."""
    given, named = arguments(call)
    expected = dense(*given, **named)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if is_dense:
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
        return
    assert not any(call.gradients) or not torch.is_grad_enabled()
    wide = dense(*(tensor.double() for tensor in given[:3]), *given[3:], **named | {"mask": _widened(named["mask"])})
    fine = wide.isfinite()
    assert found.isfinite()[fine].all()
    limit = ROUNDING[call.dtype] * given[2].abs().max()
    if is_exact:
        assert ((found.double() - wide).abs() <= limit)[fine].all()
    else:
        assert (found.abs() <= given[2].abs().max() + limit)[fine].all()


def _widened(mask):
    return mask if mask is None or mask.dtype == torch.bool else mask.double()


def is_dense_fine(call):
    """Whether dense attention takes the call, which is all that is asked of the patch then."""
    given, named = arguments(call)
    try:
        dense(*given, **named)
    except (RuntimeError, ValueError, IndexError):
        return False
    return True


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """Thousands of reasons are logged."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@examples(200)
@given(sampler_runs())
def test_runs_are_dense_or_close_to_it(run):
    played, calls, sparse = Played(run), 0, 0

    def body():
        nonlocal calls, sparse
        for evaluation in run.evaluations:
            fine = [call for call in evaluation.attended if is_dense_fine(call)]

            def blocks(attention):
                nonlocal calls, sparse
                for call in fine:
                    given, named = arguments(call)
                    before = played.dense_calls
                    found = attention(*given, **named, block=call.block, block_type=call.block_type)
                    is_dense = played.dense_calls > before
                    calls, sparse = calls + 1, sparse + (not is_dense)
                    compare(found, call, is_dense, run.widgets.get("density") == 1 and run.widgets.get("precision") != "int8")

            options = {name: ODD_OPTIONS[name][choice] for name, choice in evaluation.transformer_options.items()}
            if run.schedule == "missing":
                options["sample_sigmas"] = None
            step = min(evaluation.step, 1) if run.schedule == "two sigmas" else evaluation.step
            played.evaluate(blocks, step=step, shape=evaluation.shape, **options)

    record = played.sample(body, copy.deepcopy(RESULTS[run.result]))
    assert record.completed
    told = sum(count for reason, count in record.dense_calls.items() if reason.name not in OF_EVALUATIONS)
    whole = sum(record.dense_calls.values()) - told
    assert record.sparse_calls == sparse and whole <= len(run.evaluations)
    assert told == calls - sparse if not whole else told <= calls - sparse
    assert all(REASONS[reason.name].name == reason.name and reason.sentence for reason in record.dense_calls)
    check_record(record)


def check_record(record):
    """What is recorded is finite, and can be told in words and to a browser."""
    times = record.times
    figures = [record.seconds, *times.stages.values()]
    figures += [value for value in (record.density, record.estimated_error, times.speed_up, times.saved) if value is not None]
    assert all(torch.isfinite(torch.tensor(figures)).tolist())
    # Where there is no estimate of the error there is no number, which data and words leave out.
    assert not any(numpy.isinf(table).any() for table in record.trace.sparse.values())
    runs = Found((record,), record, True, True)
    assert headline(record) and report(runs) and report(replace(runs, is_match=False))
    for chosen in (None, *record.trace.maps):
        json.dumps(payload(runs, chosen), allow_nan=False)
