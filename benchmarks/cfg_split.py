"""ComfyUI's own split of the conditionings over GPUs (MultiGPU CFG Split), with one patch for all threads.

python -m benchmarks.cfg_split                 Wan 1.3B at 480p, on all GPUs of which it needs two
python -m benchmarks.cfg_split --layers 4      with some of its layers
python -m benchmarks.cfg_split --tiny          a small model on a CPU, which ComfyUI is told to be two devices

For dense and sparse attention, on one device and on two: milliseconds of the first step, in which layers cluster from nothing, and of a
later one, the sparse calls of each device with the host's time in one, and what the report says of them. Both conditionings are evaluated
together on one device, where they share clusters, and apart on two; so sparse attention also runs apart on one, which two devices must give
too, to rounding. The status is 1 where they do not, where a device ran nothing sparse, or where the report does not say what ran.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from unittest.mock import patch as replaced

from . import checkout as checkouts
from . import pack, results
from .runs import comfyui
from .runs.models import MODELS

STEPS, CFG, SEED = 6, 5.0, 0
MODEL, SIZE = "wan-1.3b", "480p"
APART = "sparse, apart"
# Relative. Devices of one kind round alike; clips that have nothing in common are 1.4 apart.
ROUNDING = 1e-4
# Enough of them to compile, and to record what later runs repeat.
WARM_UP_STEPS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 2 when it cannot run here, 1 when something is not as it should be, 0 otherwise."""
    options = parse(arguments)
    checkout = checkouts.find_checkout()
    if checkout is None:
        print(f"benchmarks.cfg_split needs a ComfyUI, and there is none: {checkouts.HOW_TO_GET_ONE}")
        return 2
    try:
        comfyui.start(checkout, [], cpu=options.tiny)
    except RuntimeError as error:
        print(f"benchmarks.cfg_split cannot run: {error}")
        return 2
    import torch

    if torch.cuda.device_count() < 2 and not options.tiny:
        print(f"benchmarks.cfg_split needs two GPUs, and torch finds {torch.cuda.device_count()}")
        return 2
    with torch.inference_mode():
        return Split(options).run()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cfg_split", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, help="layers of the model; all without it")
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--commit", help="the commit, for a copy without its history")
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the CSV")
    return parser.parse_args(arguments)


class Split:
    """A model with random weights, sampled on one GPU and on two."""

    def __init__(self, options: argparse.Namespace):
        from .runs import loading

        model = MODELS[MODEL].tiny() if options.tiny else MODELS[MODEL]
        model = model.with_layers(options.layers) if options.layers else model
        self._is_tiny, self._options, self._model = options.tiny, options, model
        self._patcher = loading.load(model)
        # How ComfyUI makes the model of another GPU: anew, as its own loaders say; the same weights, as they are random by a seed.
        self._patcher.cached_patcher_init = (loading.load, (model,))
        self._latent, self._conditionings = loading.empty_latent(model, model.sizes[SIZE]), loading.conditionings(model)

    def run(self) -> int:
        """The status of the bench."""
        pack.load()
        from comfy.multigpu import create_multigpu_deepclones
        from svg_ear.nodes.patch.options import Options
        from svg_ear.nodes.patch.override import Patch
        from svg_ear.nodes.patch.patching import recorded
        from svg_ear.nodes.recording.record import find_run

        with self._devices():
            several = create_multigpu_deepclones(self._patcher, 2)
        devices = 1 + len(several.get_additional_models_with_key("multigpu"))
        # No layer stays dense: what computes it may round other sizes of the batch otherwise, and rounding chooses other clusters.
        options = Options(min_tokens=0, dense_first_steps=0, dense_blocks="", warm_up_density=0.0, density=0.1)
        status, latents, rows = int(devices != 2), {}, []
        for method, model, count in (
            ("dense", self._patcher, 1),
            ("dense", several, devices),
            ("sparse", self._patcher, 1),
            (APART, self._patcher, 1),
            (APART, several, devices),
        ):
            given = model if method == "dense" else recorded(model, Patch(options))
            self.sample(given, WARM_UP_STEPS, method == APART)
            found = self.sample(given, STEPS, method == APART)
            line = f"{method:13} {count} device(s), {found.times()}"
            first, *later = found.milliseconds()
            rows.append(
                {"method": method, "gpus": count, "first_step_ms": f"{first:.1f}", "step_ms": f"{median(later):.1f}", "relative_error": ""}
            )
            if method != "dense":
                run = find_run(given, {"samples": found.latent})
                line += f", {found.calls_in_words()}, in the report {run.run.sparse_calls}"
                status |= len(found.calls) != count or not run.is_match or run.run.sparse_calls != found.calls.total()
            if method in latents:
                difference = apart(found.latent, latents[method])
                line += f", apart by {difference:.1e}"
                status |= not difference < ROUNDING
                rows[-1]["relative_error"] = f"{difference:.1e}"
            latents.setdefault(method, found.latent)
            print(line, flush=True)
        self._write(rows)
        moved = apart(latents[APART], latents["sparse"])
        print(f"evaluating the conditionings apart, without shared clusters, moves the latent by {moved:.1e}")
        return int(status)

    def _write(self, rows: list[dict[str, object]]) -> None:
        import torch

        device = torch.device("cpu" if self._is_tiny else "cuda")
        layers = self._options.layers or "all"
        common = {"model": self._model.title, "size": SIZE, "layers": layers} | results.provenance(device, self._options.commit)
        path = self._options.results / results.file_name("cfg_split_2x", device)
        results.write(path, [row | common for row in rows])
        print(f"written to {path}")

    def _devices(self) -> AbstractContextManager:
        """While models are made: what ComfyUI takes for devices, where it is to take a CPU for two of them."""
        import torch
        from comfy import model_management

        two = [torch.device("cpu"), torch.device("cpu", 0)]
        return replaced.object(model_management, "get_all_torch_devices", lambda exclude_current: two) if self._is_tiny else nullcontext()

    def sample(self, model, steps: int, is_apart: bool) -> Sampled:
        """A sampler run; the conditionings are evaluated one after the other where ``is_apart``."""
        import comfy.sample
        import torch
        from comfy import samplers
        from svg_ear import kernels

        found, attention = Sampled(), kernels.sparse_attention

        def counted(q, *args, **kwargs):
            # Each device has a thread, by which two that are one CPU differ.
            device, began = threading.current_thread().name if self._is_tiny else str(q.device), time.perf_counter()
            result = attention(q, *args, **kwargs)
            found.host_seconds[device] += time.perf_counter() - began
            found.calls[device] += 1
            return result

        def stepped(*_):
            for device in range(torch.cuda.device_count()):
                torch.cuda.synchronize(device)
            found.ends.append(time.perf_counter())

        alone = replaced.object(samplers, "can_concat_cond", lambda one, other: one is other) if is_apart else nullcontext()
        noise, (positive, negative) = comfy.sample.prepare_noise(self._latent, SEED), self._conditionings
        with replaced.object(kernels, "sparse_attention", counted), alone:
            found.latent = comfy.sample.sample(
                *(model, noise, steps, CFG, "euler", "simple", positive, negative, self._latent),
                callback=stepped,
                disable_pbar=True,
                seed=SEED,
            )
        return found


class Sampled:
    """What a sampler run did.

    Attributes:
        latent: its result.
        began, ends: when it began, and when each step was done, in seconds.
        calls, host_seconds: sparse calls, and the host's time in them, by device.
    """

    def __init__(self):
        self.latent, self.began, self.ends = None, time.perf_counter(), []
        self.calls, self.host_seconds = Counter(), Counter()

    def milliseconds(self) -> list[float]:
        """Those of each step."""
        return [1000 * (end - start) for start, end in zip([self.began, *self.ends], self.ends)]

    def times(self) -> str:
        """Milliseconds of the steps, in words."""
        first, *later = self.milliseconds()
        return f"first step {first:7.0f} ms, later {median(later):7.1f} ms ({' '.join(f'{value:.0f}' for value in later)})"

    def calls_in_words(self) -> str:
        """Sparse calls of each device, with the host's time in one."""
        return ", ".join(
            f"{count} sparse calls on {device} ({1000 * self.host_seconds[device] / count:.1f} ms)" for device, count in self.calls.items()
        )


def apart(one, other) -> float:
    """Relative difference of two latents."""
    return ((one - other).norm() / other.norm()).item()


if __name__ == "__main__":
    raise SystemExit(main())
