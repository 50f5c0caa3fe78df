"""Every clip with every method, and the rows of it. ComfyUI must have been started."""

from __future__ import annotations

import argparse
import gc
import time
import traceback

import torch
from comfy import model_management
from tqdm import tqdm

from .. import results
from . import comfyui, loading
from .measure import Clock, run
from .methods import Method, Packs, Unavailable
from .models import MODELS, Clip, Model
from .rows import Row, dense_step_of, figures
from .spec import Spec


class Session:
    """Runs the clips and keeps their rows on disk.

    Args:
        options: the command line.
        checkout: the ComfyUI that runs.
    """

    def __init__(self, options: argparse.Namespace, checkout):
        self.options = options
        self.device = model_management.get_torch_device()
        self.packs = Packs(options.against, {"min_tokens": "0"} if options.tiny else {})
        self.origin = results.provenance(self.device, options.commit) | comfyui.versions(checkout)
        self.commits = {False: self.origin["commit"], True: ""}
        if options.against:
            self.commits[True] = options.against_commit or results.commit_of(options.against)
        self.path = options.results / results.file_name(options.name, self.device)
        self.rows: list[Row] = results.read(self.path) if options.append and self.path.exists() else []
        self.deadline = time.perf_counter() + options.seconds if options.seconds else None

    def run(self) -> None:
        """All clips; saves after each run."""
        options = self.options
        plan = [(spec, options.dense_steps if spec.is_dense else options.steps) for spec in options.methods]
        total = len(options.clips) * sum(steps for _, steps in plan)
        with tqdm(total=total, unit="step", smoothing=0.05) as self.bar:
            for name in dict.fromkeys(clip.model for clip in options.clips):
                if self.is_late():
                    say(f"{name} is left out: {options.seconds:g} s are over")
                    continue
                full = MODELS[name].tiny() if options.tiny else MODELS[name]
                model = full.with_layers(options.layers) if options.layers else full
                self.bar.set_description(f"loading {model.title}")
                with torch.inference_mode():  # as ComfyUI runs nodes
                    patcher = loading.load(model)
                for clip in options.clips:
                    if clip.model == name:
                        self.clip(clip, model, full.layers, patcher, plan)
                patcher = None
                model_management.unload_all_models()
                _free()

    def clip(self, clip: Clip, model: Model, full: int, patcher, plan: list[tuple[Spec, int]]) -> None:
        """One clip with every method of ``plan``."""
        size, dense_steps = model.sizes[clip.size], {}
        inputs = loading.empty_latent(model, size), loading.conditionings(model)
        for spec, steps in plan:
            self.bar.set_description(f"{clip}, {spec.text}"[:60])
            row = {"model": clip.model, "size": clip.size, "cfg": clip.cfg, "tokens": model.tokens(size), "method": spec.text}
            row |= {"layers": model.layers, "layers_full": full, "steps": steps}
            before = self.bar.n
            if self.is_late():
                say(f"{clip}: {spec.text} is left out: {self.options.seconds:g} s are over")
                continue
            try:
                with torch.inference_mode():
                    method = Method(spec, patcher, self.packs, steps, row["tokens"])
                taken = run(method, *inputs, clip.cfg, Clock(self.deadline, self.bar.update))
                calls = method.calls()
                row |= figures(taken, calls, spec, steps, (model.layers, full), dense_step_of(calls, dense_steps))
            except Unavailable as reason:
                say(f"{spec.text} IS LEFT OUT: {reason}")
                continue
            except Exception as error:  # such as too little memory: the other methods still count
                say(f"{clip}: {spec.text} FAILED:\n{traceback.format_exc()}")
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                model_management.unload_all_models()
            finally:
                method = None
                _free()
                self.bar.update(steps - (self.bar.n - before))
            if spec.is_dense and row.get("dense_step_s"):
                dense_steps[spec.name] = float(row["dense_step_s"])
            self.keep(row | self.origin | {"commit": self.commits[spec.against]})

    def is_late(self) -> bool:
        """Whether the seconds that were given are over."""
        return self.deadline is not None and time.perf_counter() > self.deadline

    def keep(self, row: Row) -> None:
        """Put ``row`` in the place of an earlier one of the same clip and method, and save."""
        key = ("model", "size", "cfg", "method", "layers")
        self.rows = [other for other in self.rows if any(str(other[name]) != str(row[name]) for name in key)] + [row]
        results.write(self.path, self.rows)


def say(text: str) -> None:
    """Print above the progress bar."""
    tqdm.write(text)


def _free() -> None:
    gc.collect()
    model_management.soft_empty_cache()
