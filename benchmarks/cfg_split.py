"""ComfyUI's own split of the conditionings over GPUs (MultiGPU CFG Split), with one patch for all threads.

python -m benchmarks.cfg_split                 Wan 1.3B at 480p, on all GPUs of which it needs two
python -m benchmarks.cfg_split --layers 4      with some of its layers
python -m benchmarks.cfg_split --tiny          a small model on a CPU, where there is nothing to split

For dense and sparse attention: seconds on one GPU and on two, the sparse calls of each device, and the relative difference of the latents,
which is one of rounding: on two GPUs the conditionings are evaluated apart. The status is 1 where a device ran nothing sparse.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from unittest.mock import patch as replaced

from . import checkout as checkouts
from . import pack
from .runs import comfyui
from .runs.models import MODELS

STEPS, CFG, SEED = 6, 5.0, 0
MODEL, SIZE = "wan-1.3b", "480p"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 2 when it cannot run here, 1 when a device ran nothing sparse, 0 otherwise."""
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

        several = create_multigpu_deepclones(self._patcher, 2)
        devices = 1 + len(several.get_additional_models_with_key("multigpu"))
        options = Options(min_tokens=0, dense_first_steps=0, warm_up_density=0.0, density=0.1)
        status = 0
        for method in ("dense", "sparse"):
            alone = None
            for model in (self._patcher, several):
                given = recorded(model, Patch(options)) if method == "sparse" else model
                self._sample(given)
                latent, seconds, calls = self._sample(given)
                count = 1 if model is self._patcher else devices
                line = f"{method:7} {count} device(s) {seconds:7.2f} s, sparse calls {dict(calls) or 'none'}"
                print(line if alone is None else f"{line}, apart by {((latent - alone).norm() / alone.norm()).item():.1e}", flush=True)
                alone = latent if alone is None else alone
                status |= method == "sparse" and len(calls) != count
        return int(status)

    def _sample(self, model):
        """The latent of a run, its seconds, and the sparse calls by device."""
        import comfy.sample
        from svg_ear import kernels

        calls, attention = Counter(), kernels.sparse_attention

        def counted(q, *args, **kwargs):
            calls[str(q.device)] += 1
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
