"""Small JSON files of ours in ComfyUI's user folder: written whole, and never trusted when they are read."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

logger = logging.getLogger("svg_ear")

FOLDER = "svg_ear"
# Far above what is written. Bytes.
LARGEST_FILE = 2**20

# What was logged.
_SAID: set[str] = set()


class DamagedFileError(ValueError):
    """A file that holds something else than was written, or nothing that can be read."""


def user_file(name: str) -> Path | None:
    """Where the file ``name`` lies; None outside ComfyUI."""
    folder_paths = sys.modules.get("folder_paths")
    return None if folder_paths is None else Path(folder_paths.get_user_directory(), FOLDER, name)


def read_json(path: Path):
    """What is in the file. Raises DamagedFileError, saying what is wrong."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DamagedFileError(f"it is larger than {LARGEST_FILE} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except DamagedFileError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"it cannot be read as JSON ({error})") from None


def write_json(path: Path, data) -> None:
    """Put ``data`` in the place of what is there, whole or not at all. Raises OSError where nothing can be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1), encoding="utf-8")
    partial.replace(path)


def say_once(text: str) -> None:
    """Warn in the log, once in this process."""
    if text not in _SAID:
        _SAID.add(text)
        logger.warning(text)
