"""SVG-EAR Routed Blocks in a real ComfyUI: what reaches the interface, for every architecture."""

import json

import numpy as np
import pytest
from harness.checkpoints import ARCHITECTURES
from harness.graphs import sampling
from test_nodes import EVERYTHING_SPARSE, STEPS, wan

TABLES = ("density", "error")


def routed(client, sampled, **inputs):
    """The data of the view, the picture's size, and the latents of the sampler and of the node."""
    graph = sampled.graph
    sampler = graph.nodes[sampled.latent.id]["inputs"]["latent"]
    model = graph.nodes[sampler[0]]["inputs"]["model"]
    node = graph.add("SVGEARRoutedBlocks", model=model, latent=sampler, **inputs)
    passed = graph.save(node[1])
    size = graph.add("GetImageSize", image=node[0])
    shown = [graph.show(graph.add("PreviewAny", source=size[number])[0]) for number in (0, 1)]
    result = client.run(graph.nodes)
    (data,) = result.outputs[node.id]["svg_ear"]
    return data, tuple(int(result.text(text)) for text in shown), result.latent(sampled.latent), result.latent(passed)


@pytest.mark.parametrize("name", ["wan21_t2v", "wan22_ti2v_5b", "hunyuan_video", "hunyuan_video_15", "ltx_video", "ltx_2"])
def test_every_architecture_fills_the_view(client, name):
    architecture = ARCHITECTURES[name]
    channels, _, height, width = architecture.latent
    small = (channels, 3, height // 2, width // 2)
    data, size, before, after = routed(client, sampling(name, EVERYTHING_SPARSE, latent=small, steps=STEPS), width=800)
    assert np.array_equal(before, after)
    assert size[0] == 800 and size[1] > 400
    assert data["matched"] and len(json.dumps(data)) < 2_000_000
    run = data["runs"][0]
    assert run["steps"] == STEPS and run["layers"] == architecture.self_attention
    tables = run["branches"]["cond"]
    assert tables["heads"] > 0 and all(tables[table]["shape"] == [run["layers"], STEPS, tables["heads"]] for table in TABLES)
    assert {(found["layer"], found["step"]) for found in run["maps"]} >= {(0, 0), (run["layers"] - 1, STEPS - 1)}
    assert all(found["grid"] and np.prod(found["grid"]) == found["keyLabels"]["shape"][0] for found in run["maps"])


def test_both_branches_and_dense_reasons(client):
    settings = {"density": 0.1, "dense_first_steps": 1, "dense_blocks": "0"}
    data, *_ = routed(client, wan(settings, steps=3, cfg=4.0), layer=1, step=2, head=1, branch="uncond")
    run = data["runs"][0]
    assert set(run["branches"]) == {"cond", "uncond"}
    assert {reason["name"] for reason in run["reasons"]} == {"warm-up-step", "dense-block"}
    assert data["chosen"] == {"layer": 1, "step": 2, "branch": "uncond", "head": 1}


def test_nothing_to_show_is_no_error(client):
    data, size, *_ = routed(client, wan({"min_tokens": 100000}, steps=STEPS))
    assert data["runs"][0]["maps"] == [] and {reason["name"] for reason in data["runs"][0]["reasons"]} == {"short-sequence"}
    assert size[0] == 1400
    data, *_ = routed(client, wan(steps=STEPS))
    assert data["runs"] == []


def test_older_runs_stay_in_the_view(client):
    settings = EVERYTHING_SPARSE | {"memory_limit_mb": 777}
    routed(client, wan(settings, seed=1, steps=STEPS))
    data, *_ = routed(client, wan(settings, seed=2, steps=STEPS))
    assert len(data["runs"]) == 2 and all(run["maps"] for run in data["runs"])
