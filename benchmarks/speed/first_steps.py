"""What the first sparse steps of a run take on a cold Triton cache, by what comes before them. About a minute and a half.

python -m benchmarks.speed.first_steps

The patch of a MODEL runs as in ComfyUI, around a model that is nothing but its attention: the node, some seconds in which models
load, dense steps, then sparse ones. Each row is a process of its own with an empty cache, but for the last one, which finds what the
row before it compiled. Needs a CUDA GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from .. import pack

pack.load()
from svg_ear.nodes.patch import override  # noqa: E402
from svg_ear.nodes.patch.options import Options  # noqa: E402

# Latent frames, rows and columns of a 480p video, whose patches are two by two, and its heads.
LATENT, HEADS, DIM = (21, 60, 104), 12, 128
LAYERS, STEPS = 30, 20


@dataclass(frozen=True)
class Case:
    """What comes before the first sparse step: ``seconds`` after the node, and ``dense_steps`` of a second each."""

    name: str
    seconds: float
    dense_steps: int


CASES = (
    Case("10 s after the node", 10.0, 0),
    Case("after four dense steps", 0.0, 4),
    Case("at once", 0.0, 0),
    Case("at once, compiled before", 0.0, 0),
)


class WanModel:
    """Named as the model whose attention it is."""

    patch_size = (1, 2, 2)
    blocks = (None,) * LAYERS
    num_heads, dim = HEADS, HEADS * DIM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases, or with ``--case`` one in this process; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="run one case here, with the cache that Triton finds")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.speed.first_steps needs a CUDA GPU: nothing was measured")
        return 2
    if options.case is not None:
        print(json.dumps(run(CASES[options.case])))
        return 0
    print(torch.cuda.get_device_name(), "torch", torch.__version__, os.cpu_count(), "cores", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            cache = Path(folder, str(min(number, len(CASES) - 2)))
            found = subprocess.run(
                [sys.executable, "-m", __spec__.name, "--case", str(number)],
                env=os.environ | {"TRITON_CACHE_DIR": str(cache)},
                cwd=pack.ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            print(f"{case.name}: {found.stdout.splitlines()[-1]}", flush=True)
    return 0


def run(case: Case) -> dict:
    """Seconds of each step, and what the first two sparse ones take more than the third."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    dense_steps, device = case.dense_steps, torch.device("cuda", torch.cuda.current_device())
    told = []
    tokens = math.prod(LATENT) // 4
    inputs = [torch.randn(1, tokens, HEADS * DIM, dtype=torch.bfloat16, device=device) for _ in range(3)]
    dense(*inputs, HEADS)
    torch.cuda.synchronize()
    # All sparse steps compute the same share.
    options = Options(dense_first_steps=dense_steps, dense_blocks="", density=0.1, warm_up_density=0.0)
    patch = override.Patch(options, told.append)
    base_model = SimpleNamespace(diffusion_model=WanModel(), manual_cast_dtype=None)
    began = time.perf_counter()
    patch.compile_early(SimpleNamespace(model=base_model, load_device=device, model_dtype=lambda: torch.bfloat16))
    node = time.perf_counter() - began
    time.sleep(case.seconds)
    steps = []

    def sampler(noise, latent_image):
        for step in range(dense_steps + 3):
            torch.cuda.synchronize()
            began = time.perf_counter()
            evaluate(patch, step, inputs)
            torch.cuda.synchronize()
            steps.append(time.perf_counter() - began)
        return torch.zeros(1)

    sampler.class_obj = SimpleNamespace(model_options={})
    with torch.inference_mode():
        patch.outer_sample(sampler, torch.zeros(1), torch.zeros(1))
    first, second, third = steps[dense_steps:]
    return {
        "node": round(node, 3),
        "steps": [round(seconds, 2) for seconds in steps],
        "first_more": round(first - third, 2),
        "second_more": round(second - third, 2),
        "told": told[:-1],
        "report_once": round(patch.recorder.newest().times.once, 2),
    }


def evaluate(patch: override.Patch, step: int, inputs: Sequence[torch.Tensor]) -> None:
    """One evaluation of the model, through the patch."""
    sigmas = torch.linspace(1, 0, STEPS + 1)

    def model(x, t, concat, cross, control, options):
        for layer in range(LAYERS):
            at = options | {"block_index": layer, "block_type": "double"}
            options[override.OVERRIDE](dense, *inputs, HEADS, transformer_options=at)

    model.class_obj = SimpleNamespace(
        diffusion_model=WanModel(), model_sampling=SimpleNamespace(percent_to_sigma=lambda percent: 1 - percent)
    )
    options = {"sample_sigmas": sigmas, "sigmas": sigmas[step : step + 1], "cond_or_uncond": [0], "uuids": ["cond"]}
    patch.apply_model(model, torch.zeros(1, 16, *LATENT, device="cuda"), None, None, None, None, options)


def dense(q, k, v, heads, **options) -> torch.Tensor:
    """Dense attention, repeated so that a step takes about a second, which the rest of a model would."""
    q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    for _ in range(2):
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return output.transpose(1, 2).flatten(2)


if __name__ == "__main__":
    raise SystemExit(main())
