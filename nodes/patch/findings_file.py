"""What was found about the GPUs of this machine, in ComfyUI's user folder: the one place where the file is read and written."""

from __future__ import annotations

import sys
from dataclasses import asdict, astuple, fields
from pathlib import Path

import torch

from ...kernels.tuning import Tiles, attend_choices, probe_choices
from .findings import Card, Findings, Timing
from .user_file import DamagedFileError, read_json, say_once, user_file, write_json

FILE, FORMAT = "gpu_check.json", 1
# Far above what a check writes.
MOST_CARDS, MOST_TIMINGS, MOST_NAMES, LONGEST_NAME = 32, 500, 16, 200
MOST_HEADS, MOST_TOKENS, MOST_MILLISECONDS = 1024, 2**24, 1e7

# What each state of the file said about a device.
_READ: dict[tuple, Findings | None] = {}


def findings_path() -> Path | None:
    """Where the file lies; None outside ComfyUI."""
    return user_file(FILE)


def dense_attention() -> str:
    """What ComfyUI's attention is called, the one that calls take unless a node sets another; nothing outside ComfyUI."""
    attention = sys.modules.get("comfy.ldm.modules.attention")
    return "" if attention is None else attention.optimized_attention.__name__


def found_on(device: torch.device) -> Findings | None:
    """What was found on ``device`` with the versions that run now, None where nothing was; a file that is ignored is said once."""
    path = findings_path()
    if path is None or device.type != "cuda" or not path.is_file():
        return None
    state = path.stat()
    key = (path, state.st_mtime_ns, state.st_size, device, dense_attention())
    if key not in _READ:
        _READ[key] = _look_up(path, device)
    return _READ[key]


def write(path: Path, findings: Findings) -> None:
    """Keep ``findings`` beside those of other kinds of GPUs; those of the same kind, or a damaged file, make room."""
    try:
        kept = [other for other in read(path) if not other.card.is_same_gpu(findings.card)] if path.is_file() else []
    except DamagedFileError:
        kept = []
    entries = [_entry(found) for found in (*kept[-MOST_CARDS + 1 :], findings)]
    write_json(path, {"format": FORMAT, "cards": entries})


def read(path: Path) -> list[Findings]:
    """Everything in the file. Raises DamagedFileError, saying what is wrong, for anything that a check would not have written."""
    found = _dictionary(read_json(path), ("format", "cards"))
    if found["format"] != FORMAT:
        raise DamagedFileError(f"its format is {found['format']!r} and not {FORMAT}")
    return [_findings(entry) for entry in _list(found["cards"], "cards", MOST_CARDS)]


def require_choices(findings: Findings, device: torch.device) -> None:
    """Raise DamagedFileError for tiles that are none of the choices of ``device``: nothing else may reach a compiler."""
    for name, choices in (("attend", attend_choices(device)), ("probe", probe_choices(device))):
        given = getattr(findings, name)
        if given is not None and given not in choices:
            raise DamagedFileError(f"its {name} tiles {given} are no choice for this GPU")


def _look_up(path: Path, device: torch.device) -> Findings | None:
    card = Card.of(device, dense_attention())
    try:
        known = read(path)
        same = [findings for findings in known if findings.card.is_same_gpu(card)]
        for findings in same:
            if findings.card == card:
                require_choices(findings, device)
                return findings
        there = ", ".join(str(findings.card) for findings in same or known) or "nothing"
        reason = f"it holds {there}, and this is {card}"
    except DamagedFileError as error:
        reason = f"it is damaged: {error}"
    say_once(f"{path} is not used, because {reason}. Run SVG-EAR GPU Check on this GPU.")
    return None


def _entry(findings: Findings) -> dict:
    return {
        "card": asdict(findings.card),
        "attend": findings.attend and [astuple(tiles) for tiles in findings.attend],
        "probe": findings.probe and astuple(findings.probe),
        "timings": [asdict(timing) for timing in findings.timings],
    }


def _findings(entry) -> Findings:
    found = _dictionary(entry, [field.name for field in fields(Findings)])
    card = {name: _text(value, name) for name, value in _dictionary(found["card"], [field.name for field in fields(Card)]).items()}
    attend, probe = found["attend"], found["probe"]
    if attend is not None:
        attend = tuple(_tiles(tiles) for tiles in _list(attend, "attend", 2))
    return Findings(
        card=Card(**card),
        timings=tuple(_timing(timing) for timing in _list(found["timings"], "timings", MOST_TIMINGS)),
        attend=attend,
        probe=None if probe is None else _tiles(probe),
    )


def _timing(entry) -> Timing:
    found = _dictionary(entry, [field.name for field in fields(Timing)])
    sparse, others = (_dictionary(found[name]) for name in ("sparse", "others"))
    try:
        densities = [float(density) for density in sparse]
    except ValueError:
        raise DamagedFileError(f"a density is no number: {', '.join(sparse)}") from None
    return Timing(
        heads=_whole(found["heads"], "heads", 1, MOST_HEADS),
        tokens=_whole(found["tokens"], "tokens", 1, MOST_TOKENS),
        dense=_milliseconds(found["dense"]),
        sparse={_number(density, "a density", 1): _milliseconds(time) for density, time in zip(densities, sparse.values())},
        others={_text(name, "a name"): _milliseconds(time) for name, time in others.items()},
    )


def _tiles(entry) -> Tiles:
    numbers = [_whole(number, "a tile", 0, 1024) for number in _list(entry, "tiles", len(fields(Tiles)))]
    if len(numbers) != len(fields(Tiles)):
        raise DamagedFileError(f"tiles have {len(numbers)} numbers and not {len(fields(Tiles))}")
    return Tiles(*numbers)


def _dictionary(value, names=None) -> dict:
    if not isinstance(value, dict) or len(value) > MOST_NAMES or (names is not None and set(value) != set(names)):
        raise DamagedFileError(f"{_short(value)} does not have {'few names' if names is None else ', '.join(names)}")
    return value


def _list(value, name: str, most: int) -> list:
    if not isinstance(value, list) or len(value) > most:
        raise DamagedFileError(f"{name} is {_short(value)}, and not a list of at most {most}")
    return value


def _text(value, name: str) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        raise DamagedFileError(f"{name} is {_short(value)}, and not a short text")
    return value


def _whole(value, name: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise DamagedFileError(f"{name} is {_short(value)}, and not a whole number from {least} to {most}")
    return value


def _number(value, name: str, most: float) -> float:
    if type(value) not in (int, float) or not 0 < value <= most:
        raise DamagedFileError(f"{name} is {_short(value)}, and not a number above 0 up to {most:g}")
    return float(value)


def _milliseconds(value) -> float:
    return _number(value, "a time", MOST_MILLISECONDS)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
