"""The nodes for raylight in a real server that has no raylight: they are there, and say what is missing."""

import pytest
from harness.client import PromptRejected, RunFailed
from harness.graphs import Graph


def graph_of(**widgets):
    graph = Graph()
    actors = graph.add("SVGEARRaylight", **widgets)
    latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    graph.add("SVGEARRaylightReport", ray_actors=actors[0], latent=latent[0])
    return graph.nodes


def test_it_has_the_widgets_of_the_node_for_one_gpu(client):
    alone, several = (client.object_info(name)["input"]["optional"] for name in ("SVGEARAttention", "SVGEARRaylight"))
    assert {name: several[name] for name in alone} == alone
    assert set(several) - set(alone) == {"ray_actors", "enabled"}


def test_without_raylight_they_say_what_to_install(client):
    with pytest.raises(RunFailed, match="raylight is not installed: install it"):
        client.run(graph_of())


def test_widgets_are_checked_before_anything_runs(client):
    with pytest.raises(PromptRejected, match="dense_blocks has 'x'"):
        client.run(graph_of(dense_blocks="x"))
