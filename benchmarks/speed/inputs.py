"""The shapes of the speed bench, and attention inputs with the structure that sparse attention lives on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import pack

pack.load()
from svg_ear.kernels import SequenceLayout  # noqa: E402

HEAD_DIM = 128
KINDS = ("structured", "gaussian")

TOPICS = 300
# Regions of the video, each of one topic: a topic shows in several places.
REGIONS = 2000
# Amplitudes of a query or key: its topic, what neighbours share, its own noise. Their squares add up to 1, as after
# qk-norm; a query then finds about a third of its attention in its topic.
TOPIC, SHARED, NOISE = 0.7, 0.4, 0.59
VALUE_TOPIC = 0.7
# How far queries and keys move from one denoising step to the next, as a share of their norm.
DRIFT = 0.1


@dataclass(frozen=True)
class Shape:
    """One attention call of a model, batch 1.

    Attributes:
        name: what it is called on the command line.
        heads: heads of 128 channels.
        grid: video tokens as frames, rows, columns.
        conditioning: text tokens in front of the video.
        heads_first: whether the model hands over ``[B, H, L, D]`` memory; otherwise ``[B, L, H, D]``.
    """

    name: str
    heads: int
    grid: tuple[int, int, int]
    conditioning: int = 0
    heads_first: bool = False

    @property
    def tokens(self) -> int:
        """Video tokens."""
        return math.prod(self.grid)

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return self.conditioning + self.tokens

    @property
    def layout(self) -> SequenceLayout:
        """Text in front, then video."""
        text = (range(self.conditioning),) if self.conditioning else ()
        return SequenceLayout(range(self.conditioning, self.length), text)


MODELS = (
    Shape("wan-720p", 40, (21, 45, 80)),
    Shape("hunyuan-720p", 24, (33, 45, 80), conditioning=256, heads_first=True),
    Shape("wan-480p", 40, (21, 30, 52)),
    Shape("wan-5b-720p", 24, (31, 22, 40)),
)
# As many heads as Wan 1.3B: with more of them a call gains from being sparse at shorter lengths already.
SWEEP = tuple(
    Shape(f"{math.prod(grid) // 1024}k", 12, grid)
    for grid in ((8, 32, 32), (16, 32, 32), (32, 32, 32), (16, 64, 64), (32, 64, 64), (64, 64, 64))
)
SHAPES = {shape.name: shape for shape in (*MODELS, *SWEEP)}


@dataclass(frozen=True)
class Inputs:
    """Queries, keys and values ``[1, H, L, D]`` of consecutive denoising steps; the values stay, nothing reads them twice."""

    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: Tensor

    def step(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of step ``number``, counted round the steps there are."""
        return self.queries[number % len(self.queries)], self.keys[number % len(self.keys)], self.values

    @property
    def nbytes(self) -> int:
        """Bytes of q, k and v of one step."""
        return 3 * self.values.nbytes


def make_inputs(
    shape: Shape, kind: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, steps: int = 2, seed: int = 0
) -> Inputs:
    """Inputs in the memory layout of the model, generated head by head in float32.

    ``structured`` tokens are the sum of the centre of their topic, a field that is smooth over the grid, and noise; topics
    hold regions of the video, their sizes are lognormal. Keys of a topic belong to its queries. ``gaussian`` is noise alone,
    on which every block of keys matters equally. Text tokens are always noise.
    """
    generator = torch.Generator(device).manual_seed(seed)
    queries, keys = (tuple(_empty(shape, device) for _ in range(steps)) for _ in range(2))
    values = _empty(shape, device)
    for head in range(shape.heads):
        for tensors, video in zip((queries, keys, (values,)), _head(shape, kind, generator, device)):
            tokens = torch.cat([_noise((shape.conditioning, HEAD_DIM), generator), video])
            for tensor in tensors:
                tensor[0, head] = tokens
                tokens = math.sqrt(1 - DRIFT**2) * tokens + DRIFT * _noise(tokens.shape, generator)
    return Inputs(queries, keys, values)


def _empty(shape: Shape, device: torch.device) -> Tensor:
    """``[1, H, L, D]``, in the memory layout of the model."""
    if shape.heads_first:
        return torch.empty(1, shape.heads, shape.length, HEAD_DIM, device=device, dtype=torch.bfloat16)
    return torch.empty(1, shape.length, shape.heads, HEAD_DIM, device=device, dtype=torch.bfloat16).transpose(1, 2)


def _head(shape: Shape, kind: str, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Video q, k, v ``[N, D]`` of one head."""
    if kind == "gaussian":
        return tuple(_noise((shape.tokens, HEAD_DIM), generator) for _ in range(3))
    topics = _topics(shape.grid, generator)
    centers, value_centers = (_noise((TOPICS, HEAD_DIM), generator)[topics] for _ in range(2))
    common = TOPIC * centers + SHARED * _smooth(shape.grid, generator)
    q, k = (common + NOISE * _noise(common.shape, generator) for _ in range(2))
    v = VALUE_TOPIC * value_centers + math.sqrt(1 - VALUE_TOPIC**2) * _noise(common.shape, generator)
    return q, k, v


def _topics(grid: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """int64 ``[N]``: the topic of the region that a token is in; regions are the cells around random points."""
    device = generator.device
    axes = (torch.arange(size, device=device, dtype=torch.float32) for size in grid)
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
    points = torch.rand(REGIONS, 3, generator=generator, device=device) * torch.tensor(grid, device=device)
    weights = torch.randn(TOPICS, generator=generator, device=device).exp()
    topic_of_region = torch.multinomial(weights, REGIONS, replacement=True, generator=generator)
    return torch.cat([topic_of_region[torch.cdist(rows, points).argmin(-1)] for rows in positions.split(16384)])


def _smooth(grid: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """``[N, D]`` of unit variance: noise on a grid of an eighth of the size, interpolated."""
    coarse = _noise((1, HEAD_DIM, *(max(2, size // 8) for size in grid)), generator)
    field = interpolate(coarse, size=grid, mode="trilinear", align_corners=True)
    return (field / field.std()).flatten(2)[0].T


def _noise(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, device=generator.device)
