import threading

import pytest
import torch
from fake_comfyui import DIM, HEADS, Harness, counts, dense, dense_reasons, qkv, split
from svg_ear import kernels
from svg_ear.kernels import SequenceLayout
from svg_ear.nodes.patch import evaluation
from svg_ear.nodes.patch.call import AttentionCall
from svg_ear.nodes.patch.override import EVALUATION, OVERRIDE
from svg_ear.nodes.patch.sequence import apply_mask
from svg_ear.nodes.recording.reasons import REASONS, StrictModeError
from svg_ear.nodes.recording.record import Found
from svg_ear.nodes.recording.summary import report


@pytest.mark.parametrize("skip_reshape", [False, True])
@pytest.mark.parametrize("skip_output_reshape", [False, True])
def test_both_layouts_at_full_density(skip_reshape, skip_output_reshape):
    played, tensors = Harness(density=1.0), qkv()
    given = split(tensors) if skip_reshape else tensors
    layout = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
    found = played.evaluate(lambda attention: attention(*given, heads=HEADS, scale=0.05, **layout))
    expected = dense(*given, HEADS, scale=0.05, **layout)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert played.dense_calls == 0


def test_output_is_not_copied():
    found = Harness().evaluate(lambda attention: attention(*qkv(), HEADS))
    assert found.is_contiguous() and found._base is not None


def test_text_of_hunyuan_is_exact_and_masked():
    played, tensors = Harness("hunyuan", density=1.0), split(qkv(106))
    mask = torch.zeros(1, 1, 106)
    mask[..., 7:10] = -3.4e38
    found = played.evaluate(lambda attention: attention(*tensors, HEADS, mask=mask, skip_reshape=True))
    expected = dense(*tensors, HEADS, mask=mask, skip_reshape=True)
    torch.testing.assert_close(found[:, 10:], expected[:, 10:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, :7], expected[:, :7], atol=1e-5, rtol=1e-4)


def test_batch_items_may_have_masks_of_their_own():
    played, tensors = Harness("hunyuan", density=1.0), split(qkv(100, batch=2))
    mask = torch.ones(2, 1, 1, 100, dtype=torch.bool)
    mask[1, ..., 2:4] = False
    found = played.evaluate(
        lambda attention: attention(*tensors, HEADS, mask=mask, skip_reshape=True), cond_or_uncond=[1, 0], uuids=["u", "c"]
    )
    expected = dense(*tensors, HEADS, mask=mask, skip_reshape=True)
    torch.testing.assert_close(found[:, 4:], expected[:, 4:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kinds", "batch", "owners"),
    [
        ([1, 0], 2, (1, 1)),
        ([0, 1], 2, (0, 0)),
        ([1, 0], 4, (2, 3, 2, 3)),
        ([0], 2, None),
        ([1], 1, None),
        ([1, 0, 0], 3, None),
        ([0, 2], 2, None),
    ],
)
def test_both_branches_of_guidance_take_the_clusters_of_cond(monkeypatch, kinds, batch, owners):
    seen = []
    inner = kernels.sparse_attention
    monkeypatch.setattr(kernels, "sparse_attention", lambda *args, **named: seen.append(named["owners"]) or inner(*args, **named))
    record = (played := Harness()).sample(
        lambda: played.evaluate(
            lambda attention: attention(*qkv(batch=batch), HEADS), cond_or_uncond=kinds, uuids=list("abc")[: len(kinds)]
        )
    )
    assert seen == [owners] and record.sparse_calls == 1


def test_branches_whose_video_lies_elsewhere_have_clusters_of_their_own():
    played, near, far = Harness(), SequenceLayout(range(0, 96)), SequenceLayout(range(4, 100))

    def body(attention):
        found.extend(current[0].owners(2, layouts) for layouts in ((near,), (near, near), (near, far)))

    found, current = [], []
    inner = played.patch._evaluation
    played.patch._evaluation = lambda *args: current.append(inner(*args)) or current[-1]
    played.sample(lambda: played.evaluate(body, cond_or_uncond=[1, 0], uuids=["u", "c"]))
    assert found == [(1, 1), (1, 1), None]


def test_mask_is_read_once_per_evaluation(monkeypatch):
    read = []
    played, tensors = Harness("hunyuan"), split(qkv(100))
    mask = torch.zeros(1, 1, 100)
    monkeypatch.setattr(evaluation, "apply_mask", lambda *args: read.append(1) or apply_mask(*args))

    def blocks(attention):
        for block in range(2):
            attention(*tensors, HEADS, mask=mask, skip_reshape=True, block=block)

    played.evaluate(blocks)
    assert len(read) == 1


@pytest.mark.parametrize(
    ("reason", "model", "call", "evaluation"),
    [
        ("cross-attention", "wan", {"key_tokens": 12}, {}),
        ("grouped-query", "wan", {"key_heads": 1, "enable_gqa": True}, {}),
        ("full-precision", "wan", {"low_precision_attention": False}, {}),
        ("unknown-option", "wan", {"window": (3, 3)}, {}),
        ("unknown-option", "wan", {"bias": torch.ones(2)}, {}),
        ("unknown-architecture", "unknown", {}, {}),
        ("token-refiner", "hunyuan", {"block": None}, {}),
        ("not-video", "wan", {}, {"shape": (1, 16, 8, 16)}),
        ("unknown-tokens", "wan", {"tokens": 80}, {}),
        ("unknown-tokens", "ltx", {}, {}),
        ("mask-varies-over-queries", "wan", {"mask": torch.zeros(96, 96)}, {}),
        ("mask-hides-video", "wan", {"mask": torch.full((1, 1, 96), -1e9)}, {}),
        ("mask-weights-keys", "wan", {"mask": torch.full((1, 1, 96), 0.5)}, {}),
        ("head-dim", "wan", {"dim": 32}, {}),
        ("dtype", "wan", {"dtype": torch.float64}, {}),
    ],
)
def test_refusals_run_dense_with_their_reason(reason, model, call, evaluation):
    rest = dict(call)
    tokens, dim, dtype = rest.pop("tokens", 96), rest.pop("dim", DIM), rest.pop("dtype", torch.float32)
    q, k, v = (t.to(dtype) for t in qkv(tokens, dim=dim))
    if "key_tokens" in rest:
        k, v = (t[:, : rest["key_tokens"]] for t in (k, v))
        rest.pop("key_tokens")
    if "key_heads" in rest:
        k, v = (t[..., : rest["key_heads"] * dim] for t in (k, v))
        rest.pop("key_heads")
    seen = []
    played = Harness(model)
    played._func = lambda *args, **kwargs: seen.append((args, kwargs)) or "dense"

    def body(attention):
        assert attention(q, k, v, heads=HEADS, **rest) == "dense"

    assert dense_reasons(played, body, **evaluation) == {reason: 1}
    (args, kwargs), *others = seen
    assert not others and args[0] is q
    passed = {name: value for name, value in rest.items() if name != "block"}
    assert {name: kwargs[name] for name in passed} == passed

    strict = Harness(model, strict=True)
    strict._func = played._func
    if REASONS[reason].by_design:
        strict.evaluate(body, **evaluation)
    else:
        with pytest.raises(StrictModeError, match=reason):
            strict.evaluate(body, **evaluation)


def test_settings_that_keep_calls_dense():
    def one(attention):
        attention(*qkv(), HEADS)

    def last(attention):
        attention(*qkv(), HEADS, block=3)

    assert dense_reasons(Harness(min_tokens=97), one) == {"short-sequence": 1}
    assert dense_reasons(Harness(dense_first_steps=1), one, step=0) == {"warm-up-step": 1}
    assert dense_reasons(Harness(dense_last_steps=1), one, step=4) == {"last-steps": 1}
    assert dense_reasons(Harness(start_percent=0.5), one, step=1) == {"outside-window": 1}
    assert dense_reasons(Harness(dense_blocks="-1"), last) == {"dense-block": 1}
    assert dense_reasons(Harness(dense_blocks="-1"), one) == {}


def test_unsupported_device_is_named_in_words(monkeypatch):
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: f"device type {device.type!r} is too old")
    record = (played := Harness()).sample(lambda: played.evaluate(lambda attention: attention(*qkv(), HEADS)))
    (reason,) = record.dense_calls
    assert reason.name == "device" and "too old" in reason.sentence


def test_ltx_layers_are_known_though_it_does_not_name_them():
    tokens = 3 * 8 * 16

    def blocks(attention):
        for block in range(2):
            attention(*qkv(tokens), HEADS, block=block)
            q, k, v = qkv(tokens)
            attention(q, k[:, :12], v[:, :12], HEADS, block=block)

    assert dense_reasons(Harness("ltx", dense_blocks="1"), blocks) == {"cross-attention": 2, "dense-block": 1}


def test_dense_calls_go_to_the_override_below():
    played = Harness(min_tokens=10**6)
    called = []

    def below(func, *args, **kwargs):
        called.append(func)
        return func(*args, **kwargs)

    played.evaluate(lambda attention: attention(*qkv(), HEADS), **{OVERRIDE: below})
    assert len(called) == 1 and played.dense_calls == 1


def test_does_not_chain_to_itself():
    played = Harness(min_tokens=10**6)
    played.evaluate(lambda attention: attention(*qkv(), HEADS), **{OVERRIDE: played.patch.override})
    assert played.dense_calls == 1


def test_passes_through_outside_an_evaluation():
    played = Harness()
    found = played.patch.override(played._func, *qkv(), HEADS, transformer_options={})
    assert found.shape == (1, 96, HEADS * DIM) and played.dense_calls == 1


def test_leaves_the_options_of_the_caller_alone():
    played, options = Harness(), {"sample_sigmas": torch.tensor([1.0, 0.5, 0.0]), "sigmas": torch.ones(1)}

    def executor(*args, transformer_options):
        assert transformer_options[OVERRIDE] is played.patch.override
        return "output"

    executor.class_obj = played.base_model
    found = played.patch.apply_model(executor, torch.zeros(1, 16, 3, 8, 16), None, transformer_options=options)
    assert found == "output" and OVERRIDE not in options and EVALUATION not in options


def test_states_are_kept_between_steps_and_apart():
    played = Harness()
    held = []

    def body(attention):
        for block in (0, 0, 1):
            attention(*qkv(), HEADS, block=block)

    def steps():
        for step in range(3):
            played.evaluate(body, step=step)
            played.evaluate(body, step=step, uuids=["uncond"], cond_or_uncond=[1])
            held.append(len(played.patch.states))

    played.sample(steps)
    assert held == [6, 6, 6]
    assert len(played.patch.states) == 0


def test_context_windows_have_states_of_their_own():
    played = Harness()
    window = type("Window", (), {})
    for frames in ([0, 1, 2], [2, 3, 4]):
        (shown := window()).index_list = frames
        played.evaluate(lambda attention: attention(*qkv(), HEADS), context_window=shown)
    assert len(played.patch.states) == 2


def test_out_of_memory_runs_dense_once(monkeypatch):
    played, sparse = Harness(), kernels.sparse_attention
    failing = [True, False]

    def limited(*args, **kwargs):
        if failing.pop(0):
            raise torch.OutOfMemoryError("no memory")
        return sparse(*args, **kwargs)

    monkeypatch.setattr(kernels, "sparse_attention", limited)

    def body(attention):
        attention(*qkv(), HEADS)
        assert len(played.patch.states) == 0
        attention(*qkv(), HEADS)

    record = played.sample(lambda: played.evaluate(body))
    assert counts(record) == {"out-of-memory": 1} and record.sparse_calls == 1


def test_other_errors_are_not_swallowed(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("launch failed")

    monkeypatch.setattr(kernels, "sparse_attention", broken)
    with pytest.raises(RuntimeError, match="launch failed"):
        Harness().evaluate(lambda attention: attention(*qkv(), HEADS))


def test_two_threads_count_together():
    played = Harness()

    def worker(branch):
        for step in range(3):
            played.evaluate(lambda attention: [attention(*qkv(), HEADS, block=block) for block in range(4)], step=step, uuids=[branch])

    def run():
        threads = [threading.Thread(target=worker, args=(branch,)) for branch in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(played.patch.states) == 8

    assert played.sample(run).sparse_calls == 24


def test_compiled_blocks_call_the_override_without_compiling_anew():
    played = Harness()
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    @torch.compile(backend=backend)
    def block(tensors, transformer_options):
        # as ComfyUI's attention functions look it up
        attention = transformer_options[OVERRIDE]
        return attention(dense, *(2 * t for t in tensors), HEADS, transformer_options=transformer_options) + 1

    def executor(*args, transformer_options):
        return block(qkv(), transformer_options | {"block_index": 0, "block_type": "double"})

    executor.class_obj = played.base_model
    counted = []

    def steps():
        for sigma in played.sample_sigmas[:-1]:
            given = {"sample_sigmas": played.sample_sigmas, "sigmas": sigma[None], "uuids": ["cond"]}
            played.patch.apply_model(executor, torch.zeros(1, 16, 3, 8, 16), None, transformer_options=given)
            counted.append(len(compilations))

    assert played.sample(steps).sparse_calls == 5
    assert counted[0] > 0 and counted[-1] == counted[0]


def test_a_compiled_model_is_recognised():
    class WanModel(torch.nn.Module):
        patch_size, blocks = (1, 2, 2), [None] * 4

    played = Harness()
    played.base_model.diffusion_model = torch.compile(WanModel())
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(), HEADS)))
    assert record.sparse_calls == 1 and record.architecture == "Wan"


def test_training_stays_dense():
    q, k, v = (tensor.requires_grad_() for tensor in qkv())
    assert dense_reasons(Harness(), lambda attention: attention(q, k, v, HEADS)) == {"training": 1}


def test_a_guidance_that_skips_a_layer_has_states_of_its_own():
    played = Harness("ltx")
    for replaced in ({}, {("double_block", 0): None}):
        evaluation = {"shape": (1, 128, 3, 4, 8), "patches_replace": {"dit": replaced}}
        played.evaluate(lambda attention: attention(*qkv(), HEADS), **evaluation)
    assert len(played.patch.states) == 2


def test_attention_to_an_image_in_full_precision_is_cross_attention():
    q, k, v = qkv()

    def body(attention):
        attention(q, k[:, :20], v[:, :20], HEADS, low_precision_attention=False)

    assert dense_reasons(Harness(), body) == {"cross-attention": 1}


def test_float32_is_computed_in_bfloat16_on_a_gpu_and_returned_as_it_came(monkeypatch):
    given, sparse = [], kernels.sparse_attention

    def watched(q, *args, **kwargs):
        given.append(q.dtype)
        return sparse(q, *args, **kwargs)

    monkeypatch.setattr(kernels, "sparse_attention", watched)
    played, found = Harness(density=1.0), []
    # A CPU computes float32 as it is; here it plays the GPU.
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(AttentionCall, "dtype", dtype)
        record = played.sample(lambda: played.evaluate(lambda attention: found.append(attention(*qkv(), HEADS))))
        assert ("computed in bfloat16" in report(Found((record,), record, True, True))) == (dtype == torch.bfloat16)
    assert given == [torch.float32, torch.bfloat16] and all(output.dtype == torch.float32 for output in found)
    torch.testing.assert_close(found[1], dense(*qkv(), HEADS), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("widgets", "calls"), [({}, 0), ({"precision": "int8"}, 1), ({"precision": "full"}, 0)])
def test_calls_have_the_precision_of_the_widget_and_the_report_says_so(widgets, calls):
    played, outputs = Harness(**widgets), []
    run = played.sample(lambda: outputs.append(played.evaluate(lambda attention: attention(*qkv(), HEADS))))
    assert (run.int8_calls, run.sparse_calls) == (calls, 1)
    text = report(Found(runs=(run,), run=run, is_match=True, is_patched=True))
    assert ("queries and keys in int8 in 1 attention call\n" in text) == bool(calls)
    full = Harness().evaluate(lambda attention: attention(*qkv(), HEADS))
    assert torch.equal(outputs[0], full) != bool(calls)
    torch.testing.assert_close(outputs[0], full, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("tokens", "measured", "calls"), [(96, True, 1), (97, True, 0), (96, False, 0)])
def test_automatic_precision_is_that_of_the_length_of_the_video(monkeypatch, tokens, measured, calls):
    """As on a GPU where int8 is known to pay, 0 is the CPU here, in calls of a kind that was measured or not."""
    monkeypatch.setattr("svg_ear.nodes.patch.lengths.INT8_FROM", {0: ((HEADS, tokens),)})
    monkeypatch.setattr("svg_ear.nodes.patch.override.measured_in_int8", lambda dtype, head_dim: measured)
    played = Harness("hunyuan")
    run = played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(96 + 9), HEADS)))
    assert (run.int8_calls, run.sparse_calls) == (calls, 1)
