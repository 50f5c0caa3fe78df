"""Runs that a calibration learns from, and sparse runs that follow it."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import DIM, HEADS, MODELS, Harness, dense, flow_schedule, flow_sigma, qkv, split
from svg_ear.kernels.calibration import Calibration
from svg_ear.nodes.calibrating.gathering import CalibratingPatch, what_is_missing
from svg_ear.nodes.patch.identity import ProfileMismatch, model_identity
from svg_ear.nodes.patch.options import CustomSettings, Options
from svg_ear.nodes.patch.schedule import Schedule
from torch.nn.functional import scaled_dot_product_attention

SHAPE = (1, 16, 3, 20, 32)
TOKENS = 3 * 10 * 16


class Gathering(Harness):
    """Plays a calibrating run."""

    def __init__(self, model="wan", min_tokens=0, **options):
        super().__init__(model)
        self.patch = CalibratingPatch(Calibration(**{"density": 0} | options), min_tokens)

    def run(self, layers=2, steps=5, seed=0, shape=SHAPE, fail=False):
        """One sampler run of ``layers`` and ``steps``; returns the outputs."""
        outputs = []

        def body():
            for step in range(steps):
                self.evaluate(
                    lambda attention: outputs.extend(attention(*video(shape, seed), HEADS, block=layer) for layer in range(layers)),
                    step=step,
                    shape=shape,
                )
            if fail:
                raise RuntimeError("planted")

        def sampler():
            body()
            return torch.zeros(1)

        self.wrap(sampler)
        self.patch.cleanup(None)
        return outputs


def video(shape=SHAPE, seed=0):
    return qkv(shape[2] * shape[3] // 2 * shape[4] // 2, seed=seed)


def gathered(runs=1, **options):
    played = Gathering(**options)
    for seed in range(runs):
        played.run(seed=seed)
    return played


def following(profile, model="wan", compensate=True):
    """A sparse run that follows a calibration."""
    custom = CustomSettings.of(profile, method="calibrated", compensate=compensate)
    return Harness(model, preset="custom", density=0, custom=custom)


def test_calibrating_changes_nothing():
    played = Gathering()
    outputs = played.run()
    for found in outputs:
        torch.testing.assert_close(found, dense(*video(), HEADS), rtol=0, atol=0)
    assert len(outputs) == played.dense_calls == 10
    assert played.patch.calibration.runs == 1


def test_the_profile_is_of_what_ran():
    profile = gathered(2).patch.found()
    profile.check()
    assert profile.model == model_identity(MODELS["wan"](), HEADS, DIM)
    assert profile.model.architecture == "WanModel" and profile.model.layers == 4
    assert (profile.grid, profile.tokens, profile.prompts) == ((3, 10, 16), TOKENS, 2)
    assert profile.sites == ((0, 0), (1, 0)) and len(profile.sigmas) == profile.steps == 5


def test_following_a_calibration_that_keeps_everything_is_dense():
    profile = gathered(energy=1.0).patch.found()
    played = following(profile)
    found = played.evaluate(lambda attention: attention(*video(seed=5), HEADS), shape=SHAPE)
    torch.testing.assert_close(found, dense(*video(seed=5), HEADS), atol=1e-5, rtol=1e-4)
    assert played.dense_calls == 0


def test_text_tokens_are_seen_exactly():
    """HunyuanVideo: text before the video, which no block counts."""
    played, tensors = Gathering("hunyuan", energy=1.0), qkv(TOKENS + 20)
    played.wrap(lambda: played.evaluate(lambda attention: attention(*tensors, HEADS), shape=SHAPE))
    profile = played.patch.found()
    assert profile.tokens == TOKENS
    sparse = following(profile, "hunyuan")
    found = sparse.evaluate(lambda attention: attention(*tensors, HEADS), shape=SHAPE)
    torch.testing.assert_close(found, dense(*tensors, HEADS), atol=1e-5, rtol=1e-4)


def test_other_step_counts_map_by_noise_level():
    profile = gathered().patch.found()
    played = following(profile)
    seen = []
    played.patch.profile = SimpleNamespace(
        differences=profile.differences,
        model=profile.model,
        routing=lambda site, sigma, device: seen.append(profile.step(sigma)) or profile.routing(site, sigma, device),
    )
    played.sample_sigmas = torch.tensor(flow_schedule(9))
    for step in range(9):
        played.evaluate(lambda attention: attention(*video(), HEADS), step=step, shape=SHAPE)
    nearest = [min(range(5), key=lambda own: abs(flow_schedule(5)[own] - sigma)) for sigma in flow_schedule(9)[:-1]]
    assert seen == nearest


def test_what_was_not_calibrated_stays_dense_with_its_reason():
    profile = gathered().patch.found()
    played = following(profile)
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*video(), HEADS, block=3), shape=SHAPE))
    assert [reason.name for reason in record.dense_calls] == ["not-calibrated"]


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        ("wan", (1, 16, 3, 20, 36), "token grid of 3 x 10 x 16 .*, not 3 x 10 x 18 and 480 video tokens, not 540"),
        ("wan", (1, 16, 3, 32, 20), "token grid of 3 x 10 x 16 .*, not 3 x 16 x 10"),
        ("hunyuan", SHAPE, "architecture WanModel, not HunyuanVideo and layers 4, not 5"),
    ],
)
def test_a_calibration_of_something_else_is_refused(model, shape, message):
    played = following(gathered().patch.found(), model)
    with pytest.raises(ProfileMismatch, match=message):
        played.evaluate(lambda attention: attention(*video(shape), HEADS), shape=shape)


def test_other_heads_are_refused():
    played = following(gathered().patch.found())
    with pytest.raises(ProfileMismatch, match="heads 2, not 3"):
        played.evaluate(lambda attention: attention(*qkv(TOKENS, heads=3), 3), shape=SHAPE)


def test_reference_frames_beside_the_video_are_gathered_and_followed():
    """Wan with reference latents has more tokens than the grid: its blocks are raster, and everything kept is dense."""
    tensors = qkv(TOKENS + 160)
    played = Gathering(density=1.0)
    played.wrap(lambda: played.evaluate(lambda attention: attention(*tensors, HEADS), shape=SHAPE))
    profile = played.patch.found()
    assert profile.tokens == TOKENS + 160 and not profile.shapes.any()
    sparse = following(profile)
    found = sparse.evaluate(lambda attention: attention(*tensors, HEADS), shape=SHAPE)
    torch.testing.assert_close(found, dense(*tensors, HEADS), atol=1e-5, rtol=1e-4)
    assert sparse.dense_calls == 0


def test_two_devices_that_begin_at_once_share_a_run(monkeypatch):
    played = Gathering()
    start = played.patch.calibration.start
    monkeypatch.setattr(played.patch.calibration, "start", lambda *given, **named: time.sleep(0.1) or start(*given, **named))

    def both():
        def one():
            played.evaluate(lambda attention: attention(*video(), HEADS), step=2, shape=SHAPE)

        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return torch.zeros(1)

    played.wrap(both)
    assert [seen.count for seen in played.patch.calibration.spots.values()] == [2]


def test_a_run_cut_short_does_not_count():
    played = Gathering()
    with pytest.raises(RuntimeError, match="planted"):
        played.run(fail=True)
    assert played.patch.calibration.runs == 0
    with pytest.raises(ValueError, match="nothing was gathered|finish at least one run"):
        played.patch.found()


def test_short_sequences_are_not_looked_at():
    played = Gathering(min_tokens=TOKENS + 1)
    played.run()
    with pytest.raises(ValueError, match="nothing was gathered.*min_tokens"):
        played.patch.found()


def test_a_sampler_without_a_schedule_is_refused():
    played = Gathering()
    with pytest.raises(ValueError, match="calibrate with a stock sampler"):
        played.evaluate(lambda attention: attention(*video(), HEADS), shape=SHAPE, sample_sigmas=None)


def test_progress_counts_from_the_start_of_the_whole_denoising():
    whole = Schedule(flow_schedule(10), flow_sigma, Options()).progress
    assert whole == pytest.approx([step / 10 for step in range(10)], abs=1e-6)
    second = Schedule(flow_schedule(10)[5:], flow_sigma, Options()).progress
    assert second == pytest.approx([step / 10 for step in range(5, 10)], abs=1e-6)


def test_a_profile_and_its_method_belong_together():
    with pytest.raises(ValueError, match="method is calibrated: connect SVG-EAR Load Calibration"):
        CustomSettings.of(method="calibrated")
    with pytest.raises(ValueError, match="method is svg-ear"):
        CustomSettings.of(gathered().patch.found())


def test_a_calibration_has_a_density_of_its_own():
    custom = CustomSettings.of(gathered().patch.found(), method="calibrated")
    with pytest.raises(ValueError, match="a calibration says what is computed: set density to 0"):
        Options(preset="custom", density=0.2, custom=custom)


def test_dropping_attends_to_the_kept_blocks_alone():
    profile = gathered(energy=0.5, shapes=("raster",)).patch.found()
    played = following(profile, compensate=False)
    q, k, v = video(seed=3)
    found = played.evaluate(lambda attention: attention(q, k, v, HEADS), shape=SHAPE)
    routing = profile.routing((0, 0), float(played.sample_sigmas[2]), torch.device("cpu"))
    assert routing.repeating == ()
    mask = routing.exact.repeat_interleave(128, 1)[:, :TOKENS].repeat_interleave(128, 2)[:, :, :TOKENS]
    heads_first = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    expected = scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2).flatten(2)
    assert not mask.all()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_windows_of_different_lengths_stay_dense_and_say_so_once(caplog):
    played, told, outputs = Gathering(), [], []
    played.patch.tell = told.append
    longer = (1, 16, 4, 20, 32)

    def windows():
        for step in range(2):
            for shape in (SHAPE, longer, longer):
                played.evaluate(lambda attention: outputs.append(attention(*video(shape), HEADS)), step=step, shape=shape)
        return torch.zeros(1)

    with caplog.at_level("WARNING"):
        played.wrap(windows)
    assert len(outputs) == played.dense_calls == 6 and played.patch.calibration.runs == 0
    assert len([text for text in told if "context windows of different lengths" in text]) == 1
    assert sum("causal_window_fix" in entry.message for entry in caplog.records) == 1
    assert what_is_missing(played.patch, 2).startswith("0 of 2 runs gathered. Not gathered: the number of tokens changes")
    played.run()
    assert what_is_missing(played.patch, 2) == "1 of 2 runs gathered. Queue again with another prompt and seed."


def test_keys_with_weights_are_not_looked_at():
    """As those of weak guides are, or of text that a mask weakens."""
    played, tensors = Gathering("hunyuan"), split(qkv(96 + 8))
    mask = torch.zeros(1, 1, 96 + 8)
    mask[..., 2] = -0.5

    def evaluate():
        played.evaluate(lambda attention: attention(*tensors, HEADS, mask=mask, skip_reshape=True))
        return torch.zeros(1)

    played.wrap(evaluate)
    assert played.patch.calibration.runs == 0
    assert "Set the strength of the guides to 1" in what_is_missing(played.patch, 2)


def test_what_is_missing_has_its_reason():
    played = Gathering(min_tokens=10**6)
    played.run()
    assert "Not looked at: short-sequence" in what_is_missing(played.patch, 1)
    fresh = Gathering()
    fresh.patch.recorder.taken_over_by = "SVG-EAR Sparse Attention"
    assert "A later node took over: bypass the SVG-EAR Sparse Attention" in what_is_missing(fresh.patch, 1)
    with pytest.raises(RuntimeError, match="planted"):
        fresh.run(fail=True)
    assert "Queue again" in what_is_missing(fresh.patch, 1)
