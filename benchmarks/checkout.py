"""Find the ComfyUI that tests and benches run against."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .pack import ROOT

HOW_TO_GET_ONE = "set COMFYUI_PATH to a ComfyUI checkout, or clone one to ~/comfy/ComfyUI"


@dataclass(frozen=True)
class Checkout:
    """A ComfyUI folder and the version that it states."""

    path: Path
    version: str

    def __str__(self):
        return f"ComfyUI {self.version} at {self.path}"


def candidates() -> list[Path]:
    """Where a checkout may lie, in order: ``COMFYUI_PATH``, the ComfyUI that the pack sits in, comfy-cli's folder.

    When ``COMFYUI_PATH`` is set nothing else is looked at, so that a wrong value cannot test another version unnoticed.
    """
    if os.environ.get("COMFYUI_PATH"):
        return [Path(os.environ["COMFYUI_PATH"]).expanduser()]
    around = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
    return [*around, Path.home() / "comfy" / "ComfyUI"]


def find_checkout() -> Checkout | None:
    """The first candidate that holds a ComfyUI, or None."""
    for path in candidates():
        if (path / "main.py").is_file() and (path / "comfy" / "model_detection.py").is_file():
            return Checkout(path.resolve(), _version(path))
    return None


def _version(path: Path) -> str:
    stated = path / "comfyui_version.py"
    found = re.search(r'__version__\s*=\s*"([^"]+)"', stated.read_text()) if stated.is_file() else None
    return found.group(1) if found else "of unknown version"
