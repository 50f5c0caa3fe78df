"""Whatever stands beside the node: models that it does not know, compilers, guidance, other names of the same failures."""

import pytest
import torch
from fake_comfyui import DIM, HEADS, MODELS, Harness, LTXVModel, WanModel, counts, dense, dense_reasons, flow_sigma, qkv, split
from svg_ear import kernels
from svg_ear.kernels.calibration import Calibration
from svg_ear.nodes.calibrating.gathering import CalibratingPatch
from svg_ear.nodes.patch.compiled import COMPILED
from svg_ear.nodes.patch.memory import is_out_of_memory
from svg_ear.nodes.patch.options import Options
from svg_ear.nodes.patch.override import OVERRIDE
from svg_ear.nodes.patch.schedule import Schedule
from svg_ear.nodes.recording.reasons import WARM_UP_STEP, StrictModeError


def one(attention):
    attention(*qkv(), HEADS)


@pytest.mark.parametrize("patch_size", [2, None, (2, 2), "2", (0, 2, 2)])
@pytest.mark.parametrize("shape", [(1, 16, 8, 16), (1, 16, 3, 8, 16), (1, 16, 64)])
def test_an_unknown_model_runs_as_it_was_whatever_it_looks_like(monkeypatch, patch_size, shape):
    monkeypatch.setattr(MODELS["unknown"], "patch_size", patch_size, raising=False)
    given = []

    def below(func, *args, **kwargs):
        given.append(kwargs["transformer_options"])
        return func(*args, **kwargs)

    played = Harness("unknown")
    options = {"shape": shape, "sample_sigmas": None, "sigmas": None, "cond_or_uncond": None, "patches_replace": None}
    assert dense_reasons(played, one, **options | {OVERRIDE: below}) == {"unknown-architecture": 1}
    assert given[0][OVERRIDE] is below
    (reason,) = played.patch.recorder.newest().dense_calls
    assert "Unknown" in reason.sentence


@pytest.mark.parametrize("patch_size", [2, (2, 2), None])
def test_a_known_model_without_a_video_patch_is_no_video(monkeypatch, patch_size):
    monkeypatch.setattr(WanModel, "patch_size", patch_size)
    assert set(dense_reasons(Harness(), one, shape=(1, 16, 8, 16))) == {"not-video"}


def test_odd_options_do_not_raise():
    odd = {"sigmas": torch.tensor([]), "cond_or_uncond": None, "uuids": None, "patches_replace": {"dit": None}, "context_window": object()}
    assert dense_reasons(Harness(), one, **odd) == {}


class Compiled:
    """A compiled diffusion model: ``run`` is what it does instead of asking for attention."""

    def __init__(self, model):
        self._orig_mod = model


def test_code_compiled_without_an_override_is_thrown_away_and_said(monkeypatch):
    played, resets = Harness(), []
    played.base_model.diffusion_model = Compiled(WanModel())
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))

    def steps():
        played.evaluate(lambda attention: None, step=0)
        for step in (1, 2):
            played.evaluate(one if resets else lambda attention: None, step=step)

    record = played.sample(steps)
    assert record.sparse_calls == 2 and counts(record) == {"compiled-without": 1} and len(resets) == 1


def test_a_model_that_never_asks_is_said_and_stops_strict_mode():
    assert dense_reasons(Harness(), lambda attention: None) == {"never-asked": 1}
    with pytest.raises(StrictModeError, match="never-asked"):
        dense_reasons(Harness(strict=True), lambda attention: None)
    with pytest.raises(StrictModeError, match="never-asked"):
        Harness(strict=True).sample(lambda: None)


def test_steps_that_a_cache_skips_are_no_fault():
    played = Harness(strict=True)
    record = played.sample(lambda: [played.evaluate(body, step=step) for step, body in enumerate((one, lambda attention: None, one))])
    assert record.sparse_calls == 2 and not record.dense_calls


def calibrating():
    """A harness whose patch gathers a calibration."""
    played = Harness()
    played.patch = CalibratingPatch(Calibration(), min_tokens=0)
    return played


@pytest.mark.parametrize("make", [Harness, calibrating])
def test_a_whole_graph_is_refused_before_sampling(make):
    played = make()
    played.model_options = {COMPILED: {"fullgraph": True}}
    with pytest.raises(ValueError, match="fullgraph"):
        played.sample(lambda: pytest.fail("sampled"))


@pytest.mark.parametrize("skipped", [{"stg_self_attn_blocks": {1}}, {"a2v_cross_attn": False}, {"patches_replace": {"dit": {"x": 1}}}])
def test_an_evaluation_that_leaves_something_out_has_states_of_its_own(skipped):
    played = Harness("ltx")
    for options in ({}, skipped):
        played.evaluate(lambda attention: attention(*qkv(), HEADS), shape=(1, 128, 3, 4, 8), **options)
    assert len(played.patch.states) == 2


def test_a_layer_may_change_its_dtype():
    played = Harness()

    def both():
        for step, dtype in enumerate((torch.float32, torch.bfloat16, torch.float32)):
            played.evaluate(lambda attention, dtype=dtype: attention(*(t.to(dtype) for t in qkv()), HEADS), step=step)

    assert played.sample(both).sparse_calls == 3


@pytest.mark.parametrize("name", ["k", "v"])
def test_gradients_of_any_input_are_training(name):
    tensors = dict(zip("qkv", qkv()))
    tensors[name].requires_grad_()
    assert dense_reasons(Harness(), lambda attention: attention(*tensors.values(), HEADS)) == {"training": 1}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_out_of_memory_has_many_names(monkeypatch, error):
    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(kernels, "sparse_attention", failing)
    assert dense_reasons(Harness(), one) == {"out-of-memory": 1}
    assert not is_out_of_memory(RuntimeError("launch failed")) and not is_out_of_memory(ValueError("out of memory"))


def test_a_part_of_the_queries_is_not_cross_attention():
    q, k, v = qkv()

    def frame(attention):
        attention(q[:, :32], k, v, HEADS)

    assert dense_reasons(Harness(), frame) == {"partial-queries": 1}
    with pytest.raises(StrictModeError, match="partial-queries"):
        dense_reasons(Harness(strict=True), frame)
    longer = torch.cat((k, k), 1)
    assert dense_reasons(Harness(), lambda attention: attention(q, longer, longer, HEADS)) == {"partial-queries": 1}
    assert dense_reasons(Harness(min_tokens=500), lambda attention: attention(q, longer, longer, HEADS)) == {"cross-attention": 1}


def test_the_audio_beside_a_video_is_dense_by_design(monkeypatch):
    for name, value in (("num_attention_heads", HEADS), ("attention_head_dim", DIM)):
        monkeypatch.setattr(LTXVModel, name, value, raising=False)
    for name, value in (("num_attention_heads", HEADS), ("attention_head_dim", DIM // 2)):
        monkeypatch.setattr(LTXVModel, f"audio_{name}", value, raising=False)
    video, audio = qkv(), qkv(20, dim=DIM // 2)
    from_video = qkv(96, dim=DIM // 2)

    def blocks(attention):
        attention(*video, HEADS)
        attention(*audio, HEADS)
        attention(audio[0], *from_video[1:], HEADS)

    played = Harness("ltx", strict=True)
    record = played.sample(lambda: played.evaluate(blocks, shape=(1, 128, 3, 4, 8)))
    assert record.sparse_calls == 1 and counts(record) == {"other-stream": 2}


def test_a_mask_that_is_written_to_is_read_again():
    played, tensors = Harness("hunyuan"), split(qkv(100))
    for inference in (False, True):
        with torch.inference_mode(inference):
            mask = torch.zeros(1, 1, 100)

            def blocks(attention, mask=mask):
                found = []
                for hidden in (0, 2):
                    mask[..., :hidden] = -1e9
                    found.append(attention(*tensors, HEADS, mask=mask, skip_reshape=True))
                return found

            played.patch.options = Options(preset="balanced", density=1.0, min_tokens=0, dense_blocks="", dense_first_steps=0)
            played.patch.settings = played.patch.options.settings()
            _, found = played.evaluate(blocks, uuids=[str(inference)])
            expected = dense(*tensors, HEADS, mask=mask, skip_reshape=True)
            torch.testing.assert_close(found[:, 4:], expected[:, 4:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("steps", "warm_up"), [(5, 1), (10, 2)])
def test_a_schedule_that_starts_below_full_noise_begins_all_the_same(steps, warm_up):
    """As ddim_uniform's does, one step of it below."""
    sigmas = [flow_sigma((step + 1) / (steps + 1)) for step in range(steps + 1)]
    begun, continued = (Schedule(sigmas, flow_sigma, Options(warm_up_density=0.0), begins) for begins in (True, False))
    assert [begun.dense_reason(sigma) for sigma in sigmas[:-1]].count(WARM_UP_STEP) == warm_up
    assert [continued.dense_reason(sigma) for sigma in sigmas[:-1]].count(WARM_UP_STEP) == warm_up - 1


def test_a_run_from_nothing_but_noise_begins_the_denoising():
    for latent, dense_steps in ((torch.zeros(1, 4), 1), (torch.ones(1, 4), 0)):
        played = Harness(dense_first_steps=-1, warm_up_density=0.0)
        played.sample_sigmas = torch.tensor([flow_sigma((step + 1) / 6) for step in range(6)])
        record = played.sample(lambda played=played: [played.evaluate(one, step=step) for step in range(5)], latent=latent)
        assert record.dense_calls.get(WARM_UP_STEP, 0) == dense_steps and record.sparse_calls == 5 - dense_steps
