"""MiniMax-H3 in a real ComfyUI: what it packs, what surrounds the video, and that the nodes behind the sampler know their run."""

import json

import pytest
from harness.checkpoints import ARCHITECTURES
from harness.graphs import Graph, sampling
from test_nodes import EVERYTHING_EXACT, EVERYTHING_SPARSE, STEPS, dense_calls, relative_error, run, sparse_calls

MODEL = ARCHITECTURES["minimax_h3"]
# 7 latent frames are 22 frames.
SMALL = (24, 7, 8, 12)
STREAMS = (0, 1)


def minimax(attention=None, **changes):
    return sampling("minimax_h3", attention, **{"latent": SMALL, "steps": STEPS} | changes)


def both(client, sampled):
    """Video, audio and the text of the report."""
    result = client.run(sampled.graph.nodes)
    return [result.latent(sampled.latent, stream) for stream in STREAMS], result.text(sampled.report) if sampled.report else None


def with_guides(graph_of, **names):
    """A sampler run whose conditioning has latents of these names."""
    sampled = graph_of()
    graph = sampled.graph
    sampler = next(node for node in graph.nodes.values() if node["class_type"] == "KSampler")
    for side in ("positive", "negative"):
        given = {name: graph.latent(shape, noise=1.0, seed=number) for number, (name, shape) in enumerate(names.items())}
        graph.nodes[sampler["inputs"][side][0]]["inputs"] |= given
    return sampled


GUIDES = ({}, {"keyframe": (24, 2, 8, 12)}, {"shown": (24, 7, 4, 6)}, {"keyframe": (24, 1, 8, 12), "shown": (24, 2, 6, 8)})


@pytest.mark.parametrize("guides", GUIDES, ids=lambda guides: "+".join(guides) or "none")
def test_everything_exact_is_dense_in_both_streams(client, guides):
    dense, _ = both(client, with_guides(minimax, **guides))
    for settings, least, most in ((EVERYTHING_EXACT, 0, 1e-4), (EVERYTHING_EXACT | {"density": 0.5}, 1e-6, 0.5)):
        settings = settings | {"strict": True}
        found, text = both(client, with_guides(lambda settings=settings: minimax(settings, report=True), **guides))
        assert sparse_calls(text) == STEPS * MODEL.self_attention and dense_calls(text) == {}
        for stream in STREAMS:
            assert least <= relative_error(found[stream], dense[stream]) < most


def test_the_size_is_that_of_the_clip(client):
    _, text = both(client, minimax(EVERYTHING_SPARSE, report=True))
    # Text and audio lie in the same row.
    assert "Model: MiniMax-H3" in text and "Tokens: 200 (192 x 128, 22 frames)" in text


def test_guidance_and_dense_blocks(client):
    settings = EVERYTHING_EXACT | {"dense_blocks": "0"}
    changes = {"cfg": 4.0, "negative": {"tokens": 9}}
    dense, _ = both(client, minimax(**changes))
    found, text = both(client, minimax(settings, report=True, **changes))
    assert sparse_calls(text) == STEPS * 2 and dense_calls(text) == {"dense-block": STEPS * 2}
    assert relative_error(found[0], dense[0]) < 1e-4


@pytest.mark.parametrize("stream", [None, 0, 1])
def test_report_and_view_know_their_run(client, stream):
    """From the latent of both streams, and from one that was separated."""
    graph = Graph()
    model = graph.attention(graph.load("minimax_h3"), **EVERYTHING_SPARSE)
    latents = []
    for seed in (1, 2):
        conditions = {side: graph.conditioning("minimax_h3", seed) for side in ("positive", "negative")}
        latent = graph.sample(model, graph.latent(SMALL, audio=MODEL.audio), seed=seed, steps=seed, **conditions)
        latents.append(latent if stream is None else graph.add("LTXVSeparateAVLatent", av_latent=latent)[stream])
    reports = [graph.show(graph.add("SVGEARReport", model=model, latent=latent)[0]) for latent in latents]
    views = [graph.add("SVGEARRoutedBlocks", model=model, latent=latent) for latent in latents]
    for view in views:
        graph.add("PreviewImage", images=view[0])
    result = client.run(graph.nodes)
    for steps, report, view in zip((1, 2), reports, views):
        text, (data,) = result.text(report), result.outputs[view.id]["svg_ear"]
        assert "matches no recorded run" not in text and f"{steps} step" in text
        assert data["matched"] and len(json.dumps(data)) < 2_000_000
        shown = next(found for found in data["runs"] if found["steps"] == steps)
        assert shown["layers"] == MODEL.self_attention
        assert shown["maps"] and all(found["grid"] == [7, 4, 6] for found in shown["maps"])


def test_a_compiled_model_runs_sparse(client):
    compiled = {"before": lambda graph, model: graph.add("SVGEARTestCompile", model=model)[0]}
    dense, _ = both(client, minimax(seed=5))
    found, text = both(client, minimax(EVERYTHING_EXACT, seed=5, report=True, **compiled))
    assert sparse_calls(text) == STEPS * MODEL.self_attention
    assert relative_error(found[0], dense[0]) < 1e-4


@pytest.mark.parametrize(("settings", "steps", "is_advised"), [({}, 4, True), ({"preset": "few-step"}, 4, False), ({}, 9, False)])
def test_few_steps_are_advised_their_preset(client, settings, steps, is_advised):
    _, text = run(client, minimax(settings, steps=steps, report=True))
    assert ("Advice: 4 steps without guidance" in text) == is_advised
