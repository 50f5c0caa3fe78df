"""SVG-EAR GPU Check in a real server, which has no GPU: it says so, and the graph goes on."""

from harness.graphs import Graph


def test_without_a_gpu_there_is_nothing_to_check(client):
    graph = Graph()
    node = graph.add("SVGEARGPUCheck", quick=True)
    shown = graph.show(node[0])
    graph.add("PreviewImage", images=node[1])
    result = client.run(graph.nodes)
    assert result.text(shown) == "Nothing to check: there is no GPU here."
    assert result.outputs[str(node)]["status"] == ["Nothing to check: there is no GPU here."]


def test_it_needs_no_node_behind_it_and_runs_every_time(client):
    graph = Graph()
    node = graph.add("SVGEARGPUCheck")
    for _ in range(2):
        result = client.run(graph.nodes)
        assert result.outputs[str(node)]["text"] == ["Nothing to check: there is no GPU here."]
