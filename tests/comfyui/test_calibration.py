"""Calibrating, saving, loading and following in a real ComfyUI, through the nodes."""

import pytest
from harness.client import PromptRejected
from harness.graphs import Graph, sampling
from test_nodes import dense_calls, relative_error, run, sparse_calls

CALIBRATED = {"preset": "custom", "dense_first_steps": 0, "dense_blocks": ""}
LARGER = (16, 3, 24, 32)
STEPS = 3


def calibrating(name, *, seed=0, runs=1, latent=LARGER, overwrite=False, steps=STEPS, architecture="wan21_t2v", **calibrate):
    """The graph of one calibrating run, its latent, and the node that saves."""
    graph = Graph()
    model = graph.add("SVGEARCalibrate", model=graph.load(architecture), **({"min_tokens": 0} | calibrate))[0]
    sampled = graph.sample(
        model,
        graph.latent(latent),
        positive=graph.conditioning(architecture, seed + 1),
        negative=graph.conditioning(architecture, 2),
        seed=seed,
        steps=steps,
    )
    saved = graph.add("SVGEARSaveCalibration", model=model, latent=sampled, name=name, runs=runs, overwrite=overwrite)
    return graph, graph.save(sampled), saved


def following(name, latent=LARGER, settings=None, compensate=True, **changes):
    """A sparse run with the calibration of that name."""
    sampled = sampling("wan21_t2v", CALIBRATED | (settings or {}), latent=latent, report=True, **{"steps": STEPS} | changes)
    loaded = sampled.graph.add("SVGEARLoadCalibration", name=f"{name}.safetensors", compensate=compensate)[0]
    for node in sampled.graph.nodes.values():
        if node["class_type"] == "SVGEARAttention":
            node["inputs"]["settings"] = loaded
    return sampled


def test_the_round_trip(comfyui, client):
    """Two runs add up to a file; with everything kept its sparse clip is the dense one."""
    everything = {"runs": 2, "density": 1.0}
    graph, latent, saved = calibrating("first", **everything)
    result = client.run(graph.nodes)
    assert result.text(saved) == "1 of 2 runs gathered. Queue again with another prompt and seed."
    folder = comfyui.base / "models" / "svg_ear"
    assert not (folder / "first.safetensors").exists()
    dense = result.latent(latent)

    graph, _, saved = calibrating("first", seed=1, **everything)
    text = client.run(graph.nodes).text(saved)
    assert "first.safetensors" in text and "from 2 runs" in text and "3 x 12 x 16 tokens" in text
    assert "Kept: 1 of the blocks of every row" in text and "Computed: 100.0% of the pairs" in text and "Shapes of blocks: " in text
    assert (folder / "first.safetensors").stat().st_size < 10_000
    assert [path.name for path in folder.glob("*first*")] == ["first.safetensors"]

    found, text = run(client, following("first"))
    assert sparse_calls(text) == STEPS * 2 and set(dense_calls(text)) == {"cross-attention"}
    assert relative_error(found, dense) < 1e-4


def test_calibrating_is_dense_and_following_is_close(client):
    graph, latent, saved = calibrating("second", density=0.4)
    result = client.run(graph.nodes)
    dense = result.latent(latent)
    assert "Saved models/svg_ear/second.safetensors" in result.text(saved)
    plain, _ = run(client, sampling("wan21_t2v", latent=LARGER, steps=STEPS))
    assert (plain == dense).all()
    for compensate in (True, False):
        found, text = run(client, following("second", compensate=compensate))
        assert sparse_calls(text) == STEPS * 2
        assert 1e-6 < relative_error(found, dense) < 0.5


def test_other_step_counts_take_the_nearest_level(client):
    client.run(calibrating("steps")[0].nodes)
    _, text = run(client, following("steps", steps=5))
    assert sparse_calls(text) == 5 * 2


def test_nothing_is_overwritten_unasked(comfyui, client):
    """Told before anything is sampled; what this calibration wrote grows with it."""
    path = comfyui.base / "models" / "svg_ear" / "kept.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"somebody else's")
    refused = calibrating("kept")[0]
    latent = next(name for name, node in refused.nodes.items() if node["class_type"] == "SVGEARTestSave")
    # ComfyUI would run what leads to another output node.
    del refused.nodes[latent]
    client.reset_counters()
    with pytest.raises(PromptRejected, match="exists already; choose another name, or switch overwrite on"):
        client.run(refused.nodes)
    assert path.read_bytes() == b"somebody else's" and client.state()["evaluations"] == 0
    client.run(calibrating("kept", seed=8, overwrite=True)[0].nodes)
    graph, _, saved = calibrating("kept", seed=9)
    assert "kept.safetensors" in (text := client.run(graph.nodes).text(saved)) and "from 2 runs" in text


def test_a_name_that_is_taken_meanwhile_is_said_before_the_last_run(comfyui, client):
    graph, _, saved = calibrating("meanwhile", runs=2, restart=11)
    client.run(graph.nodes)
    client.run(calibrating("meanwhile", seed=1, runs=2, restart=11)[0].nodes)
    # Another calibration, while the one that wrote the file is still known.
    graph, _, saved = calibrating("meanwhile", runs=2, restart=12)
    assert "exists already" in client.run(graph.nodes).text(saved)


def test_a_later_node_that_takes_over_is_named(client):
    graph = Graph()
    model = graph.add("SVGEARCalibrate", model=graph.load("wan21_t2v"), min_tokens=0, restart=21)[0]
    sampled = graph.sample(
        graph.attention(model),
        graph.latent(LARGER),
        positive=graph.conditioning("wan21_t2v", 1),
        negative=graph.conditioning("wan21_t2v", 2),
        steps=STEPS,
        seed=5,
    )
    saved = graph.add("SVGEARSaveCalibration", model=model, latent=sampled, name="behind", runs=1)
    text = client.run(graph.nodes).text(saved)
    assert text == (
        "0 of 1 run gathered. A later node took over: bypass the SVG-EAR Sparse Attention behind SVG-EAR Calibrate, and queue again."
    )


def test_a_missing_calibration_is_named_before_anything_runs(comfyui, client):
    with pytest.raises(PromptRejected, match="there is no calibration 'gone.safetensors' in models/svg_ear"):
        client.run(following("gone").graph.nodes)
    folder = comfyui.base / "models" / "svg_ear"
    kept = folder.with_name("svg_ear_kept")
    folder.rename(kept)
    folder.mkdir()
    try:
        (choices, *_) = _options(client)
        assert choices == ["none yet: run SVG-EAR Calibrate first"]
        graph = following("gone").graph
        for node in graph.nodes.values():
            if node["class_type"] == "SVGEARLoadCalibration":
                node["inputs"]["name"] = choices[0]
        with pytest.raises(PromptRejected, match="make one with SVG-EAR Calibrate"):
            client.run(graph.nodes)
    finally:
        folder.rmdir()
        kept.rename(folder)


def _options(client):
    kind, options = client.object_info("SVGEARLoadCalibration")["input"]["required"]["name"]
    return kind if isinstance(kind, list) else options["options"], options


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/outside", "", "C:\\outside", ".hidden"])
def test_names_that_leave_the_folder_are_refused(client, name):
    graph, latent, _ = calibrating(name)
    # ComfyUI would run what leads to another output node.
    del graph.nodes[latent.id]
    with pytest.raises(PromptRejected, match="write letters, digits"):
        client.run(graph.nodes)


def test_what_does_not_fit_is_refused(comfyui, client):
    client.run(calibrating("fits")[0].nodes)
    failed = client.attempt(following("fits", latent=(16, 3, 24, 40)).graph.nodes)
    assert failed.status == "error" and "token grid of 3 x 12 x 16" in failed.error["exception_message"]
    other = following("fits")
    for node in other.graph.nodes.values():
        if node["class_type"] == "UNETLoader":
            node["inputs"]["unet_name"] = "wan22_ti2v_5b.safetensors"
    failed = client.attempt(other.graph.nodes)
    assert failed.status == "error" and "input shape (256, 16, 1, 2, 2), not (256, 48, 1, 2, 2)" in failed.error["exception_message"]


def test_a_damaged_file_is_refused(comfyui, client):
    client.run(calibrating("damaged")[0].nodes)
    path = comfyui.base / "models" / "svg_ear" / "damaged.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    failed = client.attempt(following("damaged").graph.nodes)
    assert failed.status == "error" and "cut short" in failed.error["exception_message"]


def test_a_calibration_wants_preset_custom_and_no_density(client):
    client.run(calibrating("pair")[0].nodes)
    for settings, message in (
        ({"preset": "balanced"}, "set preset to custom, or disconnect it"),
        ({"density": 0.3}, "a calibration says what is computed: set density to 0"),
    ):
        failed = client.attempt(following("pair", settings=settings).graph.nodes)
        assert failed.status == "error" and message in failed.error["exception_message"]
