"""Profiles on disk: what comes back, what is refused, how large a file gets."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from svg_ear.kernels.calibration import Density, ModelIdentity, Profile, ProfileError, Thresholds, read_profile, write_profile
from svg_ear.kernels.calibration import file as profile_file
from svg_ear.kernels.calibration.bits import jaccard

MADE_BY = "svg-ear tests"
MODEL_FACTS = {"architecture": "WanModel", "layers": 4, "heads": 4, "head_dim": 128, "input_shape": [256, 16, 1, 2, 2]}


def made_up_profile(steps=5, sites=3, heads=4, blocks=13, seed=0):
    """Random masks that change a little from step to step, shared as a calibration would."""
    generator = numpy.random.default_rng(seed)
    bits = generator.random((sites, heads, 1, blocks, blocks)) < 0.3 + 0.02 * numpy.arange(steps)[:, None, None]
    bits[..., range(blocks), range(blocks)] = True
    packed = numpy.packbits(bits, axis=-1, bitorder="little").reshape(-1, blocks, -(-blocks // 8))
    index = numpy.arange(len(packed), dtype=numpy.int32).reshape(sites, heads, steps)
    profile = Profile(
        model=ModelIdentity("WanModel", sites + 1, heads, 128, (256, 16, 1, 2, 2)),
        grid=(2, 4, blocks * 16 - 1),
        tokens=blocks * 128 - 8,
        block=128,
        sigmas=tuple(1 - step / steps for step in range(steps)),
        first_sigma=1.0,
        last_sigma=0.0,
        steps=steps,
        sites=tuple((site, 0) for site in range(sites)),
        budget=Thresholds.published(blocks * 128 - 8, steps),
        prompts=3,
        index=index.transpose(2, 0, 1).copy(),
        repeats=generator.random((steps, sites, heads)) < 0.2,
        masks=packed,
        shapes=generator.integers(0, 3, (sites, heads), dtype=numpy.uint8),
    )
    return profile.with_fewer_masks(3)


def assert_same(found, expected):
    for name in ("index", "repeats", "masks", "shapes"):
        first, second = getattr(found, name), getattr(expected, name)
        assert first.dtype == second.dtype and numpy.array_equal(first, second), name
        expected, found = replace(expected, **{name: None}), replace(found, **{name: None})
    assert found == expected


@pytest.mark.parametrize("blocks", [1, 8, 13, 65])
def test_what_is_read_is_bit_for_bit_what_was_written(tmp_path, blocks):
    profile = made_up_profile(blocks=blocks)
    path = tmp_path / "deep" / "wan.safetensors"
    assert_same(write_profile(path, profile, made_by=MADE_BY), profile)
    assert_same(read_profile(path), profile)
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_metadata_says_what_it_is(tmp_path):
    path = tmp_path / "wan.safetensors"
    write_profile(path, made_up_profile(), made_by=MADE_BY)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    facts = json.loads(metadata["facts"])
    assert metadata["format"] == "svg-ear calibration" and metadata["version"] == "2"
    assert facts["made_by"] == MADE_BY and facts["prompts"] == 3 and facts["grid"] == [2, 4, 207]
    assert facts["model"]["architecture"] == "WanModel" and facts["budget"]["energy"]["last"] == 0.763


def test_a_file_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "wan.safetensors"
    first, second = made_up_profile(seed=1), made_up_profile(seed=2)
    write_profile(path, first, made_by=MADE_BY)
    with pytest.raises(ProfileError, match="wan.safetensors exists already; choose another name, or switch overwrite on"):
        write_profile(path, second, made_by=MADE_BY)
    assert_same(read_profile(path), first)
    write_profile(path, second, made_by=MADE_BY, overwrite=True)
    assert_same(read_profile(path), second)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "wan.safetensors"
    first = made_up_profile(seed=1)
    write_profile(path, first, made_by=MADE_BY)

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        write_profile(path, made_up_profile(seed=2), made_by=MADE_BY, overwrite=True)
    assert_same(read_profile(path), first)


def test_facts_without_end_are_refused(tmp_path):
    path = tmp_path / "wan.safetensors"
    write_profile(path, made_up_profile(), made_by=MADE_BY)
    with safe_open(path, framework="numpy") as file:
        kept, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    texts["facts"] = "[" * 200_000
    save_file(kept, path, texts | {"checksum": profile_file._checksum(texts["facts"], kept)})
    with pytest.raises(ProfileError, match="does not hold together"):
        read_profile(path)


def test_tensors_that_numpy_does_not_have_are_refused(tmp_path):
    path = tmp_path / "wan.safetensors"
    write_profile(path, made_up_profile(), made_by=MADE_BY)
    with safe_open(path, framework="numpy") as file:
        kept, texts = {name: torch.from_numpy(file.get_tensor(name)) for name in file.keys()}, file.metadata()
    save_torch(kept | {"shapes": kept["shapes"].bfloat16()}, path, texts)
    with pytest.raises(ProfileError, match="cannot be read"):
        read_profile(path)


def test_a_density_is_read_as_one(tmp_path):
    path = tmp_path / "wan.safetensors"
    profile = replace(made_up_profile(), budget=Density(0.15))
    write_profile(path, profile, made_by=MADE_BY)
    assert read_profile(path).budget == Density(0.15)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "wan.safetensors"
    write_profile(path, made_up_profile(), made_by=MADE_BY)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ProfileError, match="wan.safetensors cannot be read .* cut short or not a safetensors file"):
        read_profile(path)


def test_every_flipped_byte_of_the_contents_is_noticed(tmp_path):
    path = tmp_path / "wan.safetensors"
    write_profile(path, made_up_profile(), made_by=MADE_BY)
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    for place in range(begin, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ProfileError, match="changed after it was saved"):
            read_profile(path)


def rewritten(path, metadata=None, facts=None, tensors=None, forge=True):
    """Change a file by hand; ``forge`` makes its checksum right again."""
    with safe_open(path, framework="numpy") as file:
        kept = {name: file.get_tensor(name).copy() for name in file.keys()} | (tensors or {})
        texts = file.metadata() | (metadata or {})
    texts["facts"] = json.dumps(json.loads(texts["facts"]) | (facts or {}), sort_keys=True)
    if forge:
        texts["checksum"] = profile_file._checksum(texts["facts"], kept)
    save_file(kept, path, texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": {"prompts": 9}, "forge": False}, "changed after it was saved"),
        ({"metadata": {"format": "pt"}}, "is not a calibration: its format is 'pt'"),
        ({"metadata": {"version": "1"}}, "version '1', and this pack reads version '2'"),
        ({"tensors": {"more": numpy.zeros(3)}}, "changed after it was saved"),
        ({"facts": {"tokens": -5}}, "tokens is -5, not a whole number"),
        ({"facts": {"tokens": 1e9}}, "tokens is 1000000000.0, not a whole number"),
        ({"facts": {"block": 0}}, "does not hold together"),
        ({"facts": {"block": 64}}, "do not unpack to"),
        ({"facts": {"grid": [0, 1, 1]}}, "numbers that are not positive"),
        ({"facts": {"masks": 10**9}}, "1000000000 masks for an index"),
        ({"facts": {"masks": 0}}, "0 masks for an index"),
        ({"facts": {"masks": 2}}, "2 masks for an index"),
        ({"facts": {"sites": [[0, 0], [1, 0], [99, 0]]}}, "layers that the model does not have"),
        ({"facts": {"sites": [[0, 0], [0, 0], [1, 0]]}}, "the same layer twice"),
        ({"facts": {"sites": [[0, 0]]}}, "an index of int32"),
        ({"facts": {"sites": "all"}}, "does not hold together"),
        ({"facts": {"model": {"architecture": "WanModel"}}}, "does not hold together"),
        ({"facts": {"model": MODEL_FACTS | {"layers": 4.5}}}, "layers is 4.5, not a whole number"),
        ({"facts": {"model": MODEL_FACTS | {"head_dim": float("inf")}}}, "head_dim is inf, not a whole number"),
        ({"facts": {"last_sigma": 2.0}}, "noise levels that do not fall"),
        ({"facts": {"steps": 1}}, "fewer steps than it has levels"),
        ({"facts": {"grid": [2, 4, 200]}}, "blocks of shapes for 1656 tokens in a grid of 2 x 4 x 200"),
        ({"facts": {"grid": [1656]}}, "a grid of 1656 in place of frames x rows x columns"),
        ({"facts": {"tokens": 10**12, "grid": [10**4, 10**4, 10**4]}}, "does not hold together"),
        ({"facts": {"tokens": 10**30, "grid": [10**10, 10**10, 10**10]}}, "does not hold together"),
        ({"facts": {"last_sigma": -(10**400)}}, "does not hold together"),
        ({"facts": {"first_sigma": 0.5}}, "noise levels that do not fall"),
        ({"facts": {"first_sigma": float("inf")}}, "noise levels that do not fall"),
        ({"facts": {"budget": {"energy": {"last": 2, "first": 3, "rate": 1}}}}, "last not above first"),
        ({"facts": {"budget": {"density": {"share": 2}}}}, "share is 2"),
        ({"facts": {"budget": {"density": {"share": "much"}}}}, "does not hold together"),
        ({"facts": {"budget": {"density": 0.2}}}, "does not hold together"),
        ({"facts": {"budget": {"exec": {}}}}, "its budget is 'exec', not density or energy"),
        ({"facts": {"budget": []}}, "does not hold together"),
        ({"tensors": {"shapes": numpy.full((3, 4), 5, dtype=numpy.uint8)}}, "blocks of unknown shapes"),
        ({"tensors": {"shapes": numpy.zeros((4, 3), dtype=numpy.uint8)}}, "shapes of uint8 (4, 3) in place of uint8 (3, 4)"),
        ({"tensors": {"sigmas": numpy.full(5, numpy.nan)}}, "noise levels that do not fall"),
        ({"tensors": {"sigmas": numpy.zeros(5, dtype=numpy.float32)}}, "sigmas is float32, not float64"),
        ({"tensors": {"index": numpy.full((5, 3, 4), 9999, dtype=numpy.int32)}}, "an index outside of its masks"),
        ({"tensors": {"index": numpy.zeros((5, 3), dtype=numpy.int32)}}, "masks for an index of shape"),
        ({"tensors": {"repeats": numpy.zeros((5, 3, 5), dtype=numpy.uint8)}}, "repeating heads of bool"),
        ({"tensors": {"codings": numpy.zeros(7, dtype=numpy.uint8)}}, "codings of shape (7,)"),
        ({"tensors": {"masks": numpy.zeros(50, dtype=numpy.uint8)}}, "does not hold together"),
    ],
)
def test_a_hand_edited_file_is_refused(tmp_path, change, message):
    path = tmp_path / "wan.safetensors"
    write_profile(path, made_up_profile(), made_by=MADE_BY)
    rewritten(path, **change)
    with pytest.raises(ProfileError, match=re.escape(message)):
        read_profile(path)


@pytest.mark.parametrize(("row", "message"), [(0, "block rows without any block"), (255, "bits behind the last block")])
def test_masks_that_no_calibration_makes_are_refused(tmp_path, row, message):
    profile = made_up_profile()
    profile.masks[3, 2] = row
    with pytest.raises(ValueError, match=message):
        write_profile(tmp_path / "wan.safetensors", profile, made_by=MADE_BY)


def test_what_is_no_profile_is_refused(tmp_path):
    with pytest.raises(ProfileError, match="there is no file wan.safetensors; save a calibration"):
        read_profile(tmp_path / "wan.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"weight": numpy.zeros(3)}, other)
    with pytest.raises(ProfileError, match="is not a calibration"):
        read_profile(other)
    other.write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(ProfileError, match="cannot be read"):
        read_profile(other)


def smooth(generator, count, width):
    """A field ``[count, count]`` of unit variance that changes over ``width`` blocks."""
    noise = numpy.fft.rfft2(generator.standard_normal((count, count)))
    distance = numpy.fft.fftfreq(count)[:, None] ** 2 + numpy.fft.rfftfreq(count) ** 2
    field = numpy.fft.irfft2(noise * numpy.exp(-distance * (2 * numpy.pi * width) ** 2 / 2), s=(count, count))
    return field / field.std()


def video_masks(generator, steps, budget, count=591, frame=75600 / 21 / 128):
    """Packed masks of one head of a video model: near positions, the same place in other frames, blocks that all look at, and
    content at three scales that turns slowly from step to step."""
    distance = numpy.abs(numpy.subtract.outer(numpy.arange(count), numpy.arange(count)))
    near = -distance / generator.uniform(2, 60) + generator.normal(0, 2)
    frames = -numpy.abs((distance + frame / 2) % frame - frame / 2) / generator.uniform(0.5, 4) - distance / generator.uniform(100, 600)
    sinks = numpy.broadcast_to(2 * generator.standard_normal(count) - 4, (count, count))
    fixed = numpy.logaddexp(numpy.logaddexp(near, frames + generator.normal(0, 2)), sinks)
    first, last = (sum(weight * smooth(generator, count, width) for width, weight in ((8, 1), (2, 0.7), (0.3, 0.25))) for _ in range(2))
    masks = []
    for step in range(steps):
        angle = 1.2 * step / steps
        energies = numpy.exp(fixed + numpy.cos(angle) * first + numpy.sin(angle) * last)
        energies /= energies.sum(-1, keepdims=True)
        mask = budget.select(torch.from_numpy(energies), step / steps).numpy()
        masks.append(numpy.packbits(mask, axis=-1, bitorder="little"))
    return numpy.stack(masks)


@pytest.mark.parametrize(("budget", "steps", "dearer"), [(Thresholds.published(75600, 50), 50, 1.4), (Density(0.2), 5, 1.2)], ids=str)
def test_a_14b_model_at_720p_stays_under_64_megabytes(tmp_path, budget, steps, dearer):
    """40 layers of 40 heads, 591 blocks: three heads of them, in as many thousandths of the limit."""
    heads, all_heads, blocks = 3, 1600, 591
    generator = numpy.random.default_rng(0)
    kept = numpy.stack([video_masks(generator, steps, budget) for _ in range(heads)])
    assert 0.1 < numpy.unpackbits(kept[:, steps // 2]).mean() < 0.5
    assert 0.5 < jaccard(kept[0, steps // 2], kept[0, steps // 2 + 1]) < 0.99
    profile = replace(
        made_up_profile(),
        model=ModelIdentity("WanModel", 1, heads, 128, (5120, 16, 1, 2, 2)),
        tokens=75600,
        grid=(21, 45, 80),
        sigmas=tuple(1 - step / steps for step in range(steps)),
        steps=steps,
        sites=((0, 0),),
        budget=budget,
        index=numpy.arange(heads * steps, dtype=numpy.int32).reshape(heads, steps).T[:, None].copy(),
        repeats=numpy.zeros((steps, 1, heads), bool),
        masks=kept.reshape(-1, blocks, 74),
        shapes=numpy.zeros((1, heads), numpy.uint8),
    )
    share = heads / all_heads
    path = tmp_path / "wan.safetensors"
    largest = int((profile_file.LARGEST_FILE - profile_file.RESERVED) * share) + profile_file.RESERVED
    written = write_profile(path, profile, made_by=MADE_BY, largest=largest)
    # The index of all heads, which grows with them, is what the reserve is for.
    index_bytes = steps * all_heads * (4 + 1)
    masks_bytes = path.stat().st_size - steps * heads * (4 + 1)
    assert index_bytes < profile_file.RESERVED
    assert masks_bytes / share + index_bytes < 64e6 + 10**4 / share
    for step in range(steps):
        for head in range(heads):
            mask = written.masks[written.index[step, 0, head]]
            assert not (kept[head, step] & ~mask).any()
    assert written.density < dearer * profile.density
    assert_same(read_profile(path), written)


def test_what_cannot_be_made_small_is_refused(tmp_path):
    generator = numpy.random.default_rng(0)
    profile = made_up_profile(blocks=200)
    profile.masks[...] = generator.integers(0, 256, profile.masks.shape) | 1
    with pytest.raises(ProfileError, match="calibrate with a lower density"):
        write_profile(tmp_path / "wan.safetensors", profile, made_by=MADE_BY, largest=profile_file.RESERVED + 1000)
    assert list(tmp_path.iterdir()) == []
