"""The table of the methods, on the screen and as a file."""

from __future__ import annotations

from pathlib import Path

from .. import results
from ..quality.metrics import psnr
from .clips import Clip


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
