"""Our node beside other nodes and models, in a real ComfyUI."""

import re

import numpy as np
import pytest
from harness.checkpoints import ARCHITECTURES
from harness.graphs import sampling

SPARSE = {"density": 0.1, "dense_first_steps": 0, "dense_blocks": ""}
SMALL = (16, 3, 12, 16)
STEPS = 3


def compiled(graph, model):
    return graph.add("SVGEARTestCompile", model=model)[0]


def run(client, attention, **around):
    sampled = sampling("wan21_t2v", attention, latent=SMALL, steps=STEPS, report=attention is not None, **around)
    result = client.run(sampled.graph.nodes)
    return result.latent(sampled.latent), result.text(sampled.report) if sampled.report else ""


def sparse_calls(text):
    return int(re.search(r"Sparse calls: (\d+)", text)[1])


def test_a_model_that_was_compiled_without_the_node_runs_sparse_with_it(client):
    """In whatever order the two nodes stand, and dense again without ours."""
    plain, _ = run(client, None)
    dense, _ = run(client, None, before=compiled)
    np.testing.assert_allclose(dense, plain, atol=1e-5)
    latent, text = run(client, SPARSE, before=compiled)
    per_step = sparse_calls(run(client, SPARSE)[1]) // STEPS
    assert sparse_calls(text) >= per_step * (STEPS - 1) and np.abs(latent - plain).max() > 1e-4
    assert sparse_calls(text) == per_step * STEPS or "compiled-without" in text
    _, text = run(client, SPARSE, after=compiled)
    assert sparse_calls(text) == per_step * STEPS
    again, _ = run(client, None, before=compiled)
    np.testing.assert_allclose(again, plain, atol=1e-5)


def skipped_steps(text):
    found = re.search(r"Skipped steps: (\d+) of", text)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("place", ["before", "after"])
def test_easycache_skips_no_more_than_without_us(client, place):
    """HunyuanVideo 1.5 with guidance, as its template runs it."""
    steps, layers = 12, ARCHITECTURES["hunyuan_video_15"].self_attention

    def cached(graph, model):
        return graph.add("EasyCache", model=model, reuse_threshold=0.3, start_percent=0.15, end_percent=0.95, verbose=False)[0]

    def sampled(attention, **around):
        found = sampling(
            "hunyuan_video_15", attention, latent=(32, 3, 6, 8), steps=steps, cfg=6.0, report=attention is not None, seed=3, **around
        )
        result = client.run(found.graph.nodes)
        return result.latent(found.latent), result.text(found.report) if found.report else ""

    def counting(graph, model):
        return graph.add("SVGEARTestCountAttention", model=cached(graph, model))[0]

    client.reset_counters()
    dense, _ = sampled(None, after=counting)
    each = sum((layers, ARCHITECTURES["hunyuan_video_15"].other_attention))
    skipped = steps - client.state()["attention_calls"] // each
    assert 0 < skipped < steps - 2
    exact, text = sampled(SPARSE | {"density": 1.0}, **{place: cached})
    assert skipped_steps(text) == skipped and sparse_calls(text) == (steps - skipped) * layers
    np.testing.assert_allclose(exact, dense, atol=1e-3)
    for settings in ({}, SPARSE):
        _, text = sampled(settings, **{place: cached})
        assert 0 < skipped_steps(text) <= skipped
