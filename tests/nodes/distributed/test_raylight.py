"""The way of a patch into raylight's workers and of their records back, in this process and into one that knows nothing of the pack."""

import os
import struct
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import cloudpickle
import pytest
import torch
from fake_comfyui import WIDGETS, flow_schedule, flow_sigma, options
from models import Model, WanModel, Worker
from svg_ear.kernels import Settings
from svg_ear.nodes.patch.options import CustomSettings, Options
from svg_ear.nodes.patch.override import Patch
from svg_ear.nodes.recording.record import find_run
from svg_ear.nodes.recording.summary import report, report_of_workers

from benchmarks import pack

SHAPE, TOKENS = (1, 16, 3, 6, 14), 63


@pytest.fixture
def engine_side(raylight, monkeypatch):
    """The module of the pack that talks to raylight, whose two workers exchange nothing."""
    from svg_ear.nodes.distributed import raylight as side
    from svg_ear.nodes.distributed import worker

    monkeypatch.setattr(worker, "degrees", lambda: (1, 1))
    return side


def sampled(model, steps=2):
    """The latent of a sampler run of a MODEL, as ComfyUI calls what patches it."""
    diffusion_model, sigmas = model.model.diffusion_model, torch.tensor(flow_schedule(steps))
    base = SimpleNamespace(diffusion_model=diffusion_model, model_sampling=SimpleNamespace(percent_to_sigma=flow_sigma))

    def evaluate(x, t, concat, cross, control, transformer_options, **kwargs):
        hidden = torch.randn(1, TOKENS, 256, generator=torch.Generator().manual_seed(0))
        return diffusion_model.run(hidden, dict(transformer_options))

    def sample(noise, latent_image):
        for step in range(steps):
            given = model.model_options["transformer_options"] | {"sample_sigmas": sigmas, "sigmas": sigmas[step : step + 1]}
            output = through("apply_model", evaluate, base)(torch.zeros(SHAPE), None, None, None, None, given)
        model.callbacks["on_cleanup", "svg_ear"]()
        return output

    def through(kind, executor, class_obj):
        executor.class_obj = class_obj
        for wrapper in model.get_wrappers(kind, "svg_ear"):
            return lambda *args, **kwargs: wrapper(executor, *args, **kwargs)
        return executor

    # As raylight's workers sample.
    with torch.no_grad():
        return {"samples": through("outer_sample", sample, SimpleNamespace(model_options={}))(torch.zeros(1), torch.ones(1))}


def test_workers_run_sparse_and_report(raylight, engine_side):
    actors = {"workers": [Worker(Model(WanModel())) for _ in range(2)]}
    for worker in actors["workers"]:
        raylight.inject(worker.model.model.diffusion_model)
    assert engine_side.missing() is None and engine_side.install(actors, options(**WIDGETS)) is actors
    latents = [sampled(worker.model) for worker in actors["workers"]]
    found = engine_side.found(actors, latents[0])
    assert [each.run.sparse_calls for each in found] == [4, 4] and found[0].is_match
    text = report_of_workers(found)
    assert text.startswith(report(found[0])) and "GPU 1: SVG-EAR: 4 of 4 video attention calls sparse" in text

    engine_side.remove(actors)
    model = actors["workers"][0].model
    assert model.wrappers == {} or not any(model.wrappers.values())
    assert model.callbacks == {} and "raylight_inner_attention" not in model.model_options["transformer_options"]


def test_a_second_node_takes_the_place_of_the_first(engine_side):
    actors = {"workers": [Worker(Model(WanModel()))]}
    engine_side.install(actors, options(**WIDGETS))
    engine_side.install(actors, options(**WIDGETS | {"density": 0.5}))
    (wrapper,) = actors["workers"][0].model.get_wrappers("outer_sample", "svg_ear")
    assert wrapper.__self__.settings.density == 0.5


def test_options_that_do_not_fit_the_model_are_refused(engine_side):
    actors = {"workers": [Worker(Model(WanModel(blocks=2)))]}
    with pytest.raises(ValueError, match="dense_blocks has 7"):
        engine_side.install(actors, options(**WIDGETS | {"dense_blocks": "7"}))


def test_a_calibration_is_refused_before_any_worker_hears_of_it(engine_side):
    actors = {"workers": [Worker(Model(WanModel()))]}
    calibrated = CustomSettings(Settings(method="calibrated"), profile=object())
    with pytest.raises(ValueError, match="a calibration knows all heads together, and here every GPU has some of them"):
        engine_side.install(actors, Options(preset="custom", custom=calibrated))
    assert not any(actors["workers"][0].model.wrappers.values())


def test_without_a_run_the_report_says_what_to_connect(engine_side):
    actors = {"workers": [Worker(Model(WanModel())) for _ in range(2)]}
    text = report_of_workers(engine_side.found(actors, {"samples": torch.zeros(1)}))
    assert "put SVG-EAR for raylight between the loader and the sampler" in text


def test_the_report_of_one_gpu_names_the_node_for_raylight(raylight):
    from svg_ear.nodes.patch.patching import recorded

    model = recorded(Model(WanModel()), Patch(options(**WIDGETS)))
    assert "never ask its attention override" in report(find_run(model, {"samples": torch.zeros(1)}))


def test_what_is_missing_is_said():
    from svg_ear.nodes.distributed.raylight import missing

    assert "raylight is not installed" in missing()


class Elsewhere:
    """The model of a worker in another process."""

    def __init__(self, engine, tmp_path):
        folders = (engine, engine.parent)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, engine.parent / "elsewhere.py"]
        self.process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.has_server = None
        self.model_function_runner = SimpleNamespace(remote=lambda function, *args: self._call(True, function, args))
        self.model_function_runner_get_values = SimpleNamespace(remote=lambda function, *args: self._call(False, function, args))

    def _call(self, changes, function, arguments):
        message = cloudpickle.dumps((changes, function, cloudpickle.dumps(arguments)))
        self.process.stdin.write(struct.pack("I", len(message)) + message)
        self.process.stdin.flush()
        answer = self.process.stdout.read(*struct.unpack("I", self.process.stdout.read(4)))
        result, self.has_server = cloudpickle.loads(answer)
        return result


def test_a_process_that_does_not_know_the_pack_is_introduced_to_it(raylight, engine, tmp_path):
    # ComfyUI names a pack by the path of its folder.
    name = "/somewhere/custom_nodes/svg-ear"
    pack.load(pack.ROOT, name)
    side, given = (import_module(f"{name}.nodes.{module}") for module in ("distributed.raylight", "patch.options"))
    worker = Elsewhere(engine, tmp_path)
    try:
        actors = {"workers": [worker]}
        side.install(actors, given.Options(dense_blocks="1"))
        (found,) = side.found(actors, {"samples": torch.zeros(1)})
        assert found.is_patched and found.run is None
        assert not worker.has_server
        side.remove(actors)
    finally:
        worker.process.communicate(timeout=60)
        for module in [module for module in sys.modules if module.startswith(name)]:
            del sys.modules[module]
    assert worker.process.returncode == 0
