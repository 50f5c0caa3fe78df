"""Calibrations in ComfyUI's models folder."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from weakref import WeakValueDictionary

import folder_paths

from ...kernels.calibration import Calibration, Profile, ProfileError, read_profile, write_profile

FOLDER = "svg_ear"
ENDING = ".safetensors"
NOTHING_YET = "none yet: run SVG-EAR Calibrate first"
# Words and dashes, in subfolders or not: nothing that leaves the folder or means something to a file system.
NAME = re.compile(r"(?:[\w][\w .()+-]*/)*[\w][\w .()+-]*")

# Which of the calibrations that are still in memory wrote a file.
_WRITERS: WeakValueDictionary[Path, Calibration] = WeakValueDictionary()

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir, FOLDER)), is_default=True)


def listed() -> list[str]:
    """The names to choose from, sorted; without any, one line that says what to do."""
    return sorted(name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(ENDING)) or [NOTHING_YET]


def problem(name: str) -> str | None:
    """Why a calibration cannot be loaded, None when it is there."""
    if name == NOTHING_YET:
        return f"there is no calibration in models/{FOLDER} yet: make one with SVG-EAR Calibrate and SVG-EAR Save Calibration, then press R"
    try:
        path_of(name)
    except ProfileError as error:
        return str(error)
    return None


def taken(path: Path, overwrite: bool, calibration: Calibration | None = None) -> str | None:
    """Why a calibration cannot be saved at ``path``, None when it can.

    A file that the same calibration wrote may be written again with more runs; where the ``calibration`` is not known yet, one
    that any calibration in memory wrote.
    """
    writer = _WRITERS.get(path)
    is_own = writer is not None if calibration is None else writer is calibration
    if overwrite or is_own or not path.exists():
        return None
    place = path.relative_to(models_folder()).as_posix()
    return f"models/{FOLDER}/{place} exists already; choose another name, or switch overwrite on"


def save(path: Path, calibration: Calibration, profile: Profile, overwrite: bool, **options) -> Profile:
    """Write a calibration and remember whose it is; see ``write_profile``. Raises ProfileError where :func:`taken`."""
    reason = taken(path, overwrite, calibration)
    if reason is not None:
        raise ProfileError(f"{reason}. The runs that were gathered are kept.")
    written = write_profile(path, profile, overwrite=True, **options)
    _WRITERS[path] = calibration
    return written


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
