"""The version of the pack."""

from __future__ import annotations

from pathlib import Path


def pack_version() -> str:
    """The version of the pack, from the file that states it."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    lines = project.read_text(encoding="utf-8").splitlines() if project.is_file() else []
    return next((line.split('"')[1] for line in lines if line.startswith("version = ")), "of unknown version")
