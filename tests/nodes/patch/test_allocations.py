"""What is kept beyond a pass through the model is made while ComfyUI's compiler does not record, played by a stand-in."""

import gc
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import HEADS, Harness, qkv
from torch.utils._python_dispatch import TorchDispatchMode


class Compiler:
    """In the place of ``comfy.model_prefetch`` of newer cores; which storages were made while it was recording."""

    def __init__(self, is_on=True):
        self.is_on, self.is_paused, self.pauses, self.devices, self.recorded = is_on, False, 0, [], set()

    def malloc_graph_enabled(self, device):
        self.devices.append(device)
        return self.is_on

    @contextmanager
    def pause_malloc_graph(self, sync=False):
        assert not self.is_paused
        self.is_paused, self.pauses = True, self.pauses + 1
        try:
            yield
        finally:
            self.is_paused = False


class Recording(TorchDispatchMode):
    def __init__(self, compiler):
        super().__init__()
        self.compiler = compiler

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and not self.compiler.is_paused:
            self.compiler.recorded.add(output.untyped_storage().data_ptr())
        return output


def tensors_of(thing, depth=4):
    """Those that an object holds, not too far inside."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    inside = gc.get_referents(thing) if depth and not isinstance(thing, (type, str, SimpleNamespace)) else []
    return [tensor for part in inside for tensor in tensors_of(part, depth - 1)]


@pytest.mark.parametrize("widgets", [{}, {"record_layers": "0-3", "record_steps": "0-4", "record_heads": "0-1"}])
def test_what_is_kept_is_not_recorded(monkeypatch, widgets):
    compiler, played, kept = Compiler(), Harness(**widgets), []
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", compiler)

    def body():
        # The inputs are the model's own.
        for step in (1, 2, 3):
            tensors = qkv(seed=step)
            with Recording(compiler):
                played.evaluate(lambda attention, tensors=tensors: attention(*tensors, HEADS), step=step)
        states = [state.items for state in played.patch.states._states.values()]
        kept.extend(tensors_of(states) + tensors_of([played.patch.run.trace._calls, played.patch.run.trace._maps]))
        assert not compiler.recorded & {tensor.untyped_storage().data_ptr() for tensor in kept}

    assert played.sample(body).sparse_calls == 3
    assert len(kept) > 4 and compiler.pauses == 3 and set(compiler.devices) == {torch.device("cpu")}


def test_the_pause_ends_after_an_error_and_dense_calls_are_in_it_too(monkeypatch):
    compiler, played = Compiler(), Harness(dense_first_steps=5)
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", compiler)
    monkeypatch.setattr(played, "_func", lambda *args, **kwargs: seen.append(compiler.is_paused) or 1 / 0)
    seen = []
    with pytest.raises(ZeroDivisionError):
        played.evaluate(lambda attention: attention(*qkv(), HEADS))
    assert seen == [True] and not compiler.is_paused


@pytest.mark.parametrize("module", [Compiler(is_on=False), SimpleNamespace(), None])
def test_without_a_recording_nothing_is_paused(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", module)
    played = Harness()
    assert played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(), HEADS))).sparse_calls == 1
    assert getattr(module, "pauses", 0) == 0
