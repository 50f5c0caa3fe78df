"""The clips as pictures: side by side, their difference, and where the exact pairs went."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont


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
