"""The nodes inside a real ComfyUI: every architecture, what the report counts, and what is left after a run."""

import re

import numpy as np
import pytest
from harness.checkpoints import ARCHITECTURES
from harness.client import PromptRejected
from harness.graphs import Graph, sampling, two_expert_sampling
from harness.reports import dense_calls, relative_error, sparse_calls

EVERYTHING_SPARSE = {"density": 0.1, "dense_first_steps": 0, "dense_blocks": ""}
EVERYTHING_EXACT = EVERYTHING_SPARSE | {"density": 1.0}
STEPS = 2
# Small where nothing depends on the size: 144 tokens.
SMALL = (16, 3, 12, 16)


def wan(attention=None, **changes):
    return sampling("wan21_t2v", attention, latent=SMALL, **changes)


def run(client, sampled):
    """The latent and the text of the report."""
    result = client.run(sampled.graph.nodes)
    return result.latent(sampled.latent), result.text(sampled.report) if sampled.report else None


def test_nodes_are_registered(client):
    schema = client.object_info("SVGEARAttention")
    assert list(schema["input"]["required"]) == ["model"]
    assert list(schema["input"]["optional"])[:2] == ["preset", "density"]
    sockets = {"settings", "schedule", "recording"}
    # ComfyUI shows advanced ones when asked to.
    seen = {name for name, (_, options) in schema["input"]["optional"].items() if not options.get("advanced")}
    assert len(seen - sockets) <= 8, "more widgets than a newcomer should see"
    beside = ("SVGEARCustomSettings", "SVGEARSchedule", "SVGEARRecord")
    calibrating = ("SVGEARCalibrate", "SVGEARSaveCalibration", "SVGEARLoadCalibration")
    for name in ("SVGEARAttention", "SVGEARRoutedBlocks", "SVGEARReport", "SVGEARCompare", *beside, *calibrating):
        inputs = client.object_info(name)["input"]
        assert all(options[1]["tooltip"] for group in ("required", "optional") for options in inputs.get(group, {}).values())
    assert client.object_info("SVGEARReport")["output_node"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_runs_sparse(client, name):
    """Exact where everything is computed, close where a tenth is, and every self-attention call counted."""
    architecture = ARCHITECTURES[name]
    channels, _, height, width = architecture.latent
    small = (channels, 3, height // 2, width // 2)
    dense, _ = run(client, sampling(name, steps=STEPS, latent=small))
    for settings, least, most in ((EVERYTHING_EXACT, 0, 1e-4), (EVERYTHING_SPARSE, 1e-6, 0.5)):
        latent, text = run(client, sampling(name, settings, steps=STEPS, latent=small, report=True))
        assert sparse_calls(text) == STEPS * architecture.self_attention
        assert sum(dense_calls(text).values()) == STEPS * architecture.other_attention
        assert "WARNING" not in text
        assert least <= relative_error(latent, dense) < most


def test_schedule_and_blocks_stay_dense(client):
    settings = {"density": 0.1, "dense_first_steps": 2, "dense_last_steps": 1, "dense_blocks": "-1"}
    _, text = run(client, wan(settings, steps=6, report=True))
    assert sparse_calls(text) == 3
    counted = dense_calls(text)
    assert (counted["warm-up-step"], counted["last-steps"], counted["dense-block"]) == (4, 2, 3)


def test_second_order_sampler_finds_its_steps(client):
    settings = {"density": 0.1, "dense_first_steps": 2, "dense_blocks": ""}
    _, text = run(client, wan(settings, steps=4, sampler="heun", report=True))
    # heun evaluates at both ends of each step but the last: sigmas 0, 1, 1, 2, 2, 3, 3
    assert sparse_calls(text) == 4 * 2
    assert dense_calls(text)["warm-up-step"] == 3 * 2


@pytest.mark.parametrize(("tokens", "evaluations"), [(12, 1), (9, 2)])
def test_guidance_in_one_batch_and_in_two_calls(client, tokens, evaluations):
    changes = {"cfg": 4.0, "negative": {"tokens": tokens}, "steps": STEPS}
    dense, _ = run(client, wan(**changes))
    exact, text = run(client, wan(EVERYTHING_EXACT, report=True, **changes))
    assert sparse_calls(text) == STEPS * evaluations * 2
    assert relative_error(exact, dense) < 1e-4


@pytest.mark.parametrize("name", ["hunyuan_video", "hunyuan_video_15"])
def test_masked_text_is_hidden(client, name):
    # ComfyUI cannot mask the text of HunyuanVideo 1.5 while it has byt5 tokens
    changes = {"positive": {"padding": 4, "byt5_tokens": 0}, "steps": STEPS}
    dense, _ = run(client, sampling(name, **changes))
    exact, text = run(client, sampling(name, EVERYTHING_EXACT, report=True, **changes))
    assert sparse_calls(text) == STEPS * ARCHITECTURES[name].self_attention
    assert relative_error(exact, dense) < 1e-4


def test_second_expert_has_its_warm_up_behind_it(client):
    settings = {"density": 0.1, "warm_up_density": 0.0, "dense_blocks": ""}
    sampled = two_expert_sampling(attention=settings, report=True, latent=SMALL, steps=4, switch=2)
    result = client.run(sampled.graph.nodes)
    first, second = result.text(sampled.first_report), result.text(sampled.report)
    assert sparse_calls(first) == 1 * 2 and dense_calls(first)["warm-up-step"] == 1 * 2
    assert sparse_calls(second) == 2 * 2 and "warm-up-step" not in dense_calls(second)


def test_second_expert_goes_on_where_the_density_of_the_first_stopped(client):
    settings = {"density": 0.1, "warm_up_density": 0.8, "dense_blocks": ""}
    sampled = two_expert_sampling(attention=settings, report=True, latent=SMALL, steps=4, switch=2)
    result = client.run(sampled.graph.nodes)
    first, second = result.text(sampled.first_report), result.text(sampled.report)
    assert sparse_calls(first) == sparse_calls(second) == 2 * 2
    found = [float(re.search(r"mean density ([0-9.]+)%", text)[1]) for text in (first, second)]
    assert found == pytest.approx([(80 + 40) / 2, (20 + 10) / 2], abs=8)


@pytest.mark.parametrize(("preset", "is_advised"), [("balanced", True), ("few-step", False)])
def test_two_experts_of_two_steps_each_are_one_few_step_run(client, preset, is_advised):
    """Wan 2.2 14B I2V as its template runs it: 2 + 2 steps without guidance."""
    sampled = two_expert_sampling(
        "wan22_i2v_high", "wan22_i2v_low", {"preset": preset, "dense_blocks": "0"}, report=True, latent=SMALL, steps=4, switch=2
    )
    result = client.run(sampled.graph.nodes)
    for text in (result.text(sampled.first_report), result.text(sampled.report)):
        assert sparse_calls(text) == 2 and dense_calls(text) == {"cross-attention": 2 * 2, "dense-block": 2}
        assert ("Advice: 4 steps without guidance" in text) == is_advised
        density = float(re.search(r"mean density ([0-9.]+)%", text)[1])
        assert density == pytest.approx(30, abs=3) or preset == "balanced"


def test_the_node_says_where_dense_is_the_faster_one(client):
    sampled = two_expert_sampling(attention={"preset": "few-step", "min_tokens": -1}, report=True, latent=SMALL, steps=4, switch=2)
    result = client.run(sampled.graph.nodes)
    for text in (result.text(sampled.first_report), result.text(sampled.report)):
        assert "WARNING: nothing ran sparse: short-sequence" in text and "where dense attention is faster" in text


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_two_experts_with_everything_exact_equal_dense(client, task):
    changes = {"high": f"wan22_{task}_high", "low": f"wan22_{task}_low", "latent": SMALL, "cfg": 3.0}
    dense, _ = run(client, two_expert_sampling(**changes))
    exact, text = run(client, two_expert_sampling(attention=EVERYTHING_EXACT, report=True, **changes))
    assert sparse_calls(text) == 2 * 2
    assert relative_error(exact, dense) < 1e-4


def backend(graph, model):
    return graph.add("ModelAttentionBackend", model=model, attention="pytorch attention")[0]


@pytest.mark.parametrize("place", ["before", "after"])
def test_runs_whatever_attention_backend_is_set(client, place):
    _, text = run(client, wan(EVERYTHING_SPARSE, steps=STEPS, report=True, **{place: backend}))
    assert sparse_calls(text) == STEPS * 2


@pytest.mark.parametrize("place", ["before", "after"])
def test_dense_calls_go_through_the_other_override(client, place):
    def count(graph, model):
        return graph.add("SVGEARTestCountAttention", model=model)[0]

    counted = wan(EVERYTHING_SPARSE, steps=STEPS, **{place: count})
    client.run(counted.graph.nodes)
    assert client.state()["attention_calls"] == STEPS * ARCHITECTURES["wan21_t2v"].other_attention


def test_later_of_two_nodes_counts_alone(client):
    sampled = wan(
        EVERYTHING_EXACT,
        steps=STEPS,
        report=True,
        before=lambda graph, model: graph.attention(model, **EVERYTHING_SPARSE),
    )
    latent, text = run(client, sampled)
    dense, _ = run(client, wan(steps=STEPS))
    assert "mean density 100.0%" in text
    assert relative_error(latent, dense) < 1e-4


def test_the_report_of_the_earlier_of_two_nodes_says_so(client):
    graph = Graph()
    first = graph.attention(graph.load("wan21_t2v"), **EVERYTHING_SPARSE)
    sampled = graph.sample(
        graph.attention(first, **EVERYTHING_EXACT),
        graph.latent(SMALL),
        positive=graph.conditioning("wan21_t2v", 1),
        negative=graph.conditioning("wan21_t2v", 2),
        steps=2,
        seed=77,
    )
    shown = graph.show(graph.add("SVGEARReport", model=first, latent=sampled)[0])
    text = client.run(graph.nodes).text(shown)
    assert text.startswith("No run recorded. A later node took over") and "SVG-EAR Sparse Attention" in text


def test_the_report_says_what_would_be_long_enough(client):
    _, text = run(client, wan({"min_tokens": 1000}, steps=STEPS, report=True))
    found = re.search(r"Tokens: 144 \(128 x 96, 9 frames\), below the min_tokens of 1,000; long enough would be (.+), or (.+)", text)
    assert found[1].endswith("9 frames") and found[2].startswith("128 x 96")
    assert "Settings: preset balanced" in text and text.count("The sequence is shorter") == 1


def test_report_warns_when_nothing_ran_sparse(client):
    _, text = run(client, wan({"min_tokens": 100000}, steps=STEPS, report=True))
    assert "WARNING: nothing ran sparse: short-sequence" in text
    assert "Lower min_tokens" in text


def test_report_finds_the_run_of_the_latent(client):
    graph = Graph()
    model = graph.attention(graph.load("wan21_t2v"), **EVERYTHING_SPARSE)
    texts = []
    for steps in (1, 3):
        sampled = graph.sample(
            model,
            graph.latent(SMALL),
            positive=graph.conditioning("wan21_t2v", 1),
            negative=graph.conditioning("wan21_t2v", 2),
            seed=steps,
            steps=steps,
        )
        texts.append((steps, graph.show(graph.add("SVGEARReport", model=model, latent=sampled)[0])))
    other = graph.latent(SMALL, noise=1.0)
    texts.append((None, graph.show(graph.add("SVGEARReport", model=model, latent=other)[0])))
    result = client.run(graph.nodes)
    for steps, node in texts:
        text = result.text(node)
        if steps is None:
            assert text.startswith(("The latent matches no recorded run", "No run recorded"))
        else:
            assert f"{steps} step{'s' * (steps > 1)}," in text and sparse_calls(text) == steps * 2


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({"dense_blocks": "first"}, "dense_blocks", "dense_blocks has 'first'"),
        ({"preset": "fastest"}, "preset", "'fastest' not in ['quality', 'balanced', 'fast', 'few-step', 'custom']"),
        ({"density": "lots"}, "density", "could not convert string to float: 'lots'"),
        ({"min_tokens": -5}, "min_tokens", "min_tokens"),
        ({"start_percent": 1.5}, "start_percent", "start_percent"),
        ({"preset": "custom", "kmeans_candidates": 17}, "kmeans_candidates", "must be 0 or a power of two"),
    ],
)
def test_a_wrong_value_is_refused_once_at_its_own_input_before_anything_runs(client, settings, name, message):
    """Beside values for every other widget, as the interface sends them."""
    schema = client.object_info("SVGEARAttention")["input"]["optional"]
    every = {name: options["default"] for name, (_, options) in schema.items() if "default" in options}
    with pytest.raises(PromptRejected) as refused:
        client.run(wan(every | {"end_percent": 1.0, "kmeans_next": 1} | settings).graph.nodes)
    found = [error for node in refused.value.details["node_errors"].values() for error in node["errors"]]
    assert [error["extra_info"]["input_name"] for error in found] == [name] and message in found[0]["details"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "custom"}, "nothing is connected to settings: connect SVG-EAR Custom Settings or SVG-EAR Load Calibration"),
        ({"preset": "balanced", "method": "svg2"}, "preset is balanced, and something is connected to settings"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent must not be the larger"),
        ({"record_layers": "first"}, "layers has 'first'"),
        ({"dense_blocks": "99"}, "dense_blocks has 99, which does not exist: write 0 to 1, or -1 to -2"),
        ({"record_layers": "2"}, "layers of SVG-EAR Record has 2"),
    ],
)
def test_what_does_not_go_together_is_refused_before_sampling(client, settings, message):
    client.reset_counters()
    failed = client.attempt(wan(settings, after=counted_evaluations).graph.nodes)
    assert failed.status == "error" and message in failed.error["exception_message"]
    assert failed.error["exception_type"] == "ValueError" and client.state()["evaluations"] == 0


def counted_evaluations(graph, model):
    return graph.add("SVGEARTestMidSampling", model=model)[0]


def test_a_linked_value_of_another_kind_is_refused_by_name(client):
    graph = Graph()
    text = graph.add("SVGEARTestAnything", text="lots")[0]
    graph.add("SVGEARTestModelFacts", model=graph.attention(graph.load("wan21_t2v"), density=text))
    failed = client.attempt(graph.nodes)
    assert "density is 'lots'; it must be a number" in failed.error["exception_message"]


@pytest.mark.parametrize("node", ["SVGEARAttention", "SVGEARReport", "SVGEARRoutedBlocks", "SVGEARCalibrate", "SVGEARSaveCalibration"])
def test_a_linked_input_that_is_gone_is_named(client, node):
    graph = Graph()
    model, latent = graph.load("wan21_t2v"), graph.latent(SMALL)
    taken = client.object_info(node)["input"]["required"]
    given = {name: value for name, value in {"model": model, "latent": latent, "name": "gone"}.items() if name in taken}
    asked = graph.add(node, **given, profile=latent)
    if not client.object_info(node)["output_node"]:
        graph.add("SVGEARTestModelFacts", model=asked[0])
    failed = client.attempt(graph.nodes)
    message = failed.error["exception_message"]
    assert "has no input profile: disconnect it; its inputs are model" in message and failed.error["exception_type"] == "ValueError"


def test_custom_settings_arrive(client):
    """Their defaults are the presets', and svg2, which drops what it skips, is further from dense."""
    sparse = {"density": 0.1, "warm_up_density": 0.0, "dense_first_steps": 0, "dense_blocks": ""}
    custom = [sparse | {"preset": "custom", "method": method} for method in ("svg-ear", "svg2")]
    dense, balanced, ours, dropped = (run(client, wan(settings, steps=STEPS))[0] for settings in (None, sparse, *custom))
    assert np.array_equal(ours, balanced)
    assert relative_error(ours, dense) < relative_error(dropped, dense)


def test_a_run_in_int8_is_as_close_to_dense_and_says_so(client):
    sparse = {"density": 0.3, "warm_up_density": 0.0, "dense_first_steps": 0, "dense_blocks": ""}
    precisions = {name: run(client, wan(sparse | {"precision": name}, steps=STEPS, report=True)) for name in ("auto", "full", "int8")}
    dense = run(client, wan(None, steps=STEPS))[0]
    (automatic, _), (full, said), (int8, told) = precisions.values()
    # Nothing runs in int8 by itself on a CPU.
    assert np.array_equal(automatic, full) and not np.array_equal(full, int8)
    assert relative_error(int8, dense) < 1.1 * relative_error(full, dense)
    assert f"queries and keys in int8 in {sparse_calls(told)} attention calls" in told and "precision int8" in told
    assert "in int8" not in said and "precision full" in said


def test_strict_mode_passes_what_is_by_design(client):
    _, text = run(client, wan({"density": 0.1, "warm_up_density": 0.0, "strict": True}, steps=STEPS, report=True))
    assert sparse_calls(text) == 1
    assert dense_calls(text)["warm-up-step"] == 2


def test_error_and_interrupt_leave_a_clean_state(client):
    """A fault leaves no tensors in the patch, and the same patch, cached meanwhile, then gives the same latent as before."""

    def attempt(steps, **inputs):
        client.reset_counters()
        planted = {"after": lambda graph, model: graph.add("SVGEARTestMidSampling", model=model, **inputs)[0]}
        sampled = wan(EVERYTHING_SPARSE, report=True, steps=steps, **planted)
        prompt = client.queue(sampled.graph.nodes)
        if "delay_ms" in inputs:
            client.wait_for_evaluations(2)
            client.interrupt()
        return sampled, client.wait(prompt)

    sampled, result = attempt(STEPS, run=1)
    expected, held = result.latent(sampled.latent), client.state()["tensor_bytes"]
    for status, fault in (("error", {"fail_at": 2}), ("interrupted", {"delay_ms": 50})):
        assert attempt(50, **fault)[1].status == status
        assert client.state()["tensor_bytes"] < held + 2**12
    sampled, result = attempt(STEPS, run=2)
    cached = {sampled.graph.nodes[node]["class_type"] for node in result.cached}
    assert "SVGEARAttention" in cached and "KSampler" not in cached
    assert np.array_equal(result.latent(sampled.latent), expected)
    text = result.text(sampled.report)
    assert sparse_calls(text) == STEPS * 2 and "stopped early" not in text


def test_runs_in_a_row_leave_no_memory_behind(comfyui, client):
    """Two runs on each patch, so that both what a patch keeps and what remains of an old patch would show."""
    held, resident = [], []
    for number in range(20):
        settings = EVERYTHING_SPARSE | {"memory_limit_mb": 1000 + number // 2}
        client.run(wan(settings, seed=number, steps=STEPS).graph.nodes)
        if number in (5, 19):
            held.append(client.state()["tensor_bytes"])
            resident.append(comfyui.resident_bytes())
    assert held[1] < held[0] + 2**12
    assert resident[1] < resident[0] + 2**24


def test_a_comparison_of_dense_and_sparse(client):
    """Dense through our node is the dense run, bit for bit, and both times are known."""
    graph = Graph()
    loaded = graph.load("wan21_t2v")
    parts = {}
    for name, settings in (("dense", EVERYTHING_SPARSE | {"dense_first_steps": 10000}), ("sparse", EVERYTHING_SPARSE)):
        model = graph.attention(loaded, **settings)
        conditions = {side: graph.conditioning("wan21_t2v", seed) for side, seed in (("positive", 1), ("negative", 2))}
        latent = graph.sample(model, graph.latent(SMALL), seed=31, steps=3, **conditions)
        # An image that stands for the decoded clip.
        parts |= {name: graph.add("SVGEARTestImage", latent=latent)[0], f"{name}_model": model, f"{name}_latent": latent}
        if name == "dense":
            saved = graph.save(latent)
    compared = graph.add("SVGEARCompare", **parts)
    shown = graph.show(compared[0])
    result = client.run(graph.nodes)
    text = result.text(shown)
    assert re.search(r"PSNR [\d.]+ dB against dense \(3 frames; worst frame \d", text) and "sparse_model" not in text
    assert re.search(r"Dense: .+ m?s, sparse: .+ m?s: sparse [\d.]+x as (fast|slow)", text) and "WARNING" not in text
    assert result.outputs[compared.id]["status"][0].startswith("PSNR")
    plain, _ = run(client, wan(steps=3, seed=31))
    assert np.array_equal(result.latent(saved), plain)
