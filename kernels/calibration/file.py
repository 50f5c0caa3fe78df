"""Profiles on disk: one safetensors file each, nothing in it that runs."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..blocks import block_count
from .profile import ModelIdentity, Profile
from .thresholds import Thresholds

FORMAT, VERSION = "svg-ear calibration", "1"
# Bytes that a file may have; its masks get the most of them.
LARGEST_FILE = 64 * 10**6
RESERVED = 2 * 10**6
# Agreements tried in turn until the masks are few enough; the first leaves them as they are.
AGREEMENTS = (1.0, 0.95, 0.92, 0.88, 0.84, 0.8, 0.7, 0.6, 0.5, 0.0)
TENSORS = {"masks": "uint8", "index": "int32", "repeats": "uint8", "sigmas": "float64"}


class ProfileError(ValueError):
    """A file that is no profile, or not whole; or one that is in the way."""


def write_profile(path: Path, profile: Profile, *, made_by: str, overwrite: bool = False, largest: int = LARGEST_FILE) -> Profile:
    """Write ``profile`` to ``path``, all at once: there is never half a file under that name.

    Masks are packed eight blocks to a byte; the first of a head as what changes from row to row, later ones as what changes
    from the one before; then they are compressed. Where they would still take more than ``largest`` bytes, more steps share one.

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
    for agreement in AGREEMENTS:
        shared = profile if agreement == 1 else profile.with_shared_masks(agreement)
        masks = _compress(shared, largest - RESERVED)
        if masks is not None:
            break
    else:
        raise ProfileError(
            f"one mask for each of {profile.index[0].size} heads takes more than {largest / 1e6:.0f} MB: calibrate with a lower energy, "
            "a smaller video, or raise the largest size"
        )
    facts = {
        "model": asdict(shared.model),
        "grid": shared.grid,
        "tokens": shared.tokens,
        "block": shared.block,
        "last_sigma": shared.last_sigma,
        "steps": shared.steps,
        "sites": shared.sites,
        "thresholds": asdict(shared.thresholds),
        "prompts": shared.prompts,
        "masks": len(shared.masks),
        "made_by": made_by,
    }
    tensors = {
        "masks": masks,
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
    except (SafetensorError, OSError) as error:
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
    except (ValueError, TypeError, KeyError, zlib.error) as error:
        raise ProfileError(f"{path.name} does not hold together: {error}; calibrate again") from None


def _profile(facts: dict, tensors: dict[str, numpy.ndarray]) -> Profile:
    """The profile of a file whose checksum is right, which someone may have computed anew."""
    for name, dtype in TENSORS.items():
        if tensors[name].dtype != dtype:
            raise ValueError(f"{name} is {tensors[name].dtype}, not {dtype}")
    numbers = {name: _integer(facts[name], name) for name in ("tokens", "block", "steps", "prompts", "masks")}
    model = facts["model"] | {"input_shape": tuple(_integer(size, "input_shape") for size in facts["model"]["input_shape"])}
    index = tensors["index"]
    blocks = block_count(max(1, numbers["tokens"]), max(1, numbers["block"]))
    profile = Profile(
        model=ModelIdentity(**model),
        grid=tuple(_integer(size, "grid") for size in facts["grid"]),
        tokens=numbers["tokens"],
        block=numbers["block"],
        sigmas=tuple(tensors["sigmas"].tolist()),
        last_sigma=float(facts["last_sigma"]),
        steps=numbers["steps"],
        sites=tuple((_integer(layer, "sites"), _integer(ordinal, "sites")) for layer, ordinal in facts["sites"]),
        thresholds=Thresholds(**facts["thresholds"]),
        prompts=numbers["prompts"],
        index=index,
        repeats=tensors["repeats"].astype(bool),
        masks=_decompress(tensors["masks"], (numbers["masks"], blocks, -(-blocks // 8)), index),
    )
    profile.check()
    return profile


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


def _compress(profile: Profile, limit: int) -> numpy.ndarray | None:
    """The masks as uint8 bytes, or None where they take more than ``limit``."""
    compressor, parts, size = zlib.compressobj(9), [], 0
    for change in _changes(profile):
        parts.append(compressor.compress(change.tobytes()))
        size += len(parts[-1])
        if size > limit:
            return None
    parts.append(compressor.flush())
    return None if size + len(parts[-1]) > limit else numpy.frombuffer(b"".join(parts), dtype=numpy.uint8)


def _changes(profile: Profile) -> Iterator[numpy.ndarray]:
    """Each mask as what changes: from row to row in the first of a head, else from the mask before."""
    firsts = set(profile.index[0].ravel().tolist())
    for place, mask in enumerate(profile.masks):
        if place in firsts:
            change = mask.copy()
            change[1:] ^= mask[:-1]
            yield change
        else:
            yield mask ^ profile.masks[place - 1]


def _decompress(data: numpy.ndarray, shape: tuple[int, int, int], index: numpy.ndarray) -> numpy.ndarray:
    """The masks ``shape`` of :func:`_compress`; never makes more bytes than they take."""
    # Every mask is used by some step of some head, so their number is bounded by what the file holds.
    if index.ndim != 3 or not 0 < shape[0] <= index.size:
        raise ValueError(f"{shape[0]} masks for an index of shape {index.shape}")
    size = shape[0] * shape[1] * shape[2]
    decompressor = zlib.decompressobj()
    found = decompressor.decompress(data.tobytes(), size + 1)
    if len(found) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"its masks do not unpack to the {size} bytes that {shape[0]} of them take")
    masks = numpy.frombuffer(found, dtype=numpy.uint8).reshape(shape).copy()
    firsts = set(index[0].ravel().tolist())
    for place, mask in enumerate(masks):
        if place in firsts or place == 0:
            numpy.bitwise_xor.accumulate(mask, axis=0, out=mask)
        else:
            mask ^= masks[place - 1]
    return masks
