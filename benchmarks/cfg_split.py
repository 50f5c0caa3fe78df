"""ComfyUI's own split of the conditionings over GPUs (MultiGPU CFG Split), with one patch for all threads.

python -m benchmarks.cfg_split                 Wan 1.3B at 480p, on all GPUs of which it needs two
python -m benchmarks.cfg_split --layers 4      with some of its layers
python -m benchmarks.cfg_split --tiny          a small model on a CPU, which ComfyUI is told to be two devices

For dense and sparse attention: seconds on one device and on two, the sparse calls of each, what the report says of them, and the relative
difference of the latents, which is one of rounding: on two devices the conditionings are evaluated apart. There each clusters for itself,
where one device has them share clusters; so two devices are compared with one where they do not. The status is 1 where a device ran nothing
sparse, the report does not say what ran, or latents are further apart than rounding explains.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch as replaced

from . import checkout as checkouts
from . import pack
from .runs import comfyui
from .runs.models import MODELS

STEPS, CFG, SEED = 6, 5.0, 0
MODEL, SIZE = "wan-1.3b", "480p"
# Relative, in float32 and in bfloat16, whose rounding may choose other clusters; clips that have nothing in common are 1.4 apart.
ROUNDING, ROUNDING_BFLOAT16 = 1e-4, 0.2


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
    return parser.parse_args(arguments)


class Split:
    """A model with random weights, sampled on one GPU and on two."""

    def __init__(self, options: argparse.Namespace):
        from .runs import loading

        model = MODELS[MODEL].tiny() if options.tiny else MODELS[MODEL]
        model = model.with_layers(options.layers) if options.layers else model
        self._is_tiny = options.tiny
        self._patcher = loading.load(model)
        # How ComfyUI makes the model of another GPU: anew, as its own loaders say; the same weights, as they are random by a seed.
        self._patcher.cached_patcher_init = (loading.load, (model,))
        self._latent, self._conditionings = loading.empty_latent(model, model.sizes[SIZE]), loading.conditionings(model)

    def run(self) -> int:
        """The status of the bench."""
        pack.load()
        from comfy.multigpu import create_multigpu_deepclones
        from svg_ear.nodes.patch.evaluation import Evaluation
        from svg_ear.nodes.patch.options import Options
        from svg_ear.nodes.patch.override import Patch
        from svg_ear.nodes.patch.patching import recorded
        from svg_ear.nodes.recording.record import find_run

        with self._devices():
            several = create_multigpu_deepclones(self._patcher, 2)
        devices = 1 + len(several.get_additional_models_with_key("multigpu"))
        options = Options(min_tokens=0, dense_first_steps=0, warm_up_density=0.0, density=0.1)
        status = int(devices != 2)
        latents = {}
        for method, model, count in (
            ("dense", self._patcher, 1),
            ("dense", several, devices),
            ("sparse", self._patcher, 1),
            ("sparse, clusters of their own", self._patcher, 1),
            ("sparse, clusters of their own", several, devices),
        ):
            apart = replaced.object(Evaluation, "owners", lambda *_: None) if "own" in method else nullcontext()
            given = model if method == "dense" else recorded(model, Patch(options))
            with apart:
                self._sample(given)
                latent, seconds, calls = self._sample(given)
            line = f"{method:29} {count} device(s) {seconds:7.2f} s, sparse calls {dict(calls) or 'none'}"
            if method != "dense":
                found = find_run(given, {"samples": latent})
                dense = {reason.name: number for reason, number in found.run.dense_calls.items()}
                line += f", in the report {found.run.sparse_calls}, dense {dense}"
                status |= len(calls) != count or not found.is_match or found.run.sparse_calls != calls.total()
            if method in latents:
                alone = latents[method]
                difference = ((latent - alone).norm() / alone.norm()).item()
                line += f", apart by {difference:.1e}"
                status |= not difference < (ROUNDING if self._is_tiny else ROUNDING_BFLOAT16)
            latents.setdefault(method, latent)
            print(line, flush=True)
        return int(status)

    def _devices(self) -> AbstractContextManager:
        """While models are made: what ComfyUI takes for devices, where it is to take a CPU for two of them."""
        import torch
        from comfy import model_management

        two = [torch.device("cpu"), torch.device("cpu", 0)]
        return replaced.object(model_management, "get_all_torch_devices", lambda exclude_current: two) if self._is_tiny else nullcontext()

    def _sample(self, model):
        """The latent of a run, its seconds, and the sparse calls by device."""
        import comfy.sample
        from svg_ear import kernels

        calls, attention = Counter(), kernels.sparse_attention

        def counted(q, *args, **kwargs):
            # Each device has a thread, by which two that are one CPU differ.
            calls[threading.current_thread().name if self._is_tiny else str(q.device)] += 1
            return attention(q, *args, **kwargs)

        noise = comfy.sample.prepare_noise(self._latent, SEED)
        began = time.perf_counter()
        with replaced.object(kernels, "sparse_attention", counted):
            positive, negative = self._conditionings
            latent = comfy.sample.sample(
                *(model, noise, STEPS, CFG, "euler", "simple", positive, negative, self._latent), disable_pbar=True, seed=SEED
            )
        return latent, time.perf_counter() - began, calls


if __name__ == "__main__":
    raise SystemExit(main())
