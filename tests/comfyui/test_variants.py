"""Models made from Wan, and Kandinsky 5, in a real ComfyUI: which of their calls run sparse, and that exact ones are dense."""

import json

import numpy as np
import pytest
from harness.graphs import Graph
from harness.reports import dense_calls, relative_error, sparse_calls
from harness.variants import LATENT, VARIANTS

STEPS = 2
SPARSE = {"dense_first_steps": 0, "dense_blocks": "", "warm_up_density": 0.0}


def run(client, name, between=None, **attention):
    """The latent, and the text of the report where our node has settings; ``between`` puts another node before it."""
    variant, graph = VARIANTS[name], Graph()
    model = graph.load_file(variant.architecture.file_name)
    model = model if between is None else graph.add(between, model=model, device="cpu", dtype="default")[0]
    model = graph.attention(model, **SPARSE | attention) if attention else model
    text = graph.add("SVGEARTestConditioning", seed=1, **variant.architecture.conditioning, **variant.conditions(graph))[0]
    sampled = graph.sample(model, graph.latent(LATENT), positive=text, negative=text, steps=STEPS)
    saved = graph.save(sampled)
    report = graph.show(graph.add("SVGEARReport", model=model, latent=sampled)[0]) if attention else None
    result = client.run(graph.nodes)
    return result.latent(saved), result.text(report) if report else None


@pytest.mark.parametrize("name", VARIANTS)
def test_is_detected_and_runs_sparse(comfyui, client, name):
    """Strict: whatever stays dense does so by design."""
    architecture, before = VARIANTS[name].architecture, len(comfyui.log())
    graph = Graph()
    facts = graph.add("SVGEARTestModelFacts", model=graph.load_file(architecture.file_name))
    assert json.loads(client.run(graph.nodes).text(facts))["model_class"] == architecture.model_class
    log = comfyui.log()[before:].lower()
    assert not [line for line in log.splitlines() if "missing" in line or "unexpected" in line or "left over" in line]

    dense, _ = run(client, name)
    assert np.isfinite(dense).all() and dense.std() > 0.05
    for density, least, most in ((1.0, 0, 1e-4), (0.5, 1e-6, 0.5)):
        latent, text = run(client, name, density=density, strict=True)
        assert sparse_calls(text) == STEPS * architecture.self_attention
        assert sum(dense_calls(text).values()) == STEPS * architecture.other_attention
        assert "WARNING" not in text
        assert least <= relative_error(latent, dense) < most


def test_a_pose_that_is_kept_between_steps_leaves_the_frames_sparse(client):
    """With ComfyUI's cache the pose's own attention runs in the first step alone."""
    name, frames = "wan_animate2", 6
    dense, _ = run(client, name, "WanAnimate2Cache")
    for density, most in ((1.0, 1e-4), (0.5, 0.5)):
        latent, text = run(client, name, "WanAnimate2Cache", density=density, strict=True)
        assert sparse_calls(text) == VARIANTS[name].architecture.self_attention + (STEPS - 1) * frames
        assert relative_error(latent, dense) < most
