"""Triton that cannot compile, cache or launch: one reason, once, and the rest of the run is dense."""

import subprocess
import uuid
from functools import partial
from importlib import import_module

import pytest
import torch
from fake_comfyui import HEADS, Harness, counts, dense, qkv
from svg_ear import kernels
from svg_ear.kernels.calibration import Calibration
from svg_ear.nodes.calibrating.gathering import CalibratingPatch
from svg_ear.nodes.patch.override import OVERRIDE
from svg_ear.nodes.recording.reasons import StrictModeError

pytest.importorskip("triton")
from triton.compiler.errors import CompilationError  # noqa: E402
from triton.runtime import build, interpreter  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402


def one(attention):
    attention(*qkv(), HEADS)


def compiling(*args, **kwargs):
    """What Triton does before a kernel's first launch, of a source that no cache has."""
    build.compile_module_from_src(f"// {uuid.uuid4()}", "svg_ear_stub")


@pytest.fixture
def interpreted(monkeypatch):
    """Sparse calls by Triton, whatever the device."""
    monkeypatch.setattr(kernels, "sparse_attention", partial(kernels.sparse_attention, implementation="triton"))


@pytest.fixture
def failing(monkeypatch, interpreted):
    """Launches that raise, and how many were tried."""
    tried = []

    def plant(error):
        def launch(*args, **kwargs):
            tried.append(1)
            raise error

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
        return tried

    return plant


def run_of(played, steps=3, body=one):
    return played.sample(lambda: [played.evaluate(body, step=step) for step in range(steps)])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CompilationError("x = 1\ny = 2", None, "no dot of int8 here"), "no dot of int8 here"),
        (OutOfResources(200000, 101376, "shared memory"), "OutOfResources: out of resource: shared memory"),
        (RuntimeError("Triton Error [CUDA]: invalid argument\nand more"), "invalid argument)"),
        (RuntimeError("PassManager::run failed"), "PassManager::run failed"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (subprocess.CalledProcessError(1, ["cc", "launcher.c"]), "returned non-zero exit status 1"),
        (ValueError("type fp8e4nv not supported in this architecture"), "fp8e4nv"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_kernel_that_fails_leaves_the_run_dense_with_one_reason(failing, caplog, error, line):
    played, tried, found = Harness(), failing(error), []
    record = run_of(played, body=lambda attention: found.append(attention(*qkv(), HEADS)))
    assert counts(record) == {"kernel-failed": 3} and len(tried) == 1 and len(played.patch.states) == 0
    (reason,) = record.dense_calls
    assert line in reason.sentence and "\n" not in reason.sentence and len(reason.sentence) < 300
    assert [entry.levelname for entry in caplog.records] == ["WARNING"] and "kernel-failed" in caplog.text
    assert all(torch.equal(output, dense(*qkv(), HEADS)) for output in found)


def test_the_next_run_tries_again(failing):
    played, tried = Harness(), failing(RuntimeError("Triton Error [CUDA]: invalid argument"))
    for _ in range(2):
        run_of(played)
    assert len(tried) == 2


def test_strict_mode_stops(failing):
    failing(OutOfResources(200000, 101376, "shared memory"))
    with pytest.raises(StrictModeError, match="kernel-failed.*shared memory"):
        run_of(Harness(strict=True))


def test_out_of_memory_in_a_launch_is_out_of_memory(failing):
    failing(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert counts(run_of(Harness())) == {"out-of-memory": 3}


@pytest.mark.parametrize("error", [ValueError("q, k, v have shapes"), RuntimeError("the Triton kernels cannot run"), KeyError("state")])
def test_errors_of_our_own_are_seen(monkeypatch, error):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr("svg_ear.kernels.pipeline.cluster_tokens", broken)
    with pytest.raises(type(error)):
        run_of(Harness())


def test_an_interrupt_within_a_launch_passes(failing):
    # As ComfyUI's InterruptProcessingException.
    failing(type("InterruptProcessingException", (BaseException,), {})())
    with pytest.raises(BaseException) as raised:
        run_of(Harness())
    assert type(raised.value).__name__ == "InterruptProcessingException"


def test_a_kernel_of_the_attention_below_is_not_ours():
    def below(func, *args, **kwargs):
        compiling()

    with pytest.MonkeyPatch.context() as planted, pytest.raises(subprocess.CalledProcessError):
        planted.setenv("CC", "/bin/false")
        build._find_compiler.cache_clear()
        Harness(min_tokens=10**6).evaluate(one, **{OVERRIDE: below})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CC": "/bin/false"}, "CalledProcessError"),
        ({"CC": "/nowhere/cc"}, "No such file or directory"),
        ({"CC": None, "PATH": ""}, "Failed to find C compiler"),
        ({"TRITON_CACHE_DIR": "/proc/nowhere"}, "No such file or directory"),
    ],
    ids=["compiler fails", "no such compiler", "no compiler", "cache cannot be written"],
)
def test_what_a_machine_can_lack_ends_dense(monkeypatch, tmp_path, variables, message):
    for name, value in ({"TRITON_CACHE_DIR": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    build._find_compiler.cache_clear()
    monkeypatch.setattr(kernels, "sparse_attention", compiling)
    record = run_of(Harness())
    build._find_compiler.cache_clear()
    assert counts(record) == {"kernel-failed": 3}
    (reason,) = record.dense_calls
    assert message in reason.sentence


def test_calibrating_goes_on_dense_and_says_why_it_learned_nothing(failing, monkeypatch, caplog):
    tried = failing(OutOfResources(200000, 101376, "shared memory"))
    stages = import_module("svg_ear.kernels.triton_stages")
    monkeypatch.setattr("svg_ear.kernels.calibration.collect.stages_for", lambda q, implementation: stages)
    played = Harness()
    played.patch = CalibratingPatch(Calibration(shapes=("raster",)), min_tokens=0)
    record = run_of(played, steps=5)
    assert record.completed and len(tried) == 1 and played.patch.calibration.runs == 0
    assert "kernel-failed" in played.patch.trouble and len(caplog.records) == 1
