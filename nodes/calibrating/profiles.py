"""Calibrations in ComfyUI's models folder."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import folder_paths

from ...kernels.calibration import Profile, ProfileError, read_profile

FOLDER = "svg_ear"
ENDING = ".safetensors"
# Words and dashes, in subfolders or not: nothing that leaves the folder or means something to a file system.
NAME = re.compile(r"(?:[\w][\w .()+-]*/)*[\w][\w .()+-]*")

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir, FOLDER)), is_default=True)


def listed() -> list[str]:
    """The names to choose from, sorted."""
    return sorted(name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(ENDING))


def path_to_write(name: str) -> Path:
    """Where a calibration of that name is saved. Raises ProfileError for a name that is not allowed."""
    return _inside(models_folder(), name)


def models_folder() -> Path:
    """Where calibrations are saved."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def path_of(name: str) -> Path:
    """The file of the calibration of that name. Raises ProfileError where there is none."""
    path = folder_paths.get_full_path(FOLDER, name if name.endswith(ENDING) else f"{name}{ENDING}")
    if path is not None:
        return Path(path)
    raise ProfileError(f"there is no calibration {name!r} in models/{FOLDER}; save one with SVG-EAR Save Calibration, or choose another")


def load(name: str) -> Profile:
    """The calibration of that name. Raises ProfileError where it is missing, damaged or not one."""
    path = path_of(name)
    return _read(path, stamp(path))


def stamp(path: Path) -> tuple[int, int]:
    """Changes whenever the file does."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=2)
def _read(path: Path, stamp: tuple[int, int]) -> Profile:
    return read_profile(path)


def _inside(folder: Path, name: str) -> Path:
    """``folder / name`` with the ending; ProfileError unless it lies in the folder."""
    plain = name.replace("\\", "/").removesuffix(ENDING)
    path = folder / f"{plain}{ENDING}"
    if not NAME.fullmatch(plain) or ".." in plain or folder.resolve() not in path.resolve().parents:
        raise ProfileError(
            f"name is {name!r}; write letters, digits, spaces and _ . ( ) + - only, with / between folders inside models/{FOLDER}"
        )
    return path
