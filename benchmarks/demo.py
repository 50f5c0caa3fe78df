"""``make demo``: one clip of the trained demo model, dense and with SVG-EAR, side by side."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from . import results
from .demo_model import sample
from .host import AttentionHost, PackAttention, RoutedHeads, Settings
from .quality.metrics import psnr

SVG_EAR = Settings(density=0.1)
PUBLISHED = replace(SVG_EAR, weighted_centroids=False, key_metric=False, kmeans_candidates=0)
SVG2 = replace(PUBLISHED, method="svg2")


@dataclass(frozen=True)
class Scale:
    """What fits a device: token grid (t, h, w), denoising steps, first steps that stay dense, guidance."""

    grid: tuple[int, int, int]
    steps: int
    dense_steps: int
    guidance: float


SCALES = {"cpu": Scale((9, 15, 26), 5, 2, 1.0), "cuda": Scale(sample.MEDIUM_GRID, 12, 3, 1.0)}


@dataclass(frozen=True)
class Clip:
    """A generated clip: uint8 frames ``[T, H, W, 3]`` and what it took."""

    frames: torch.Tensor
    density: float
    attention_seconds: float
    total_seconds: float


class KeyShareMap:
    """Mean share of queries that saw each token exactly, over all sparse layers, steps and heads."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def __call__(self, layer: int, step: int, routed: RoutedHeads) -> None:
        self.total = self.total + routed.key_shares().mean(0)
        self.count += 1

    def on_grid(self, grid: tuple[int, int, int]) -> np.ndarray:
        """The mean as float32 ``[t, h, w]``."""
        return (self.total / self.count).cpu().numpy().reshape(grid)


def generate(transformer, scale: Scale, seed: int, label: str, settings: Settings | None, observe=None) -> Clip:
    """Sample one clip with a progress bar."""
    attention = PackAttention(settings, observe) if settings else None
    host = AttentionHost(transformer, attention, scale.dense_steps, dense_blocks=(0,))
    with tqdm(total=scale.steps, desc=f"{label:<24}", unit="step", leave=True) as bar:

        def progress(step: int, steps: int) -> None:
            host.step = step
            bar.update()

        began = time.perf_counter()
        latents = sample.sample(transformer, seed, scale.grid, steps=scale.steps, guidance=scale.guidance, progress=progress)
        frames = sample.decode(latents)
    return Clip(frames, attention.density if attention else 1.0, host.seconds, time.perf_counter() - began)


def difference(frames: torch.Tensor, reference: torch.Tensor, gain: int) -> torch.Tensor:
    """Absolute difference times ``gain``, uint8."""
    return ((frames.float() - reference.float()).abs() * gain).clamp(max=255).byte()


def painted(frames: torch.Tensor, shares: np.ndarray) -> torch.Tensor:
    """Frames in grey with the share of each token in colour over them, dark blue (lowest) to yellow (highest)."""
    low, high = shares.min(), shares.max()
    level = torch.from_numpy((shares - low) / max(high - low, 1e-9))
    level = level.repeat_interleave(frames.shape[1] // shares.shape[1], 1)
    level = level.repeat_interleave(frames.shape[2] // shares.shape[2], 2)[..., None]
    colour = _blend(level, torch.tensor([[30.0, 40.0, 110.0], [40.0, 140.0, 140.0], [250.0, 225.0, 50.0]]))
    grey = frames.float().mean(-1, keepdim=True)
    return (0.4 * grey + 0.6 * colour).byte()


def _blend(level: torch.Tensor, stops: torch.Tensor) -> torch.Tensor:
    """Colours ``[..., 3]`` at ``level`` ``[..., 1]`` between equally spaced ``stops``."""
    position = level * (len(stops) - 1)
    below = position.floor().clamp(max=len(stops) - 2)
    part = position - below
    index = below.long().squeeze(-1)
    return stops[index] * (1 - part) + stops[index + 1] * part


def contact_sheet(rows: dict[str, torch.Tensor], columns: int = 5) -> Image.Image:
    """A labelled row of evenly spaced frames for each clip."""
    frames = next(iter(rows.values()))
    count, height, width = frames.shape[:3]
    zoom = max(1, 240 // width)
    picks = np.linspace(0, count - 1, min(columns, count)).round().astype(int)
    cell_width, cell_height, gap, title = width * zoom, height * zoom, 6, 26
    font = ImageFont.load_default(15)
    # A single column is narrower than its titles.
    wide = gap + max(len(picks) * (cell_width + gap), *(math.ceil(font.getlength(label)) + gap for label in rows))
    sheet = Image.new("RGB", (wide, len(rows) * (cell_height + title + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, clip) in enumerate(rows.items()):
        top = row * (cell_height + title + gap)
        draw.text((gap, top + 4), label, fill="black", font=font)
        for column, pick in enumerate(picks):
            cell = Image.fromarray(clip[pick].numpy()).resize((cell_width, cell_height), Image.Resampling.NEAREST)
            sheet.paste(cell, (gap + column * (cell_width + gap), top + title))
    return sheet


def save_preview(rows: dict[str, torch.Tensor], path: Path) -> None:
    """All clips beside each other as an animated WebP at 8 frames per second."""
    sheets = []
    for frame in range(len(next(iter(rows.values())))):
        sheet = contact_sheet({label: clip[frame : frame + 1] for label, clip in rows.items()}, columns=1)
        sheets.append(sheet)
    sheets[0].save(path, save_all=True, append_images=sheets[1:], duration=125, loop=0, quality=85)


def save_figures(clips: dict[str, Clip], device: str, path: Path) -> None:
    """The table as CSV, with what it was measured on."""
    origin = results.provenance(device)
    rows = [
        {
            "method": label,
            "density": f"{clip.density:.4f}",
            "psnr_db": f"{psnr(clip.frames, clips['dense'].frames):.2f}",
            "attention_seconds": f"{clip.attention_seconds:.2f}",
            "total_seconds": f"{clip.total_seconds:.2f}",
            **origin,
        }
        for label, clip in clips.items()
    ]
    results.write(path, rows)


def table(clips: dict[str, Clip]) -> str:
    """One line per method: density, PSNR against dense, seconds in attention and in all."""
    lines = [f"{'method':<26}{'density':>8}{'PSNR dB':>9}{'attention s':>13}{'total s':>9}"]
    for label, clip in clips.items():
        quality = psnr(clip.frames, clips["dense"].frames)
        shown = "-" if label == "dense" else f"{quality:.1f}"
        lines.append(f"{label:<26}{clip.density:>8.3f}{shown:>9}{clip.attention_seconds:>13.1f}{clip.total_seconds:>9.1f}")
    return "\n".join(lines)


def main() -> int:
    """Run the demo; 1 when SVG-EAR is not closer to dense than SVG2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=tuple(SCALES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    options = parser.parse_args()
    scale = SCALES[options.device]
    tokens = int(np.prod(scale.grid))
    print(f"{tokens} video tokens, {scale.steps} steps ({scale.dense_steps} of them and layer 0 dense) on {options.device}")

    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    transformer = sample.load_demo_transformer(options.device, dtype)
    shares = KeyShareMap()
    methods = {"dense": None, "SVG-EAR": SVG_EAR, "SVG-EAR as published": PUBLISHED, "SVG2": SVG2}
    clips = {
        label: generate(transformer, scale, options.seed, label, settings, shares if settings is SVG_EAR else None)
        for label, settings in methods.items()
    }

    ours, gain = clips["SVG-EAR"], 4
    rows = {
        "dense attention": clips["dense"].frames,
        f"SVG-EAR, {ours.density:.0%} of the pairs exact": ours.frames,
        f"their difference, {gain} times": difference(ours.frames, clips["dense"].frames, gain),
        "share of queries that see a token exactly (yellow: most)": painted(ours.frames, shares.on_grid(scale.grid)),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(options.output / "contact_sheet.png")
    save_preview(rows, options.output / "preview.webp")

    save_figures(clips, options.device, options.output / "figures.csv")

    print(table(clips))
    print(f"written: contact_sheet.png, preview.webp and figures.csv in {options.output}")
    ours_db, svg2_db = (psnr(clips[label].frames, clips["dense"].frames) for label in ("SVG-EAR", "SVG2"))
    print(f"demo: svg-ear density={ours.density:.3f} psnr={ours_db:.2f} dB svg2 psnr={svg2_db:.2f} dB")
    return 0 if ours_db > svg2_db else 1


if __name__ == "__main__":
    raise SystemExit(main())
