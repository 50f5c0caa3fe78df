"""The fixtures themselves: every tiny checkpoint is what it claims to be, and stock graphs run with it."""

import json

import numpy as np
import pytest
from harness.checkpoints import ARCHITECTURES
from harness.client import PromptRejected
from harness.graphs import Graph, sampling, two_expert_sampling


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_is_detected_without_missing_or_unexpected_keys(comfyui, client, name):
    before = len(comfyui.log())
    graph = Graph()
    facts = graph.add("SVGEARTestModelFacts", model=graph.load(name))
    stated = json.loads(client.run(graph.nodes).text(facts))
    assert stated["model_class"] == ARCHITECTURES[name].model_class
    log = comfyui.log()[before:].lower()
    assert not [line for line in log.splitlines() if "missing" in line or "unexpected" in line or "left over" in line]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_runs_dense_with_the_expected_attention_calls(client, name):
    architecture = ARCHITECTURES[name]
    steps = 2
    run = sampling(name, steps=steps, after=_counted)
    latent = client.run(run.graph.nodes).latent(run.latent)
    assert latent.shape == (1, *architecture.latent)
    assert np.isfinite(latent).all() and latent.std() > 0.05
    counted = client.state()
    assert counted["evaluations"] == steps
    assert counted["attention_calls"] == steps * (architecture.self_attention + architecture.other_attention)


def test_equal_text_lengths_share_a_batch_and_different_ones_do_not(client):
    for tokens, evaluations in ((12, 2), (9, 4)):
        client.reset_counters()
        run = sampling("wan21_t2v", cfg=4.0, negative={"tokens": tokens}, after=_counted)
        client.run(run.graph.nodes)
        assert client.state()["evaluations"] == evaluations


def test_two_experts_split_one_schedule(client):
    run = two_expert_sampling(cfg=3.0)
    latent = client.run(run.graph.nodes).latent(run.latent)
    assert np.isfinite(latent).all()


def test_masked_text_changes_the_result(client):
    plain, masked = sampling("hunyuan_video"), sampling("hunyuan_video", positive={"padding": 4})
    first = client.run(plain.graph.nodes).latent(plain.latent)
    second = client.run(masked.graph.nodes).latent(masked.latent)
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize(("name", "extra"), [("wan22_i2v_high", "image"), ("wan21_i2v", "image"), ("wan21_t2v", "context")])
def test_extra_latents_reach_the_model(client, name, extra):
    shape = ARCHITECTURES[name].latent

    def conditioned(graph, model):
        conditioning = graph.conditioning(name, 1, **{extra: graph.latent(shape, noise=1.0, seed=3)})
        return graph.save(graph.sample(model, graph.latent(shape), positive=conditioning, negative=conditioning, steps=1))

    graph = Graph()
    saved = conditioned(graph, graph.load(name))
    plain = sampling(name, steps=1)
    with_extra = client.run(graph.nodes).latent(saved)
    without = client.run(plain.graph.nodes).latent(plain.latent)
    assert np.abs(with_extra - without).max() > 1e-4


def test_same_seed_gives_the_same_latent(client):
    runs = [sampling("wan21_t2v", before=lambda graph, model, n=n: _tagged(graph, model, n)) for n in (1, 2)]
    first, second = (client.run(run.graph.nodes).latent(run.latent) for run in runs)
    assert np.array_equal(first, second)


def test_errors_interrupts_and_rejections_are_told_apart(client):
    failing = sampling("wan21_t2v", after=lambda g, m: g.add("SVGEARTestMidSampling", model=m, fail_at=2)[0])
    result = client.attempt(failing.graph.nodes)
    assert result.status == "error"
    assert "planted failure at evaluation 2" in result.error["exception_message"]

    client.reset_counters()
    slow = sampling("wan21_t2v", steps=50, after=lambda g, m: g.add("SVGEARTestMidSampling", model=m, delay_ms=50)[0])
    prompt = client.queue(slow.graph.nodes)
    client.wait_for_evaluations(2)
    client.interrupt()
    assert client.wait(prompt).status == "interrupted"

    with pytest.raises(PromptRejected, match="not_there"):
        graph = Graph()
        graph.add("SVGEARTestModelFacts", model=graph.add("UNETLoader", unet_name="not_there", weight_dtype="default")[0])
        client.run(graph.nodes)


def _counted(graph, model):
    model = graph.add("SVGEARTestCountAttention", model=model)[0]
    return graph.add("SVGEARTestMidSampling", model=model)[0]


def _tagged(graph, model, number):
    return graph.add("SVGEARTestMidSampling", model=model, run=number)[0]
