"""Our node beside other nodes and models, in a real ComfyUI."""

import re

import numpy as np
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
