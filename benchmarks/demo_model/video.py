"""Procedural video: textured objects that move, turn, grow and occlude each other over a panning background.

A clip is one row of uniform numbers (``uniforms``). Their categorical part is told to the model as conditioning tokens
(``conditioning``); the rest (where objects are, the background's phase) is what the model has to invent. ``render`` turns rows
into video and ``encode`` turns video into latents; both run in batch on any device.
"""

import math
from functools import lru_cache

import numpy as np
import torch

TEXT_DIM = 4096
OBJECTS = 4
CELL = (4, 3)
TWO_PI = 2 * math.pi

BACKGROUND = {"texture": 3, "first colour": 8, "second colour": 8, "wavelength": 2, "tilt": 8}
CAMERA = {"pan direction": 8, "pan speed": 3}
OBJECT = {
    "depth": OBJECTS,
    "shape": 5,
    "texture": 5,
    "first colour": 8,
    "second colour": 8,
    "size": 3,
    "wavelength": 2,
    "direction": 8,
    "speed": 3,
    "orientation": 8,
    "spin": 5,
    "growth": 3,
}
TOKENS = 2 + OBJECTS
FREE = 2

SHAPES = ("disc", "triangle", "square", "star", "ring")
TEXTURES = ("stripes", "checks", "dots", "rings", "gradient")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "violet", "white")

SHAPE_CORNERS = (64, 3, 4, 5, 64)
SHAPE_RIPPLE = (0.0, 0.0, 0.0, 0.28, 0.0)
SHAPE_HOLE = (-1.0, -1.0, -1.0, -1.0, 0.48)
PALETTE = (
    (0.90, 0.15, 0.15),
    (0.95, 0.55, 0.10),
    (0.95, 0.90, 0.20),
    (0.15, 0.75, 0.25),
    (0.15, 0.80, 0.85),
    (0.15, 0.30, 0.90),
    (0.65, 0.25, 0.85),
    (0.95, 0.95, 0.95),
)
RADIUS = (28.0, 40.0, 54.0)
WAVELENGTH = (13.0, 19.0)
SPEED = (1.0, 2.0, 3.2)
SPIN = (-0.12, -0.05, 0.0, 0.05, 0.12)
GROWTH = (-0.008, 0.0, 0.008)
PAN = (0.8, 1.6, 2.6)

LUMA_MEAN = 1.13
LUMA_GAIN = (1.85, 6.1, 12.9, 5.3, 9.7, 15.7, 10.0, 13.7, 19.2, 16.0, 19.0, 23.9)
CHROMA_GAIN = (6.2, 16.7)

OBJECT_START = len(BACKGROUND) + len(CAMERA) + FREE
OBJECT_SIZE = len(OBJECT) + FREE
UNIFORMS = OBJECT_START + OBJECTS * OBJECT_SIZE


def hashed(*keys):
    """64-bit mixes of integer ``keys`` (broadcast against each other): the same everywhere, no library's generator."""
    state = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key, dtype=np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


@lru_cache
def constant(values, device):
    """Tensor of the tuple ``values``, made once per device: a copy to a GPU would stall it."""
    return torch.tensor(values, device=device)


def uniforms(seeds):
    """The rows that describe the clips of ``seeds``: fp32 ``[B, UNIFORMS]`` in [0, 1)."""
    bits = hashed(np.asarray(seeds)[:, None], np.arange(UNIFORMS)[None])
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) / 2.0**24)


def object_count(rows_latent):
    """Objects in a clip of that many latent rows: 2 in the smallest windows, 3 in middle ones, 4 in large ones."""
    return 2 if rows_latent <= 32 else 3 if rows_latent <= 46 else OBJECTS


def choices(rows, names, start):
    """Categorical attributes ``names`` (name -> number of values) of ``rows`` from column ``start``; int64 ``[B, len]``."""
    counts = constant(tuple(names.values()), rows.device)
    return (rows[:, start : start + len(names)] * counts).long()


def attributes(rows):
    """All categorical attributes: background ``[B, 5]``, camera ``[B, 2]`` and objects ``[B, OBJECTS, 12]``.

    The second colour of anything is never its first, and an object's depth is its place in the list (0 is the farthest).
    """
    background = choices(rows, BACKGROUND, 0)
    camera = choices(rows, CAMERA, len(BACKGROUND))
    objects = torch.stack([choices(rows, OBJECT, OBJECT_START + i * OBJECT_SIZE) for i in range(OBJECTS)], dim=1)
    objects[:, :, 0] = torch.arange(OBJECTS, device=rows.device)
    for values, first in ((background, 1), (objects, 3)):
        values[..., first + 1] = torch.where(
            values[..., first + 1] == values[..., first], (values[..., first] + 3) % 8, values[..., first + 1]
        )
    return background, camera, objects


def codebook():
    """Random signs of magnitude 0.1 per attribute value: fp32 ``[background + camera + object values, 4096]``."""
    entries = sum(sum(names.values()) for names in (BACKGROUND, CAMERA, OBJECT))
    bits = hashed(np.uint64(0x5E6EA12), np.arange(entries)[:, None], np.arange(TEXT_DIM)[None]) >> np.uint64(63)
    return torch.from_numpy(bits.astype(np.float32) * 0.2 - 0.1)


def conditioning(rows, count, book):
    """Tokens that describe ``rows``: background, camera, then objects; fp32 ``[B, TOKENS, 4096]``.

    A token is the sum of its attributes' codebook entries over the root of their number, so that its elements have a
    root mean square of 0.1. Tokens of objects beyond ``count`` are zero, and so is every token of the null conditioning.
    """
    background, camera, objects = attributes(rows)
    tokens, offset = [], 0
    for values, names in ((background[:, None], BACKGROUND), (camera[:, None], CAMERA), (objects, OBJECT)):
        starts = offset + constant((0, *names.values())[:-1], rows.device).cumsum(0)
        tokens.append(book[starts + values].sum(dim=2) / len(names) ** 0.5)
        offset += sum(names.values())
    tokens[2] = tokens[2] * (torch.arange(OBJECTS, device=rows.device) < count)[:, None]
    return torch.cat(tokens, dim=1)


def describe(seed, count=OBJECTS):
    """The clip of ``seed`` in words, one line for the scene and one per object, farthest first."""
    background, camera, objects = (part[0].tolist() for part in attributes(uniforms([seed])))
    lines = [
        f"{COLOURS[background[1]]} and {COLOURS[background[2]]} {TEXTURES[background[0]]} in the background, "
        f"camera towards {camera[0] * 45} degrees at {PAN[camera[1]]} pixels a frame"
    ]
    for _, shape, texture, first, second, size, _, direction, speed, _, spin, _ in objects[:count]:
        lines.append(
            f"{SHAPES[shape]} of radius {RADIUS[size]:.0f} with {COLOURS[first]} and {COLOURS[second]} {TEXTURES[texture]}, "
            f"towards {direction * 45} degrees at {SPEED[speed]} pixels a frame, turning {SPIN[spin]} radians a frame"
        )
    return "\n".join(lines)


def texture(kind, u, v, wavelength):
    """Value in [0, 1] of texture ``kind`` at pixel offsets ``u, v``; everything broadcasts."""
    a, b = u * (TWO_PI / wavelength), v * (TWO_PI / wavelength)
    radius = (a * a + b * b + 1e-6).sqrt()
    wave = torch.where(kind == 0, a.sin(), a.sin() * b.sin() * 1.6)
    wave = torch.where(kind == 2, a.cos() + b.cos() - 0.5, wave)
    wave = torch.where(kind == 3, radius.sin(), wave)
    soft = torch.sigmoid(4.0 * wave)
    return torch.where(kind == 4, 0.5 + 0.5 * (0.3 * a).sin(), soft)


def mix(first, second, value, amount):
    """Blend palette colours ``first, second [B]`` by ``value [B, T, H, W]``, scaled by ``amount``; ``[B, 3, T, H, W]``."""
    palette = constant(PALETTE, value.device)
    start, end = (palette[colour][:, :, None, None, None] * amount for colour in (first, second))
    return start + (end - start) * value[:, None]


def render(rows, frames, height, width, count):
    """Video of ``rows [B, UNIFORMS]`` with ``count`` objects: fp32 ``[B, 3, frames, height, width]`` in [0, 1].

    Lengths are in pixels whatever the window, except that objects are a little smaller in small windows.
    """
    device = rows.device
    background, camera, objects = attributes(rows)

    def column(values):
        return values[:, None, None, None].float()

    def look_up(table, values):
        return column(constant(table, device)[values])

    time = (torch.arange(frames, device=device) - (frames - 1) / 2)[None, :, None, None]
    y = torch.arange(height, device=device)[None, None, :, None] - (height - 1) / 2
    x = torch.arange(width, device=device)[None, None, None, :] - (width - 1) / 2

    free = rows[:, OBJECT_START - FREE : OBJECT_START]
    heading = column(camera[:, 0]) * (TWO_PI / 8)
    pan = look_up(PAN, camera[:, 1])
    across = x + time * pan * heading.cos() + 400 * column(free[:, 0])
    down = y + time * pan * heading.sin() + 400 * column(free[:, 1])
    tilt = column(background[:, 4]) * (TWO_PI / 16)
    value = texture(
        column(background[:, 0]),
        across * tilt.cos() + down * tilt.sin(),
        down * tilt.cos() - across * tilt.sin(),
        1.6 * look_up(WAVELENGTH, background[:, 3]),
    )
    video = mix(background[:, 1], background[:, 2], value, 0.45)

    shrink = min(1.0, (height / 240) ** 0.4)
    for i in range(count):
        start = OBJECT_START + i * OBJECT_SIZE + len(OBJECT)
        free = rows[:, start : start + FREE]
        _, shape, kind, first, second, size, wavelength, direction, speed, orientation, spin, growth = objects[:, i].unbind(1)
        heading = column(direction) * (TWO_PI / 8)
        pace = look_up(SPEED, speed)
        dx = x - (column(free[:, 0]) - 0.5) * 0.84 * width - time * pace * heading.cos()
        dy = y - (column(free[:, 1]) - 0.5) * 0.84 * height - time * pace * heading.sin()
        turn = column(orientation) * (TWO_PI / 8) + time * look_up(SPIN, spin)
        growth = 1 + time * look_up(GROWTH, growth)
        radius = look_up(RADIUS, size) * shrink * growth
        u = (dx * turn.cos() + dy * turn.sin()) / growth
        v = (dy * turn.cos() - dx * turn.sin()) / growth
        distance = (u * u + v * v + 1e-6).sqrt() * growth
        sector = TWO_PI / look_up(SHAPE_CORNERS, shape)
        angle = torch.atan2(v, u)
        ripple = look_up(SHAPE_RIPPLE, shape)
        flat = (sector / 2).cos() / (angle - sector * (angle / sector).round()).cos()
        outline = torch.where(ripple > 0, 1 - ripple + ripple * (angle * TWO_PI / sector).cos(), flat)
        cover = (0.5 + (radius * outline - distance) * 0.7).clamp(0, 1)
        cover = cover * (0.5 + (distance - radius * look_up(SHAPE_HOLE, shape)) * 0.7).clamp(0, 1)
        value = texture(column(kind), u, v, look_up(WAVELENGTH, wavelength))
        edge = ((radius * outline - distance) * 0.5).clamp(0.35, 1)[:, None]
        video = video + cover[:, None] * (mix(first, second, value, 1.0) * edge - video)
    return video


@lru_cache
def luma_basis(device):
    """Scaled cosine patterns of one 4x3 luma cell, fp32 ``[12, 12]``, rows from low to high frequency.

    The gains bring the patterns towards equal variance, the finest least, so that errors there are hardly seen.
    """
    axes = []
    for length in CELL:
        frequency = torch.arange(length, dtype=torch.float64)[:, None]
        wave = torch.cos(math.pi * frequency * (2 * torch.arange(length, dtype=torch.float64)[None] + 1) / (2 * length))
        axes.append(wave / wave.norm(dim=1, keepdim=True))
    basis = torch.kron(axes[0], axes[1]) * torch.tensor(LUMA_GAIN, dtype=torch.float64)[:, None]
    return basis.float().to(device)


@lru_cache
def chroma_basis(device):
    """Scaled sum and difference of the upper and lower chroma sample of a cell, fp32 ``[2, 2]``."""
    return (torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5 * torch.tensor(CHROMA_GAIN)[:, None]).to(device)


@lru_cache
def colour_matrix(device):
    """RGB to luma and two colour differences, fp32 ``[3, 3]``."""
    return torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], device=device)


def encode(video):
    """Latents of ``video [B, 3, T, 4h, 3w]`` in [0, 1]: fp32 ``[B, 16, T, h, w]``, about zero mean and unit variance.

    A latent cell holds the 12 luma values of 4x3 pixels and two samples of each colour difference (averages of 2x3 pixels).
    Linear, and exactly inverted by ``decode`` on video whose colour differences are constant over 2x3 pixels.
    """
    luma, chroma = torch.einsum("oc,bcthw->bothw", colour_matrix(video.device), video).split((1, 2), dim=1)
    luma = luma.unflatten(4, (-1, CELL[1])).unflatten(3, (-1, CELL[0])).permute(0, 1, 2, 3, 5, 4, 6).flatten(5)[:, 0]
    luma = luma @ luma_basis(video.device).T
    luma = torch.cat([luma[..., :1] - LUMA_GAIN[0] * LUMA_MEAN, luma[..., 1:]], dim=-1)
    chroma = chroma.unflatten(4, (-1, CELL[1])).unflatten(3, (-1, 2, CELL[0] // 2)).mean((5, 7))
    chroma = torch.einsum("oy,bcthyw->bcothw", chroma_basis(video.device), chroma).flatten(1, 2)
    return torch.cat([luma.permute(0, 4, 1, 2, 3), chroma], dim=1)


def decode_rgb(latents):
    """Video of ``latents [B, 16, T, h, w]``: fp32 ``[B, 3, T, 4h, 3w]``, unclamped. The inverse of ``encode``."""
    luma, chroma = latents.float().split((12, 4), dim=1)
    luma = luma.permute(0, 2, 3, 4, 1)
    luma = torch.cat([luma[..., :1] + LUMA_GAIN[0] * LUMA_MEAN, luma[..., 1:]], dim=-1)
    luma = (luma @ torch.linalg.inv(luma_basis("cpu")).T.to(luma.device)).unflatten(-1, CELL)
    luma = luma.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)[:, None]
    inverse = torch.linalg.inv(chroma_basis("cpu")).to(luma.device)
    chroma = torch.einsum("yo,bcothw->bcthyw", inverse, chroma.unflatten(1, (2, 2))).flatten(3, 4)
    chroma = chroma.repeat_interleave(CELL[0] // 2, dim=3).repeat_interleave(CELL[1], dim=4)
    inverse = torch.linalg.inv(colour_matrix("cpu")).to(luma.device)
    return torch.einsum("oc,bcthw->bothw", inverse, torch.cat([luma, chroma], dim=1))


def clip_latents(seeds, grid):
    """Latents of the clips of ``seeds`` at a token ``grid (t, h, w)``: ``[B, 16, t, 2h, 2w]`` on the CPU."""
    frames, rows, columns = grid[0], 2 * grid[1], 2 * grid[2]
    return encode(render(uniforms(seeds), frames, CELL[0] * rows, CELL[1] * columns, object_count(rows)))
