"""Contact sheets of generated clips: ``python -m benchmarks.demo_model.contact_sheet --out sheets``.

One image per token grid; each row is a seed: frames without guidance, with guidance, and of the real clip of that seed.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .sample import WEIGHTS, decode, load_demo_model, sample
from .video import clip_latents

GRIDS = ((5, 14, 24), (9, 15, 26), (9, 22, 40), (21, 30, 52))


def strip(frames, columns):
    """``columns`` evenly spaced frames of uint8 ``[T, H, W, 3]`` side by side: ``[H, columns * W, 3]``."""
    chosen = np.linspace(0, len(frames) - 1, columns).round().astype(int)
    return np.concatenate([frames[i].numpy() for i in chosen], axis=1)


def sheet(model, grid, seeds, columns=3, guidances=(1.0, 3.0), **options):
    """uint8 image: a row per seed, with a strip per guidance and one of the real clip, white lines between."""
    rows = []
    for seed in seeds:
        strips = [strip(decode(sample(model, seed, grid, guidance=guidance, **options)), columns) for guidance in guidances]
        strips.append(strip(decode(clip_latents([seed], grid)), columns))
        gap = np.full((strips[0].shape[0], 6, 3), 255, dtype=np.uint8)
        rows.append(np.concatenate([part for one in strips for part in (one, gap)][:-1], axis=1))
        rows.append(np.full((6, rows[0].shape[1], 3), 255, dtype=np.uint8))
    return np.concatenate(rows[:-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--grids", nargs="*", default=["x".join(map(str, grid)) for grid in GRIDS], help="t x h x w in tokens")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float, default=5.0)
    parser.add_argument("--guidances", type=float, nargs="*", default=[1.0, 3.0])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_demo_model(device, dtype, options.weights)
    for name in options.grids:
        grid = tuple(int(part) for part in name.split("x"))
        image = sheet(model, grid, options.seeds, guidances=options.guidances, steps=options.steps, shift=options.shift)
        Image.fromarray(image).save(options.out / f"sheet_{name}.png")
        print(name, image.shape, flush=True)


if __name__ == "__main__":
    main()
