"""MiniMax-H3: one row of text, conditions, audio and video, of which the video is routed."""

from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import HEADS, Harness, counts, dense, flow_sigma, options
from svg_ear.nodes.patch.schedule import Schedule
from svg_ear.nodes.recording.reasons import StrictModeError

# 96 tokens of video and 5 of audio, as the sampler packs them.
SHAPES = [(1, 24, 3, 8, 16), (1, 32, 2, 5)]
FLAT = (1, 1, 24 * 3 * 8 * 16 + 32 * 2 * 5)
SEGMENTS = [(0, 12, "text"), (12, 16, "cond"), (16, 20, "cond_audio"), (20, 30, "audio"), (30, 126, "video")]


def packed(tokens=126, seed=0):
    """q, k and v as the model hands them on: ``[1, H, L, 128]`` views of one buffer of rows."""
    rows = torch.randn(tokens, 3 * HEADS * 128, generator=torch.Generator().manual_seed(seed))
    return tuple(part.view(tokens, HEADS, 128).transpose(0, 1).unsqueeze(0) for part in rows.split(HEADS * 128, dim=-1))


def run(body, segments=SEGMENTS, **widgets):
    """One evaluation of ``body(attention)`` in a run of its own; its record."""
    played = Harness("minimax", **widgets)
    conditions = {"latent_shapes": SHAPES, "minimax_payload": {"layout": SimpleNamespace(segments=segments)}}
    return played.sample(lambda: played.evaluate(body, shape=FLAT, conditions=conditions))


@pytest.mark.parametrize("segments", [SEGMENTS, [(0, 20, "text"), (20, 116, "video"), (116, 126, "audio")], []])
def test_everything_exact_is_dense(segments):
    """Where the packing is told, wherever it puts the video, and where it is not and the video ends the row."""
    tensors, found = packed(), []
    record = run(lambda attention: found.append(attention(*tensors, HEADS, skip_reshape=True, mask=None)), segments, density=1.0)
    assert record.sparse_calls == 1 and record.architecture == "MiniMax-H3"
    torch.testing.assert_close(found[0], dense(*tensors, HEADS, skip_reshape=True), atol=1e-5, rtol=1e-4)


def test_what_is_no_video_is_dense_as_queries_at_any_density():
    tensors, found = packed(), []
    run(lambda attention: found.append(attention(*tensors, HEADS, skip_reshape=True)), density=0.1)
    expected = dense(*tensors, HEADS, skip_reshape=True)
    torch.testing.assert_close(found[0][:, :30], expected[:, :30], atol=1e-5, rtol=1e-4)
    assert (found[0][:, 30:] - expected[:, 30:]).abs().max() > 1e-3


def test_the_refiner_is_told_apart_and_strict_mode_passes_it():
    def blocks(attention):
        attention(*packed(12), HEADS, skip_reshape=True, block=None)
        for block in range(3):
            attention(*packed(), HEADS, skip_reshape=True, block=block)

    record = run(blocks, strict=True, dense_blocks="2")
    assert record.sparse_calls == 2 and counts(record) == {"token-refiner": 1, "dense-block": 1}


def test_a_packing_of_another_video_is_refused():
    wrong = [(0, 60, "text"), (60, 126, "video")]
    with pytest.raises(StrictModeError, match="unknown-tokens"):
        run(lambda attention: attention(*packed(), HEADS, skip_reshape=True), wrong, strict=True)


def test_nothing_of_the_model_is_kept_beyond_an_evaluation():
    """What a run learns must not hold the options of the evaluation, and with them its tensors, until Python cleans up."""
    played, evaluations = Harness("minimax"), []
    inner = played.patch._evaluation
    played.patch._evaluation = lambda *args: evaluations.append(inner(*args)) or evaluations[-1]
    played.evaluate(lambda attention: None, shape=FLAT, conditions={"latent_shapes": SHAPES})
    assert not any(isinstance(value, dict) and "transformer_options" in value for value in vars(evaluations[0]).values())


def minimax_sigma(percent):
    return flow_sigma(percent, shift=12.0)


@pytest.mark.parametrize("steps", [4, 8, 20, 40])
@pytest.mark.parametrize("widgets", [{}, {"warm_up_density": 0.0}])
@pytest.mark.parametrize("part", [0, 1])
def test_the_schedule_counts_steps_whatever_the_shift(steps, widgets, part):
    """At shift 12 a fifth of the denoising by percent is sigma 0.98: the steps and their densities are still those of any other model."""
    plans = []
    for to_sigma in (flow_sigma, minimax_sigma):
        sigmas = [to_sigma(step / steps) for step in range(steps + 1)][part * steps // 2 :]
        plan = Schedule(sigmas, to_sigma, options(**widgets))
        plans.append((plan.whole_steps, plan.sparse_steps, [plan.density(sigma) for sigma in sigmas[:-1]]))
    (whole, sparse, densities), other = plans
    assert other == (whole, sparse, pytest.approx(densities) if not widgets else densities)
    warm_up = max(1, round((steps - part * steps // 2) / 5)) if widgets else 0
    assert whole == steps and sparse[0] == max(0, warm_up - part * steps // 2)
