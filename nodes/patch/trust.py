"""Which self-tests of the kernels have passed on the GPUs of this machine, remembered in ComfyUI's user folder."""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import asdict, astuple
from functools import lru_cache
from pathlib import Path

import torch

from ... import kernels
from ...kernels import SelfTest
from ...kernels.tuning import attend_tiles, probe_tiles
from .findings import Card
from .user_file import DamagedFileError, read_json, say_once, user_file, write_json

logger = logging.getLogger("svg_ear")

FILE, FORMAT = "self_tests.json", 1
# Older ones are forgotten.
MOST_REMEMBERED = 200
# What changes no kernel, only how much each computes.
AMOUNTS = ("density", "top_p", "min_share", "query_clusters", "key_clusters", "kmeans_first", "kmeans_next", "recluster_every")
_LOCK = threading.Lock()


def key_of(test: SelfTest) -> str:
    """Everything that makes kernels others: the GPU, the versions, this pack's own code, the tiles in use, and some of the settings."""
    settings = {name: value for name, value in asdict(test.settings).items() if name not in AMOUNTS}
    settings |= {
        "spends": test.settings.density > 0,
        "at_least": test.settings.min_share > 0,
        "keeps_labels": test.settings.recluster_every > 1,
    }
    tiles = attend_tiles(test.device, test.dtype.itemsize), probe_tiles(test.device, test.dtype.itemsize)
    # The capability of an AMD GPU is that of its family.
    model = getattr(torch.cuda.get_device_properties(test.device), "gcnArchName", "")
    known = (*astuple(Card.of(test.device, dense="")), model, _code(), test.dtype, test.head_dim, test.text, tiles, settings)
    return "; ".join(map(str, known))


def has_passed(key: str) -> bool:
    """Whether the self-test of this key has passed, in this process or an earlier one."""
    with _LOCK:
        return key in _passed()


def remember(key: str) -> None:
    """Note that the self-test of this key has passed. What fails is tried again, so that what was mended is found out."""
    with _LOCK:
        passed = _passed()
        passed[key] = None
        path = user_file(FILE)
        if path is None:
            return
        try:
            write_json(path, {"format": FORMAT, "passed": list(passed)[-MOST_REMEMBERED:]})
        except OSError as error:
            logger.debug("%s cannot be written (%s); self-tests run once in every process", path, error)


@lru_cache
def _code() -> str:
    """A digest of the kernels' own source, which may change within a version."""
    folder = Path(kernels.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache
def _passed() -> dict[str, None]:
    """The keys of what has passed, the newest last; the file is read at the first request of this process."""
    path = user_file(FILE)
    if path is None or not path.is_file():
        return {}
    try:
        return dict.fromkeys(_keys(read_json(path)))
    except DamagedFileError as error:
        say_once(f"{path} is not used, because it is damaged: {error}. Kernels are tested anew.")
        return {}


def _keys(data) -> list[str]:
    if not isinstance(data, dict) or set(data) != {"format", "passed"} or data["format"] != FORMAT:
        raise DamagedFileError(f"it is no list of self-tests of format {FORMAT}")
    if not isinstance(data["passed"], list) or not all(isinstance(key, str) for key in data["passed"]):
        raise DamagedFileError("what passed is no list of texts")
    return data["passed"]
