"""LTX-Video and LTX-2 in a real ComfyUI: guides of every kind, guidances that leave attention out, and the audio beside the video."""

import re

import numpy as np
import pytest
from harness.checkpoints import ARCHITECTURES, BLOCKS
from harness.graphs import Graph

EVERYTHING_EXACT = {"density": 1.0, "dense_first_steps": 0, "dense_blocks": "", "warm_up_density": 0.0, "strict": True}
HALF = EVERYTHING_EXACT | {"density": 0.5}
STEPS = 2
# 144 tokens of video, and the pixels of a guide.
LATENT, WIDTH, HEIGHT = (128, 3, 6, 8), 256, 192
AS_IT_IS, WEAK, MASKED, COARSE = {"strength": 1.0}, {"strength": 0.6}, {"strength": 0.8, "is_masked": True}, {"downscale": 2, "frames": 9}


def sampled(client, name, attention=None, guides=(), guidance=None, text=12):
    """Video and audio of a run, the report, and how many dense calls there were by reason."""
    graph = Graph()
    model = graph.load(name)
    if guidance is not None:
        model = guidance(graph, model)
    if attention is not None:
        model = graph.attention(model, **attention)
    audio = ARCHITECTURES[name].audio
    latent, sound = graph.latent(LATENT, audio=audio), None
    if audio:
        parts = graph.add("LTXVSeparateAVLatent", av_latent=latent)
        latent, sound = parts[0], parts[1]
    positive, negative = (graph.conditioning(name, seed, tokens=text) for seed in (1, 2))
    for guide in guides:
        positive, negative, latent = guided(graph, positive, negative, latent, **guide)
    if audio:
        latent = graph.add("LTXVConcatAVLatent", video_latent=latent, audio_latent=sound)[0]
    found = graph.sample(model, latent, positive=positive, negative=negative, steps=STEPS)
    saved = graph.save(found)
    # The report knows the run by its video alone.
    video = graph.add("LTXVSeparateAVLatent", av_latent=found)[0] if audio else found
    shown = graph.show(graph.add("SVGEARReport", model=model, latent=video)[0]) if attention is not None else None
    result = client.run(graph.nodes)
    streams = [result.latent(saved, stream) for stream in range(2 if audio else 1)]
    report = result.text(shown) if shown else ""
    counted = {name: int(count) for count, name in re.findall(r"^  (\d+) ([a-z-]+):", report, re.MULTILINE)}
    return np.concatenate([stream.ravel() for stream in streams]), report, counted


def guided(graph, positive, negative, latent, strength=1.0, frames=1, downscale=1, is_masked=False):
    """Conditionings and latent with one guide more; of ``frames`` images, hidden in its left half where ``is_masked``."""
    vae = graph.add("SVGEARTestGuideVAE", downscale=downscale)
    image = graph.add("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=frames, color=128)[0]
    optional = {"iclora_parameters": vae[1]}
    if is_masked:
        whole, left = (
            graph.add("SolidMask", value=value, width=width, height=HEIGHT)[0] for value, width in ((1.0, WIDTH), (0.0, WIDTH // 2))
        )
        optional["attention_mask"] = graph.add("MaskComposite", destination=whole, source=left, x=0, y=0, operation="multiply")[0]
    given = {"positive": positive, "negative": negative, "vae": vae[0], "latent": latent, "image": image}
    node = graph.add("LTXVAddGuide", **given, frame_idx=0, strength=strength, **optional)
    return node[0], node[1], node[2]


def relative_error(value, expected):
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def sparse_calls(report):
    return int(re.search(r"Sparse calls: (\d+)", report)[1])


@pytest.mark.parametrize("name", ["ltx_video", "ltx_2"])
@pytest.mark.parametrize("guides", [(AS_IT_IS,), (AS_IT_IS, COARSE), (WEAK,), (MASKED, AS_IT_IS)], ids=["full", "coarse", "weak", "masked"])
def test_guides(client, name, guides):
    """Exact where everything is computed, and nothing dense that the user did not ask for."""
    has_weights = any(guide.get("strength", 1.0) != 1.0 for guide in guides)
    others = ARCHITECTURES[name].other_attention + (BLOCKS if has_weights else 0)
    dense, _, _ = sampled(client, name, guides=guides)
    plain, _, _ = sampled(client, name)
    # The guide's frames are behind the video's.
    assert dense.size > plain.size
    for settings, least, most in ((EVERYTHING_EXACT, 0, 1e-4), (HALF, 1e-6, 0.5)):
        latent, report, counted = sampled(client, name, settings, guides)
        assert sparse_calls(report) == STEPS * BLOCKS and sum(counted.values()) == STEPS * others
        assert counted.get("guide-queries", 0) == (STEPS * BLOCKS if has_weights else 0)
        assert "WARNING" not in report and "matches no recorded run" not in report and "(256 x 192, 17 frames)" in report
        assert least <= relative_error(latent, dense) < most


def stg(graph, model):
    return graph.add("LTXVSpatioTemporalGuidance", model=model, scale=1.0, blocks="0", start_percent=0.0, end_percent=1.0)[0]


def modality(graph, model):
    return graph.add("LTXVModalityGuidance", model=model, modality_scale=3.0, start_percent=0.0, end_percent=1.0)[0]


@pytest.mark.parametrize(("guidance", "skipped", "audio"), [(stg, 1, 15), (modality, 0, 12)])
def test_guidances_that_leave_attention_out(client, guidance, skipped, audio):
    """A second evaluation of each step has no video attention in block 0, or no attention between the streams."""
    dense, _, _ = sampled(client, "ltx_2", guidance=guidance)
    latent, report, counted = sampled(client, "ltx_2", EVERYTHING_EXACT, guidance=guidance)
    assert sparse_calls(report) == STEPS * (2 * BLOCKS - skipped)
    assert counted == {"other-stream": STEPS * audio, "cross-attention": STEPS * 2 * BLOCKS}
    assert relative_error(latent, dense) < 1e-4
    # Block 0 is dense where it runs, block 1 never.
    _, report, counted = sampled(client, "ltx_2", HALF | {"dense_blocks": "0"}, guidance=guidance)
    assert sparse_calls(report) == STEPS * 2 and counted["dense-block"] == STEPS * (2 - skipped)


@pytest.mark.parametrize("name", ["ltx_video", "ltx_2"])
def test_text_as_long_as_the_video_is_cross_attention(client, name):
    dense, _, _ = sampled(client, name, text=144)
    latent, report, counted = sampled(client, name, EVERYTHING_EXACT, text=144)
    assert sparse_calls(report) == STEPS * BLOCKS and counted["cross-attention"] == STEPS * BLOCKS
    assert relative_error(latent, dense) < 1e-4
