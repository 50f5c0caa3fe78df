"""What is compiled ahead is what calls then launch."""

import inspect
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from kernel_inputs import clustered
from svg_ear.kernels import (
    BlockRouting,
    ClusterState,
    Preparation,
    SelfTest,
    SequenceLayout,
    Settings,
    preparation,
    prepare,
    selftest,
    sparse_attention,
)
from svg_ear.kernels.hollow import HollowCall
from svg_ear.kernels.preparation import _queues
from svg_ear.nodes.patch.expectation import expected_call
from svg_ear.nodes.patch.options import PRESETS, Options
from triton_cases import GPU, arranged

pytest.importorskip("triton")
from svg_ear.kernels.triton_stages.launches import recorded_launches
from svg_ear.kernels.triton_stages.sort import sort_by_label
from triton._C.libtriton import native_specialize_impl
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import KernelInterface

pytestmark = pytest.mark.skipif(GPU, reason="test_cuda.py counts what is compiled in a call")
TOKENS, HEADS = 130, 3
TEXT = SequenceLayout(range(TOKENS), (range(TOKENS, TOKENS + 7),))
MASKED = SequenceLayout(range(5, TOKENS), (range(2, 5), range(TOKENS, TOKENS + 7)))
PART = SequenceLayout(range(TOKENS), (range(TOKENS, TOKENS + 7),), range(3, 50))
COUNTS = {"query_clusters": 5, "key_clusters": 34, "kmeans_first": 2}


def variant(kernel, arguments, options):
    """What Triton compiles for a launch on an NVIDIA GPU, in the words of Triton itself."""
    parameters = inspect.signature(kernel.fn).parameters
    given = dict(zip(parameters, arguments)) | options
    found = [kernel.fn.__qualname__, kernel.fn.__module__]
    # Triton tells the options of a launch apart by their order, too.
    for name, value in [(name, given.pop(name)) for name in parameters] + list(given.items()):
        if name not in parameters or "constexpr" in str(parameters[name].annotation):
            found.append((name, value))
        else:
            specialize = name not in (kernel.kwargs["do_not_specialize"] or ())
            align = name not in (kernel.kwargs["do_not_specialize_on_alignment"] or ())
            found.append((name, native_specialize_impl(CUDABackend, value, False, specialize, align)))
    return str(found)


@contextmanager
def noted_launches():
    """The variants of kernels that are launched in the block, without making them: what they would write is zero."""
    variants = set()

    def noting(kernel, grid):
        return lambda *arguments, **options: variants.add(variant(kernel, arguments, options))

    with (
        patch.object(KernelInterface, "__getitem__", noting),
        patch.object(torch, "empty", torch.zeros),
        patch.object(torch.Tensor, "new_empty", torch.Tensor.new_zeros),
    ):
        yield variants


def variants_of(*calls):
    """What is compiled for calls without data."""
    return {variant(launch.kernel, launch.arguments, dict(launch.options)) for call in calls for launch in call.launches()}


def by_blocks(settings, repeating=(), labelled=False):
    """Blocks of 64 tokens of which each attends to itself."""
    exact = torch.eye(3, dtype=torch.bool).expand(HEADS, 3, 3).clone()
    labels = (torch.arange(TOKENS, dtype=torch.int32) // 64).expand(HEADS, -1).contiguous() if labelled else None
    return settings, {"blocks": BlockRouting(exact, 64, repeating, labels)}


CALLS = {
    "plain": (Settings(**COUNTS), {}),
    "batch": (Settings(**COUNTS), {"batch": 2}),
    "text": (Settings(**COUNTS), {"layouts": TEXT}),
    "masked text": (Settings(**COUNTS), {"layouts": [MASKED, MASKED], "batch": 2, "arrangement": "tokens first"}),
    "a part of the queries": (Settings(**COUNTS), {"layouts": PART, "queries": 52}),
    "biases": (Settings(**COUNTS), {"layouts": TEXT, "biases": torch.zeros(1, 1, TOKENS + 10)}),
    "biases of each head": (Settings(**COUNTS), {"layouts": [MASKED, MASKED], "batch": 2, "biases": torch.zeros(2, HEADS, TOKENS + 10)}),
    "one chunk": (Settings(**COUNTS), {"arrangement": "apart", "memory_limit": None}),
    "not always anew": (Settings(**COUNTS, density=0.3, recluster_every=3), {}),
    "as published": (Settings(**COUNTS, kmeans_candidates=0, weighted_centroids=False, key_metric=False), {}),
    "top-p": (Settings(**COUNTS, budget="top-p", min_share=0.1), {}),
    "svg2": (Settings(**COUNTS, method="svg2"), {"layouts": TEXT}),
    "int8": (Settings(**COUNTS, precision="int8"), {"layouts": TEXT, "batch": 2}),
    "int8, svg2": (Settings(**COUNTS, method="svg2", precision="int8"), {"arrangement": "tokens first"}),
    "calibrated": by_blocks(Settings(method="calibrated")),
    "calibrated, int8": by_blocks(Settings(method="calibrated", precision="int8")),
    "calibrated, repeating": by_blocks(Settings(method="calibrated", compensate=False), (1,), True),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_first_and_later_calls_launch_just_what_was_found_without_data(name, dtype):
    settings, options = CALLS[name]
    call = {"layouts": None, "blocks": None, "memory_limit": 1} | options
    batch, arrangement = call.pop("batch", 1), call.pop("arrangement", "heads first")
    tokens = TOKENS if call["layouts"] is None else TOKENS + 10
    queries = call.pop("queries", tokens)
    inputs = [arranged(tensor, arrangement) for tensor in clustered(tokens, batch, HEADS, dtype=dtype)]
    inputs[0] = inputs[0][:, :, :queries]
    hollow, state = HollowCall.like(*inputs, settings, **call), ClusterState()
    with noted_launches() as launched:
        for _ in range(2 + settings.recluster_every):
            sparse_attention(*inputs, settings, **call, state=state, implementation="triton")
    assert variants_of(hollow) == launched


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("preset", PRESETS)
def test_guidance_and_a_falling_density_launch_nothing_else(preset, batch):
    """A model prepares with the last step's density and without owners; its steps are denser, and two items share their clusters."""
    last = replace(PRESETS[preset], **COUNTS)
    inputs = clustered(TOKENS + 10, batch, HEADS, dtype=torch.bfloat16)
    found = HollowCall.like(*inputs, last, TEXT, None, 1)
    state, first = ClusterState(), Options(preset=preset).first_density()
    with noted_launches() as launched:
        for density in (first, (first + last.density) / 2, last.density):
            settings = replace(last, density=density)
            sparse_attention(
                *inputs, settings, layouts=TEXT, memory_limit=1, state=state, owners=[batch - 1] * batch, implementation="triton"
            )
    assert variants_of(found) == launched


class WanModel:
    blocks = [None] * 40
    num_heads, dim = 40, 5120


class HunyuanVideo:
    double_blocks = single_blocks = [None] * 20
    num_heads, hidden_size = 24, 3072


class LTXVModel:
    transformer_blocks = [None] * 28
    num_attention_heads, attention_head_dim = 32, 64


@pytest.mark.parametrize("tokens", [27_280, 118_800])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("model", "text", "dim"), [(WanModel, 0, 128), (HunyuanVideo, 333, 128), (LTXVModel, 0, 64)])
def test_what_is_expected_of_a_model_launches_what_its_calls_launch(model, text, dim, preset, tokens):
    patcher = SimpleNamespace(load_device=torch.device("cuda", 0), model_dtype=lambda: torch.float8_e4m3fn)
    patcher.model = SimpleNamespace(diffusion_model=model(), manual_cast_dtype=torch.bfloat16)
    expected = expected_call(patcher, PRESETS[preset], None)
    # The two arrangements in which models hand their tensors over.
    q = torch.empty(2, text + tokens, 3 * dim, dtype=torch.bfloat16).unflatten(-1, (3, dim)).transpose(1, 2)
    real = HollowCall.like(
        q, torch.empty(q.shape, dtype=q.dtype), q, PRESETS[preset], SequenceLayout(range(text, text + tokens), (range(text),)), None, None
    )
    assert expected.kind[1:] == real.kind[1:] and expected.device == patcher.load_device
    here = replace(expected, inputs=tuple(replace(tensor, device=torch.device("cpu")) for tensor in expected.inputs))
    assert variants_of(here) == variants_of(real)


def test_a_misaligned_input_is_compiled_for():
    """Whether tensors begin at a multiple of 16 bytes is a part of what is compiled."""
    whole = [torch.zeros(1, 2, 65, 64, dtype=torch.float16).flatten() for _ in range(3)]
    call = {"settings": Settings(), "layouts": None, "blocks": None, "memory_limit": None}
    places = ({}, {})
    for behind, place in zip((0, 1), places):
        inputs = [memory[behind : behind + 2 * 64 * 64].view(1, 2, 64, 64) for memory in whole]
        launches = HollowCall.like(*inputs, **call).launches()
        place.update((launch.kernel.fn.__name__, launch.arguments[0]) for launch in launches)
    assert [place["_nearest"].address for place in places] == [0, 2]


def test_only_the_launches_of_one_thread_are_recorded():
    labels = torch.tensor([[[2, 0, 1, 0]]], dtype=torch.int32)
    with ThreadPoolExecutor(1) as threads, recorded_launches() as found:
        elsewhere = threads.submit(sort_by_label, labels, 3).result().order
        sort_by_label(labels, 3)
    assert elsewhere.tolist() == [[[1, 3, 2, 0]]]
    assert [launch.kernel.fn.__name__ for launch in found] == ["_count", "_place"]
    assert sort_by_label(labels, 3).order.tolist() == [[[1, 3, 2, 0]]]


def test_nothing_is_prepared_on_a_cpu():
    with pytest.raises(ValueError, match="on a CPU"):
        prepare(HollowCall.like(*clustered(40), Settings(), None, None, None))


SLOWEST = {
    "full": ["_place", "_attend", "_probe", "_dense", "_denominators"],
    "int8": ["_place", "_attend_int8", "_quantize", "_attend_again", "_probe", "_dense", "_denominators"],
}


@pytest.mark.parametrize(("precision", "slowest"), SLOWEST.items())
def test_the_slowest_kernels_are_compiled_first_and_none_twice_at_once(precision, slowest):
    settings, inputs = Settings(**COUNTS, precision=precision), clustered(TOKENS + 10, 2, HEADS, dtype=torch.bfloat16)
    launches = HollowCall.like(*inputs, settings, TEXT, None, 1).launches()
    queues = _queues(launches)
    assert sorted(map(id, itertools.chain(*queues))) == sorted(map(id, launches))
    found = [variants_of(SimpleNamespace(launches=lambda: queue)) for queue in queues]
    assert sum(map(len, found)) == len(set().union(*found))
    names = [queue[0].kernel.fn.__name__ for queue in queues]
    assert names[: len(slowest)] == slowest
    attend = slowest[1]
    assert names.count(attend) == 2 and names.index(attend, 2) >= len(set(names)), "two tile shapes would begin at once"


def test_what_is_stopped_compiles_no_further(monkeypatch):
    compiled, began, go_on = [], threading.Event(), threading.Event()

    class Kernel:
        fn = clustered

    class Variant:
        kernel, options = Kernel, ()

        def compile(self):
            compiled.append(self)
            began.set()
            assert go_on.wait(60)
            return self

    monkeypatch.setattr(preparation, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    call = SimpleNamespace(device=torch.device("cuda", 0), launches=lambda: [Variant(), Variant()])
    stopped = prepare(call)
    assert began.wait(60) and not stopped.has_ended
    stopped.stop()
    go_on.set()
    stopped.wait()
    whole = prepare(call)
    whole.wait()
    assert len(compiled) == 3 and stopped.kernels == {compiled[0]} and whole.kernels == {*compiled[1:]} and not whole.errors


def test_nothing_is_prepared_where_triton_cannot_run(monkeypatch):
    monkeypatch.setattr(preparation, "unavailable_reason", lambda device: "there is no compiler")
    with pytest.raises(RuntimeError, match="there is no compiler"):
        prepare(SimpleNamespace(device=torch.device("cuda", 0)))


@pytest.mark.parametrize("precision", ["full", "int8"])
@pytest.mark.parametrize("text", [0, 77])
def test_no_number_of_tokens_heads_or_chunks_needs_a_kernel_of_its_own(text, precision):
    found = []
    for tokens, heads, memory_limit in ((32_760, 4, None), (32_760, 3, 1), (27_281, 5, None), (75_600, 1, None), (47_033, 3, 2**28)):
        inputs = [torch.empty(1, text + tokens, heads, 128, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)]
        layout = SequenceLayout(range(text, text + tokens), (range(text),))
        found.append(variants_of(HollowCall.like(*inputs, Settings(precision=precision), layout, None, memory_limit)))
    assert all(variants == found[0] for variants in found), [variants ^ found[0] for variants in found]


def test_inputs_that_will_be_converted_are_compiled_for_as_they_will_be():
    inputs = [arranged(tensor, "tokens first") for tensor in clustered(TOKENS, 1, HEADS, dtype=torch.float32)]
    ahead = HollowCall.like(*inputs, Settings(**COUNTS), None, None, None, torch.float16)
    assert variants_of(ahead) == variants_of(HollowCall.like(*(tensor.half() for tensor in inputs), Settings(**COUNTS), None, None, None))


TESTED = {
    "plain": Settings(),
    "as published": Settings(kmeans_candidates=0, weighted_centroids=False, key_metric=False),
    "top-p": Settings(budget="top-p", min_share=0.1, recluster_every=2),
    "svg2": Settings(method="svg2"),
    "calibrated": Settings(method="calibrated"),
}


@pytest.mark.parametrize("text", [0, 77])
@pytest.mark.parametrize("settings", TESTED.values(), ids=TESTED)
def test_the_self_test_has_the_kernels_of_real_calls_and_no_others(monkeypatch, settings, text):
    monkeypatch.setattr(selftest, "INTERPRETER", selftest.GPU)
    tokens, heads = 32_760, 12
    inputs = [torch.empty(1, text + tokens, heads, 128, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)]
    blocks = BlockRouting(torch.eye(256, dtype=torch.bool).expand(heads, -1, -1), 128) if settings.method == "calibrated" else None
    call = HollowCall.like(*inputs, settings, SequenceLayout(range(text, text + tokens), (range(text),)), blocks, None)
    assert variants_of(*SelfTest(torch.device("cpu"), torch.bfloat16, settings, text=text > 0).hollow()) == variants_of(call)


def test_what_a_self_test_launches_was_compiled_for_it():
    test, launched, launching = (
        SelfTest(torch.device("cpu"), torch.float16, Settings(method="calibrated"), 64),
        set(),
        KernelInterface.__getitem__,
    )

    def noting(kernel, grid):
        def launch(*arguments, **options):
            launched.add(variant(kernel, arguments, options))
            return launching(kernel, grid)(*arguments, **options)

        return launch

    compiled = variants_of(*test.hollow())
    with patch.object(KernelInterface, "__getitem__", noting):
        assert test.run() is None
    assert launched == compiled


@pytest.mark.parametrize("outcome", [None, "attend is off", OSError("planted")], ids=str)
def test_a_preparation_ends_with_the_self_test(monkeypatch, outcome):
    done = []
    monkeypatch.setattr(Preparation, "_compile", lambda self, launches: done.append({launch.kernel.fn.__name__ for launch in launches}))

    def run():
        done.append("test")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    inputs = clustered(TOKENS, 1, HEADS, dtype=torch.float16)
    other = HollowCall.like(*inputs, Settings(), None, None, None)
    test = SimpleNamespace(hollow=lambda: [other], run=run)
    preparation = Preparation(HollowCall.like(*inputs, Settings(method="svg2"), None, None, None), test)
    preparation.wait()
    assert preparation.wrong is outcome and not preparation.errors
    assert done[1:] == ["test"] and {"_probe", "_select"} <= done[0]
