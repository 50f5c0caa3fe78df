"""What computes the calls that stay dense: the fastest exact backend where nobody chose, and what was chosen where somebody did."""

import sys
from dataclasses import replace
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
from fake_comfyui import HEADS, Harness, WanModel, dense, qkv, split
from svg_ear.nodes.patch import dense as dense_module
from svg_ear.nodes.patch.backends import Backend, FastestBackend
from svg_ear.nodes.patch.call import AttentionCall
from svg_ear.nodes.patch.dense import is_default, name_of, name_of_override
from svg_ear.nodes.patch.override import OVERRIDE
from torch.nn import functional
from torch.nn.attention import SDPBackend


def backend(name, takes=True):
    return Backend(name, SDPBackend.CUDNN_ATTENTION, lambda params: takes)


class Failing(Backend):
    def attend(self, call):
        raise RuntimeError("No valid execution plans built")


class Stopwatch:
    """Calls a function once and gives it the time of the backend that it is said to be, in the order they are tried."""

    def __init__(self, *seconds):
        self.seconds, self.outputs = list(seconds), []

    def __call__(self, compute, device):
        taken = self.seconds.pop(0)
        self.outputs.append(compute())
        return taken


def half(tensors):
    return tuple(tensor.bfloat16() for tensor in tensors)


def call_of(tokens=96, **options):
    return AttentionCall.of(*half(qkv(tokens)), HEADS, **options)


def fastest(backends, *seconds):
    return FastestBackend(backends, Stopwatch(*seconds), device_type="cpu")


@pytest.fixture
def default(monkeypatch):
    """ComfyUI's own attention takes 10 ms, the only backend so many as the test says; nobody chose anything."""

    def install(seconds, kind=Backend):
        found = FastestBackend([kind("cuDNN", SDPBackend.CUDNN_ATTENTION, lambda params: True)], Stopwatch(0.01, seconds), "cpu")
        monkeypatch.setattr(dense_module, "FASTEST", found)
        monkeypatch.setattr(dense_module, "is_default", lambda func: True)
        return found

    return install


@pytest.mark.parametrize(
    ("own", "first", "second", "expected"),
    [(10, 7, 8, "first"), (10, 8, 7, "second"), (10, 9.8, 11, None), (10, 12, 11, None)],
)
def test_the_fastest_is_taken_where_it_is_clearly_faster(own, first, second, expected):
    found = fastest([backend("first"), backend("second")], own, first, second).find(call_of(), dense)
    assert (found and found.name) == expected


def test_one_trial_for_all_calls_of_a_kind():
    chooser = fastest([backend("first")], 10, 5, 10, 20)
    assert [chooser.find(call_of(tokens), dense).name for tokens in (96, 97, 127)] == ["first"] * 3
    # Another length is another kind.
    assert chooser.find(call_of(300), dense) is None and chooser._seconds.seconds == []
    assert chooser.find(call_of(), dense).name == "first"


def test_a_trial_is_of_the_first_queries(monkeypatch):
    monkeypatch.setattr("svg_ear.nodes.patch.backends.TRIAL_QUERIES", 10 * HEADS)
    mask = torch.randn(96, 96).bfloat16()
    chooser, call = fastest([backend("first")], 10, 5), call_of(mask=mask)
    chooser.find(call, dense)
    expected = call.through(dense)[:, :10]
    own, theirs = chooser._seconds.outputs
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(theirs, expected, atol=0.02, rtol=0.02)


def test_what_fails_or_cannot_be_used_is_left_out():
    failing = Failing("failing", SDPBackend.CUDNN_ATTENTION, lambda params: True)
    chooser = fastest([failing, backend("unfit", takes=False), backend("fit")], 10, 1, 5)
    assert chooser.find(call_of(), dense).name == "fit"
    assert fastest([backend("unfit", takes=False)]).find(call_of(), dense) is None


def test_calls_of_other_kinds_are_not_tried():
    chooser, call = fastest([backend("first")]), call_of()
    single = replace(call, q=call.q.float(), k=call.k.float(), v=call.v.float())
    q, k, v = split(half(qkv()))
    grouped = AttentionCall.of(q, k[:, :1], v[:, :1], HEADS, skip_reshape=True, enable_gqa=True)
    unknown = call_of(causal=True)
    trained = replace(call, q=call.q.clone().requires_grad_())
    for other in (single, grouped, unknown, trained):
        assert chooser.find(other, dense) is None
    assert FastestBackend([backend("first")], Stopwatch()).find(call, dense) is None, "the CPU has no such backends"


@pytest.mark.parametrize("skip_reshape", [False, True])
@pytest.mark.parametrize("skip_output_reshape", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_output_has_comfyuis_layout(default, skip_reshape, skip_output_reshape, masked):
    default(0.005)
    played, tensors = Harness(dense_first_steps=5), half(qkv(seed=1))
    given = split(tensors) if skip_reshape else tensors
    layout = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape, "scale": 0.05}
    layout["mask"] = torch.zeros(1, 1, 96).bfloat16().index_fill(-1, torch.arange(5), -3e38) if masked else None
    expected, outputs = dense(*given, HEADS, **layout), []
    # In the trial ComfyUI's own attention is called as well.
    record = played.sample(lambda: outputs.append(played.evaluate(lambda attention: attention(*given, HEADS, **layout))))
    (found,) = outputs
    assert found.shape == expected.shape and found.dtype == expected.dtype and found.stride() == expected.stride()
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    assert record.dense_attention == {"cuDNN (PyTorch SDPA)": 1} and played.dense_calls == 1


def test_comfyuis_own_stays_where_it_is_as_fast(default):
    default(0.0099)
    played, tensors = Harness(dense_first_steps=5), half(qkv())
    outputs = []
    record = played.sample(lambda: outputs.append(played.evaluate(lambda attention: attention(*tensors, HEADS))))
    assert torch.equal(outputs[0], dense(*tensors, HEADS))
    assert record.dense_attention == {"_func of fake_comfyui": 1}


def test_an_error_later_on_hands_the_call_back_for_good(default, caplog):
    chooser = default(0.005)
    played, tensors = Harness(dense_first_steps=5), half(qkv())

    def body(attention):
        attention(*tensors, HEADS)
        kind, found = next(iter(chooser._found.items()))
        chooser._found[kind] = Failing(found.name, found.kernel, found.can_use)
        for _ in range(2):
            torch.testing.assert_close(attention(*tensors, HEADS), dense(*tensors, HEADS))

    record = played.sample(lambda: played.evaluate(body))
    assert record.dense_attention == {"cuDNN (PyTorch SDPA)": 1, "_func of fake_comfyui": 2}
    assert caplog.text.count("No valid execution plans built") == 1


def test_only_the_videos_own_attention_is_tried(default):
    chooser = default(0.005)
    played, (q, k, v) = Harness(), half(qkv())

    def body(attention):
        attention(q, k[:, :8], v[:, :8], HEADS)
        attention(q, k, v, HEADS, low_precision_attention=False)

    record = played.sample(lambda: played.evaluate(body))
    assert chooser._found == {} and record.dense_attention == {} and sum(record.dense_calls.values()) == 2


def test_an_override_below_is_never_overruled(default):
    chooser = default(0.005)

    def below(func, *args, **kwargs):
        return func(*args, **kwargs)

    played = Harness(dense_first_steps=5)
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*half(qkv()), HEADS), **{OVERRIDE: below}))
    assert chooser._found == {} and list(record.dense_attention) == [f"the override below of {__name__}"]


class Preferring(WanModel):
    """A model of ComfyUI 0.36, whose modules have ``self`` and ``cross`` attention of their choice."""

    def __init__(self, own, cross):
        def block():
            made = torch.nn.Module()
            for name, function in (("self_attn", own), ("cross_attn", cross)):
                part = torch.nn.Module()
                part.comfy_attention = torch.nn.Module()
                part.comfy_attention.function = function
                setattr(made, name, part)
            return made

        self.blocks = [block() for _ in range(4)]

    def named_modules(self):
        return [(f"{number}.{name}", part) for number, block in enumerate(self.blocks) for name, part in block.named_modules()]


class Chosen:
    """An attention function that somebody chose."""

    def __init__(self):
        self.calls = 0
        self.__name__, self.__module__ = "attention_sage", "comfy.ldm.modules.attention"

    def __call__(self, *args, transformer_options, **kwargs):
        assert OVERRIDE not in transformer_options, "it would come back to us"
        self.calls += 1
        return dense(*args, **kwargs)


def preferring(own, cross, body, **where):
    played = Harness(dense_first_steps=5)
    played.base_model.diffusion_model = Preferring(own, cross)
    record = played.sample(lambda: played.evaluate(lambda attention: body(partial(attention, **where))))
    return record, played


def self_and_cross(attention):
    q, k, v = half(qkv())
    attention(q, k, v, HEADS)
    attention(q, k[:, :8], v[:, :8], HEADS)


def test_what_the_model_prefers_is_not_lost(default):
    chooser, own, cross = default(0.005), Chosen(), Chosen()
    record, played = preferring(own, cross, self_and_cross)
    assert (own.calls, cross.calls, played.dense_calls) == (1, 1, 0) and chooser._found == {}
    assert record.dense_attention == {"ComfyUI's SageAttention, preferred by the model": 1}


def test_what_asks_for_full_precision_is_left_to_comfyui(default):
    default(0.005)
    own, cross = Chosen(), Chosen()
    _, played = preferring(own, cross, lambda attention: attention(*half(qkv()), HEADS, low_precision_attention=False))
    assert (own.calls, cross.calls, played.dense_calls) == (0, 0, 1)


def test_what_one_module_prefers_is_not_anothers(default):
    default(0.02)
    own = Chosen()
    _, played = preferring(own, None, self_and_cross)
    assert (own.calls, played.dense_calls) == (1, 1)
    cross = Chosen()
    record, played = preferring(None, cross, self_and_cross)
    # One of them in the trial.
    assert (cross.calls, played.dense_calls) == (1, 2)
    assert record.dense_attention == {"_func of fake_comfyui": 1}


def test_without_names_of_blocks_the_modules_of_the_whole_model_must_agree(default, monkeypatch):
    chooser, own = default(0.005), Chosen()
    record, _ = preferring(own, None, self_and_cross, block=None)
    assert own.calls == 1
    played = Harness("ltx", dense_first_steps=5)
    blocks = [*Preferring(own, None).blocks, *Preferring(Chosen(), None).blocks]
    monkeypatch.setattr(
        type(played.base_model.diffusion_model),
        "named_modules",
        lambda model: [(f"{number}.{name}", part) for number, block in enumerate(blocks) for name, part in block.named_modules()],
        raising=False,
    )
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*half(qkv(96)), HEADS, block=None), shape=(1, 16, 3, 4, 8)))
    assert own.calls == 1 and chooser._found == {}
    assert list(record.dense_attention) == ["_func of fake_comfyui (parts of the model prefer another, but not which calls are theirs)"]


def comfyui(monkeypatch, **switches):
    """ComfyUI's modules as far as they say what is the default; gives the function that an override gets."""

    def attention_pytorch():
        pass

    def wrapper():
        pass

    wrapper.__wrapped__ = attention_pytorch
    modules = {name: ModuleType(f"comfy.{name}") for name in ("ldm.modules.attention", "ops", "cli_args")}
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    modules["ldm.modules.attention"].attention_pytorch = wrapper
    modules["ops"].scaled_dot_product_attention = scaled = lambda: None
    scaled.__module__ = "comfy.ops"
    modules["cli_args"].args = SimpleNamespace(**switches)
    return attention_pytorch


def test_the_default_is_pytorchs_attention_that_may_add_in_another_order(monkeypatch):
    assert not is_default(dense), "without ComfyUI"
    # It names PyTorch's attention, not one of its kernels.
    default = comfyui(monkeypatch, use_pytorch_cross_attention=True)
    assert is_default(default) and not is_default(dense)
    assert not is_default(comfyui(monkeypatch, deterministic=True))


def test_attention_put_in_the_place_of_pytorchs_is_a_choice_too(monkeypatch):
    default = comfyui(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(functional, "scaled_dot_product_attention", dense)
        assert not is_default(default)
    assert is_default(default)
    sys.modules["comfy.ops"].scaled_dot_product_attention = dense
    assert not is_default(default)


def test_names_in_plain_words():
    def attention():
        pass

    def of(module, name="attention"):
        attention.__module__, attention.__name__ = module, name
        return attention

    assert name_of(of("comfy.ldm.modules.attention", "attention_xformers")) == "ComfyUI's xFormers attention"
    assert name_of(of("comfy.ldm.modules.attention", "attention_new")) == "ComfyUI's attention_new"
    assert name_of(partial(of("/home/me/ComfyUI/custom_nodes/ComfyUI-KJNodes_x_1.nodes.model", "sage"))) == "sage of ComfyUI-KJNodes.1"
    assert name_of_override(of("C:\\ComfyUI\\custom_nodes\\Some_Pack.nodes", "patched")) == "the override patched of Some_Pack"

    def chosen_for_model(optimized_attention):
        def override(func, *args, **kwargs):
            return optimized_attention(*args, **kwargs)

        return override

    chosen = chosen_for_model(of("comfy.ldm.modules.attention", "attention_comfy_kitchen_int8"))
    assert name_of_override(chosen) == "ComfyUI's int8 attention, chosen for the MODEL"
