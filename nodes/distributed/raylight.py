"""raylight's workers from ComfyUI's side: the pack, and then a patch, is put into each, and what they recorded is fetched."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..patch.options import Options
from ..recording.record import Found

# The package that ComfyUI loaded, under whatever name it gave to its folder.
PACK = __package__.rpartition(".nodes.")[0]
FOLDER = Path(__file__).resolve().parents[2]
INNER_ATTENTION = "raylight.distributed_modules.inner_attention"


def missing() -> str | None:
    """Why raylight's workers cannot run this pack's attention, and what to do; None where they can."""
    if importlib.util.find_spec("raylight") is None:
        return "raylight is not installed: install it (komikndr/raylight) and restart ComfyUI; on one GPU use SVG-EAR Sparse Attention"
    if importlib.util.find_spec(INNER_ATTENTION) is None:
        return "this raylight cannot take another attention (it has no register_inner_attention): update raylight and restart ComfyUI"
    return None


def install(ray_actors, options: Options):
    """Have the models of all workers run sparse; returns what the sampler of raylight takes.

    Raises ValueError for options that follow a calibration, before any worker hears of them.
    """
    if options.profile is not None:
        raise ValueError(
            "a calibration knows all heads together, and here every GPU has some of them: connect SVG-EAR Custom Settings with another "
            "method, or choose another preset"
        )
    return _in_workers(ray_actors, "install", options)


def remove(ray_actors):
    """Have the models of all workers run as they were."""
    return _in_workers(ray_actors, "remove")


def found(ray_actors, latent: dict) -> list[Found]:
    """What each worker recorded of the run that made ``latent``, in the order of the workers."""
    import ray

    _introduce(ray_actors)

    def call(model, pack, latent):
        from importlib import import_module

        return import_module(f"{pack}.nodes.distributed.worker").found(model, latent)

    return ray.get([worker.model_function_runner_get_values.remote(call, PACK, latent) for worker in ray_actors["workers"]])


def _in_workers(ray_actors, function: str, *arguments):
    from raylight.comfy_extra_dist.ray_patch_decorator import ray_patch

    _introduce(ray_actors)

    # Functions inside others travel by value: a worker can import nothing by the name of this module until it has been introduced.
    def call(node, model, pack, function, *arguments):
        from importlib import import_module

        return getattr(import_module(f"{pack}.nodes.distributed.worker"), function)(model, *arguments)

    return ray_patch(call)(None, ray_actors, PACK, function, *arguments)[0]


def _introduce(ray_actors) -> None:
    """Let the workers import the pack under the name that it has here, so that what belongs to it can be sent."""
    from raylight.comfy_extra_dist.ray_patch_decorator import ray_patch

    def call(node, model, name, folder):
        import sys
        from importlib.util import module_from_spec, spec_from_file_location

        if name not in sys.modules:
            spec = spec_from_file_location(name, f"{folder}/__init__.py", submodule_search_locations=[folder])
            sys.modules[name] = module = module_from_spec(spec)
            spec.loader.exec_module(module)
        return model

    ray_patch(call)(None, ray_actors, PACK, str(FOLDER))
