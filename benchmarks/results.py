"""Figures on disk: CSV files whose every row says what it was measured on, by which commit and when."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent / "results"


def provenance(device: torch.device | str, commit: str | None = None) -> dict[str, str]:
    """The columns that end every row: hardware, torch, triton, commit, date (UTC).

    Args:
        device: what was measured.
        commit: for a copy of the repository without its history; None asks git, which also marks uncommitted changes.
    """
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "triton": _triton(),
        "commit": commit_of(Path(__file__).parent) if commit is None else commit,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def hardware(device: torch.device | str) -> str:
    """The GPU's name, or the CPU's number of threads."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def file_name(prefix: str, device: torch.device | str) -> str:
    """``prefix_hardware.csv`` with the hardware in lower case and dashes, such as ``speed_nvidia-h200.csv``."""
    return f"{prefix}_{re.sub(r'[^a-z0-9]+', '-', hardware(device).lower()).strip('-')}.csv"


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write ``rows`` under a header of all their keys in order of appearance; what a row lacks stays empty.

    The file is replaced at once, so that a run cut short leaves the rows of the last call whole.
    """
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file that :func:`write` wrote, all values as text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def commit_of(folder: Path) -> str:
    """Short hash of the commit in ``folder``, marked where it has uncommitted changes; empty outside a git checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""


def _triton() -> str:
    """The version of whatever package provides triton (its name varies by platform), empty when there is none."""
    return import_module("triton").__version__ if find_spec("triton") else ""
