"""Blocks of models that do not name them: known in every call, whoever else replaces, compiles or skips blocks."""

import threading

import pytest
import torch
from fake_comfyui import DIM, HEADS, MODELS, Harness, counts, dense, qkv
from svg_ear.nodes.patch import override
from svg_ear.nodes.patch.blocks import naming_blocks, running_block
from svg_ear.nodes.patch.override import OVERRIDE

LATENT = (1, 128, 3, 4, 8)
BLOCKS = 12


@pytest.fixture
def blocks(monkeypatch):
    """The blocks of the attention calls, in the order of the calls."""
    found = []

    def noted(call, evaluation, transformer_options, *args):
        found.append(running_block(transformer_options)[1])
        return decide(call, evaluation, transformer_options, *args)

    decide = override.decide
    monkeypatch.setattr(override, "decide", noted)
    monkeypatch.setattr(MODELS["ltx"], "transformer_blocks", [None] * BLOCKS)
    return found


def test_a_block_is_known_however_many_before_it_were_skipped(blocks):
    played = Harness("ltx", dense_blocks="7")

    def body(attention):
        for block in (3, 0, 7, 3):
            attention(*qkv(), HEADS, block=block)

    record = played.sample(lambda: played.evaluate(body, shape=LATENT))
    assert blocks == [3, 0, 7, 3]
    assert record.sparse_calls == 3 and counts(record) == {"dense-block": 1}


def test_what_the_model_says_comes_before_what_is_found_out():
    (options,) = _options_seen({})
    assert running_block(options) == (None, 1)
    assert running_block(options | {"block_index": 5, "block_type": "single"}) == ("single", 5)


def test_replacements_of_others_are_called_in_their_place_and_nothing_stays():
    called = []

    def other(args, extra):
        called.append(running_block(args["transformer_options"]))
        return extra["original_block"](args)

    given = {"patches_replace": {"dit": {("double_block", 1): other, ("single_block", 0): other}, "attn1": {}}}
    before = {name: dict(patches) for name, patches in given["patches_replace"].items()}
    (options,) = _options_seen(given)
    assert called == [(None, 1)] and running_block(options) == (None, 1)
    assert given == {"patches_replace": before}
    assert naming_blocks(given, 2)["patches_replace"]["dit"][("single_block", 0)] is other


def _options_seen(given):
    """What block 1 of a model of two is given."""
    seen = []

    def block(args):
        seen.append(args["transformer_options"])
        return {"img": None}

    options = naming_blocks(given, 2)
    options["patches_replace"]["dit"][("double_block", 1)]({"transformer_options": options}, {"original_block": block})
    return seen


def test_a_pass_over_the_blocks_that_asks_for_no_replacement_is_said(blocks):
    played = Harness("ltx")
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(), HEADS, block=None), shape=LATENT))
    assert counts(record) == {"unknown-block": 1}
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(16), HEADS, block=None), shape=LATENT))
    assert counts(record) == {"token-refiner": 1}


def test_threads_do_not_meet():
    """Two threads that share the options of a model run another block each at the same time."""
    found, meeting, options = {"up": [], "down": []}, threading.Barrier(2), naming_blocks({}, BLOCKS)
    orders = {"up": range(BLOCKS), "down": range(BLOCKS - 1, -1, -1)}

    def run(args):
        meeting.wait(10)
        found[threading.current_thread().name].append(running_block(args["transformer_options"])[1])
        meeting.wait(10)
        return {}

    def body():
        for number in orders[threading.current_thread().name]:
            options["patches_replace"]["dit"][("double_block", number)]({"transformer_options": options}, {"original_block": run})

    threads = [threading.Thread(target=body, name=name) for name in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: list(order) for name, order in orders.items()}


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, transformer_options):
        attention = transformer_options[OVERRIDE]
        x = x * self.scale
        return attention(dense, x, x + 1, x - 1, HEADS, transformer_options=transformer_options) + x


class LTXVModel(torch.nn.Module):
    """Runs its blocks as ComfyUI's does."""

    def __init__(self):
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x, transformer_options):
        replaced = transformer_options["patches_replace"]["dit"]
        for number, block in enumerate(self.transformer_blocks):

            def run(args, block=block):
                return {"img": block(args["img"], args["transformer_options"])}

            x = replaced[("double_block", number)]({"img": x, "transformer_options": transformer_options}, {"original_block": run})["img"]
        return x


@pytest.mark.parametrize("is_whole", [False, True])
def test_compiled_models_know_their_blocks_and_compile_nothing_anew(blocks, is_whole):
    """Compiled as ComfyUI's node does it: what is in ``transformer_options`` is not guarded."""
    compilations, counted = [], []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    def unguarded(guards):
        return ["transformer_options" not in guard.name for guard in guards]

    torch._dynamo.reset()
    played, model = Harness("ltx"), LTXVModel()
    compiled = {"backend": backend, "options": {"guard_filter_fn": unguarded}}
    if not is_whole:
        for number in range(BLOCKS):
            model.transformer_blocks[number] = torch.compile(model.transformer_blocks[number], **compiled)
    run = torch.compile(model, **compiled) if is_whole else model
    played.base_model.diffusion_model = run

    def executor(*args, transformer_options):
        return run(torch.randn(1, 96, HEADS * DIM), transformer_options)

    executor.class_obj = played.base_model

    def steps():
        for sigma in played.sample_sigmas[:-1]:
            given = {"sample_sigmas": played.sample_sigmas, "sigmas": sigma[None], "uuids": ["cond"]}
            played.patch.apply_model(executor, torch.zeros(LATENT), None, transformer_options=given)
            counted.append(len(compilations))

    with torch.no_grad():
        assert played.sample(steps).sparse_calls == 5 * BLOCKS
    assert blocks == list(range(BLOCKS)) * 5
    # Before and after the attention, once for all blocks.
    assert counted == [2] * 5
