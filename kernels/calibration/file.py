"""Profiles on disk: one safetensors file each, nothing in it that runs."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..blocks import block_count
from ..numerics import ceil_div
from .budgets import Density, Thresholds
from .profile import ModelIdentity, Profile

FORMAT, VERSION = "svg-ear calibration", "2"
BUDGETS = {kind.name: kind for kind in (Density, Thresholds)}
# Bytes that a file may have; its masks get the most of them.
LARGEST_FILE = 64 * 10**6
RESERVED = 2 * 10**6
# Masks a head, tried in turn until the file is small enough, when as many as there are take too much.
FEWER_MASKS = (16, 12, 8, 6, 4, 3, 2, 1)
TENSORS = {"masks": "uint8", "codings": "uint8", "shapes": "uint8", "index": "int32", "repeats": "uint8", "sigmas": "float64"}
# Memory that unpacking may take beside its result.
DECODER_BYTES = 64 * 2**20
# How a mask is written, as bits of its coding: as what changes from row to row, and from the mask before it.
ROWS, PREVIOUS = 1, 2


class ProfileError(ValueError):
    """A file that is no profile, or not whole; or one that is in the way."""


def write_profile(path: Path, profile: Profile, *, made_by: str, overwrite: bool = False, largest: int = LARGEST_FILE) -> Profile:
    """Write ``profile`` to ``path``, all at once: there is never half a file under that name.

    Masks are packed eight blocks to a byte and compressed, each as what changes from row to row or from the mask before,
    whichever is smaller. Where they would still take more than ``largest`` bytes, more steps share one.

    Args:
        path: where to; its folder is made.
        profile: what to write.
        made_by: name and version of the writer, for the file's metadata.
        overwrite: replace a file that is there.
        largest: bytes that the file may take.

    Returns:
        The profile as it was written.

    Raises:
        ProfileError: the file is there already, or cannot be made small enough.
    """
    if path.exists() and not overwrite:
        raise ProfileError(f"{path.name} exists already; choose another name, or switch overwrite on")
    profile.check()
    shared, (compressed, fitting) = profile, _compress(profile.masks, largest - RESERVED)
    heads = profile.index[0].size
    # Fewer masks differ more, so that many more of them never fit.
    for most in (count for count in FEWER_MASKS if count == 1 or count <= fitting / heads):
        if compressed is not None:
            break
        shared = shared.with_fewer_masks(most)
        compressed, _ = _compress(shared.masks, largest - RESERVED)
    if compressed is None:
        raise ProfileError(
            f"one mask for each of {heads} heads takes more than {largest / 1e6:.0f} MB: calibrate with a lower density, "
            "a smaller video, or raise the largest size"
        )
    facts = {
        "model": asdict(shared.model),
        "grid": shared.grid,
        "tokens": shared.tokens,
        "block": shared.block,
        "first_sigma": shared.first_sigma,
        "last_sigma": shared.last_sigma,
        "steps": shared.steps,
        "sites": shared.sites,
        "budget": {shared.budget.name: asdict(shared.budget)},
        "prompts": shared.prompts,
        "masks": len(shared.masks),
        "made_by": made_by,
    }
    tensors = {
        **compressed,
        "shapes": shared.shapes,
        "index": shared.index,
        "repeats": shared.repeats.astype(numpy.uint8),
        "sigmas": numpy.array(shared.sigmas, dtype=numpy.float64),
    }
    text = json.dumps(facts, sort_keys=True)
    metadata = {"format": FORMAT, "version": VERSION, "facts": text, "checksum": _checksum(text, tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(save(tensors, metadata))
    os.replace(partial, path)
    return shared


def read_profile(path: Path) -> Profile:
    """The profile in a file of :func:`write_profile`.

    Raises:
        ProfileError: the file is not there, not a profile, of another version, cut short, or changed since it was written.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            tensors = {name: file.get_tensor(name) for name in names & TENSORS.keys()}
    except FileNotFoundError:
        raise ProfileError(f"there is no file {path.name}; save a calibration under that name first") from None
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise ProfileError(f"{path.name} cannot be read ({error}): it is cut short or not a safetensors file; save it again") from None
    if metadata.get("format") != FORMAT:
        raise ProfileError(f"{path.name} is not a calibration: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    if metadata.get("version") != VERSION:
        raise ProfileError(
            f"{path.name} has version {metadata.get('version')!r}, and this pack reads version {VERSION!r}: "
            "update the pack, or calibrate again"
        )
    text = metadata.get("facts", "")
    if names != TENSORS.keys() or _checksum(text, tensors) != metadata.get("checksum"):
        raise ProfileError(f"{path.name} was changed after it was saved, or damaged; calibrate again")
    try:
        return _profile(json.loads(text), tensors)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, lzma.LZMAError) as error:
        raise ProfileError(f"{path.name} does not hold together: {error}; calibrate again") from None


def _profile(facts: dict, tensors: dict[str, numpy.ndarray]) -> Profile:
    """The profile of a file whose checksum is right, which someone may have computed anew."""
    for name, dtype in TENSORS.items():
        if tensors[name].dtype != dtype:
            raise ValueError(f"{name} is {tensors[name].dtype}, not {dtype}")
    numbers = {name: _integer(facts[name], name) for name in ("tokens", "block", "steps", "prompts", "masks")}
    model = {"architecture": str(facts["model"]["architecture"])}
    model |= {name: _integer(facts["model"][name], name) for name in ("layers", "heads", "head_dim")}
    model |= {"input_shape": tuple(_integer(size, "input_shape") for size in facts["model"]["input_shape"])}
    index = tensors["index"]
    blocks = block_count(max(1, numbers["tokens"]), max(1, numbers["block"]))
    profile = Profile(
        model=ModelIdentity(**model),
        grid=tuple(_integer(size, "grid") for size in facts["grid"]),
        tokens=numbers["tokens"],
        block=numbers["block"],
        sigmas=tuple(tensors["sigmas"].tolist()),
        first_sigma=float(facts["first_sigma"]),
        last_sigma=float(facts["last_sigma"]),
        steps=numbers["steps"],
        sites=tuple((_integer(layer, "sites"), _integer(ordinal, "sites")) for layer, ordinal in facts["sites"]),
        budget=_budget(facts["budget"]),
        prompts=numbers["prompts"],
        shapes=tensors["shapes"],
        index=index,
        repeats=tensors["repeats"].astype(bool),
        masks=_decompress(tensors["masks"], tensors["codings"], (numbers["masks"], blocks, ceil_div(blocks, 8)), index),
    )
    profile.check()
    return profile


def _budget(facts: dict) -> Density | Thresholds:
    ((name, values),) = dict(facts).items()
    if name not in BUDGETS:
        raise ValueError(f"its budget is {name!r}, not {' or '.join(BUDGETS)}")
    return BUDGETS[name](**values)


def _integer(value: object, name: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {value!r}, not a whole number")
    return value


def _checksum(text: str, tensors: dict[str, numpy.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(numpy.ascontiguousarray(tensor))
    return digest.hexdigest()


def _compress(masks: numpy.ndarray, limit: int) -> tuple[dict[str, numpy.ndarray] | None, int]:
    """The tensors ``masks`` and ``codings``, or None where they take more than ``limit`` bytes; and how many masks fit."""
    compressor, parts, size = lzma.LZMACompressor(preset=4), [], 0
    codings = numpy.zeros(len(masks), dtype=numpy.uint8)
    for place, mask in enumerate(masks):
        ways = {ROWS: _row_changes(mask)}
        if place:
            change = mask ^ masks[place - 1]
            ways |= {PREVIOUS: change, PREVIOUS | ROWS: _row_changes(change)}
        codings[place] = min(ways, key=lambda coding: len(zlib.compress(ways[coding].tobytes(), 1)))
        parts.append(compressor.compress(ways[codings[place]].tobytes()))
        size += len(parts[-1])
        if size > limit:
            return None, place
    parts.append(compressor.flush())
    if size + len(parts[-1]) > limit:
        return None, len(masks)
    return {"masks": numpy.frombuffer(b"".join(parts), dtype=numpy.uint8), "codings": codings}, len(masks)


def _row_changes(mask: numpy.ndarray) -> numpy.ndarray:
    change = mask.copy()
    change[1:] ^= mask[:-1]
    return change


def _decompress(data: numpy.ndarray, codings: numpy.ndarray, shape: tuple[int, int, int], index: numpy.ndarray) -> numpy.ndarray:
    """The masks ``shape`` of :func:`_compress`; never makes more bytes than they take."""
    # Every mask is used by some step of some head, so their number is bounded by what the file holds.
    if index.ndim != 3 or not 0 < shape[0] <= index.size or codings.shape != shape[:1]:
        raise ValueError(f"{shape[0]} masks for an index of shape {index.shape} and codings of shape {codings.shape}")
    size = shape[0] * shape[1] * shape[2]
    decompressor = lzma.LZMADecompressor(memlimit=DECODER_BYTES)
    found = decompressor.decompress(data.tobytes(), size + 1)
    if len(found) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"its masks do not unpack to the {size} bytes that {shape[0]} of them take")
    masks = numpy.frombuffer(found, dtype=numpy.uint8).reshape(shape).copy()
    for place, (mask, coding) in enumerate(zip(masks, codings.tolist())):
        if coding & ROWS:
            numpy.bitwise_xor.accumulate(mask, axis=0, out=mask)
        if coding & PREVIOUS and place:
            mask ^= masks[place - 1]
    return masks
