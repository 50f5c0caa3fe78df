"""The demo model: one file that every host loads, exact latents, repeatable clips, and weights that are trained."""

import pytest
import torch
from safetensors import safe_open

from benchmarks.demo_model import sample, video
from benchmarks.demo_model.model import WanTransformer
from benchmarks.demo_model.train import flow_loss

TINY_GRID = (2, 3, 4)
HELD_OUT = (1001, 1002)
UNIFORMS_OF_SEED_ZERO = (0.10683334, 0.40278167, 0.31818515)


@pytest.fixture(scope="module")
def model():
    return sample.load_demo_model()


def test_weights_are_one_small_bf16_file():
    assert sample.WEIGHTS.stat().st_size <= 24 * 1024 * 1024
    with safe_open(sample.WEIGHTS, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}


def test_diffusers_gives_the_same_output(model):
    transformer = sample.load_demo_transformer()
    noise = torch.cat([sample.starting_noise(seed, TINY_GRID) for seed in (0, 1)])
    context = torch.cat(sample.conditioning(0, TINY_GRID))
    for sigma in (0.993, 0.37):
        ours = sample.velocity(model, noise, sigma, context)
        theirs = sample.velocity(transformer, noise, sigma, context)
        assert (ours - theirs).norm() / ours.norm() < 1e-5


def test_a_clip_alone_equals_the_clip_in_a_batch(model):
    noise = torch.cat([sample.starting_noise(seed, TINY_GRID) for seed in (0, 1)])
    context = torch.cat(sample.conditioning(0, TINY_GRID))
    together = sample.velocity(model, noise, 0.5, context)
    alone = sample.velocity(model, noise[1:], 0.5, context[1:])
    # Sums may be in another order: that depends on the processor.
    assert (together[1:] - alone).norm() / alone.norm() < 1e-5


def test_decode_inverts_encode():
    latents = torch.randn(2, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert (video.encode(video.decode_rgb(latents)) - latents).abs().max() < 2e-5
    clip = video.decode_rgb(video.clip_latents([3], TINY_GRID))
    assert (video.decode_rgb(video.encode(clip)) - clip).abs().max() < 1e-5


def test_decoded_frames_have_the_documented_shape():
    frames = sample.decode(video.clip_latents([3], TINY_GRID))
    assert frames.shape == (2, 24, 24, 3) and frames.dtype == torch.uint8


def test_latents_are_centred_and_of_about_unit_variance():
    latents = video.clip_latents(range(24), (2, 15, 26))
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 0.4
    deviation = latents.std(dim=(0, 2, 3, 4))
    assert deviation.max() < 1.5 and deviation.min() > 0.1


def test_a_seed_is_one_clip():
    assert torch.equal(video.clip_latents([5], TINY_GRID), video.clip_latents([5], TINY_GRID))
    assert torch.equal(sample.conditioning(5)[0], sample.conditioning(5)[0])
    assert video.describe(5) == video.describe(5) != video.describe(6)
    assert not torch.equal(sample.conditioning(5)[0], sample.conditioning(6)[0])
    first, both = sample.conditioning(5)[0], video.conditioning(video.uniforms([4, 5]), 2, video.codebook())
    assert torch.allclose(first[0], both[1])


def test_seeds_mean_the_same_everywhere():
    """The rows come from integer mixing alone; these digits were written down once."""
    assert video.uniforms([0])[0, :3].tolist() == pytest.approx(UNIFORMS_OF_SEED_ZERO, abs=1e-7)


def test_objects_beyond_the_count_are_not_described():
    tokens, null = sample.conditioning(0, (5, 14, 24))
    assert tokens.shape == null.shape == (1, video.TOKENS, video.TEXT_DIM)
    assert (tokens[0, 4:] == 0).all() and (tokens[0, :4] != 0).any(dim=1).all() and (null == 0).all()


def test_sigmas_fall_from_one_to_zero():
    levels = sample.sigmas(20, 5.0)
    assert levels[0] == 1 and levels[-1] == 0 and (levels.diff() < 0).all()
    assert torch.allclose(sample.sigmas(4, 1.0), torch.linspace(1, 0, 5))


def test_sampling_is_repeatable_and_reports_progress(model):
    seen = []
    first = sample.sample(model, 0, TINY_GRID, steps=2, progress=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]
    assert torch.equal(first, sample.sample(model, 0, TINY_GRID, steps=2))
    assert first.shape == (1, 16, 2, 6, 8) and first.isfinite().all()


@torch.no_grad()
def test_the_weights_are_trained(model):
    """Held-out clips: far below random weights, below a measured bound, and better with the right description."""
    grid = sample.SMALL_GRID
    latents = video.clip_latents(HELD_OUT, grid)
    context = torch.cat([sample.conditioning(seed, grid)[0] for seed in HELD_OUT])

    def loss(transformer, level, context):
        torch.manual_seed(0)
        return flow_loss(transformer, latents, context, torch.full((len(HELD_OUT),), level)).item()

    described = loss(model, 0.9, context)
    assert described < 0.35
    assert loss(model, 0.9, torch.zeros_like(context)) > 1.1 * described
    torch.manual_seed(0)
    assert loss(WanTransformer(), 0.9, context) > 3 * described
