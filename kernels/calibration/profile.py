"""What a calibration found, ready to be looked up."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy
import torch

from ..block_shapes import SHAPES, block_table
from ..blocks import ANCHOR_EVERY, block_count
from ..numerics import ceil_div
from ..settings import BlockRouting
from .bits import popcount, unpack
from .budgets import Budget
from .sharing import merge_masks


@dataclass(frozen=True)
class ModelIdentity:
    """What tells architectures apart, cheap to find out and the same for any precision of the weights.

    Attributes:
        architecture: class of the diffusion model.
        layers: transformer blocks.
        heads, head_dim: of the self-attention.
        input_shape: of the weight that takes the latent in.
    """

    architecture: str
    layers: int
    heads: int
    head_dim: int
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Blocks to compute, per step, layer and head, with what they were found on.

    Attributes:
        model, grid, tokens: what was calibrated; the grid is frames, rows and columns of the video's patches, and there are more
            tokens than that with reference frames beside it.
        block: tokens of a block, n blocks in all.
        sigmas: noise levels at the start of the S steps that were looked at, falling.
        first_sigma, last_sigma: the levels that the first step begins and the last one ends at.
        steps: steps of the sampler.
        sites: layer and ordinal of the P attention calls of an evaluation.
        budget: that chose the blocks.
        prompts: finished runs.
        shapes: uint8 ``[P, H]``, which of :data:`~..block_shapes.SHAPES` the blocks of each head have.
        index: int32 ``[S, P, H]``, which of the masks.
        repeats: bool ``[S, P, H]``, heads of which only the anchor blocks are computed.
        masks: uint8 ``[M, n, ceil(n / 8)]``, query blocks by key blocks, eight to a byte, the first one lowest.
    """

    model: ModelIdentity
    grid: tuple[int, int, int]
    tokens: int
    block: int
    sigmas: tuple[float, ...]
    first_sigma: float
    last_sigma: float
    steps: int
    sites: tuple[tuple[int, int], ...]
    budget: Budget
    prompts: int
    shapes: numpy.ndarray
    index: numpy.ndarray
    repeats: numpy.ndarray
    masks: numpy.ndarray

    def differences(self, model: ModelIdentity | None = None, grid: tuple | None = None, tokens: int | None = None) -> list[str]:
        """How this profile does not fit a model, a grid or a number of video tokens, in words; empty when it fits."""
        found = []
        if model is not None:
            pairs = ((entry.name, getattr(self.model, entry.name), getattr(model, entry.name)) for entry in fields(model))
            found += [f"{name.replace('_', ' ')} {own}, not {other}" for name, own, other in pairs if own != other]
        if grid is not None and tuple(grid) != self.grid:
            found.append(f"a token grid of {_grid(self.grid)} (frames x rows x columns), not {_grid(grid)}")
        if tokens is not None and tokens != self.tokens:
            found.append(f"{self.tokens} video tokens, not {tokens}")
        return found

    def step(self, sigma: float) -> int | None:
        """The look nearest to noise level ``sigma``; None further outside of the calibrated schedule than two looks are apart."""
        levels = (self.first_sigma, *self.sigmas, self.last_sigma)
        widest = max(high - low for high, low in zip(levels, levels[1:]))
        if max(sigma - self.first_sigma, self.last_sigma - sigma) > widest * (1 + 1e-5):
            return None
        return min(range(len(self.sigmas)), key=lambda step: abs(self.sigmas[step] - sigma))

    def routing(self, site: tuple[int, int], sigma: float, device: torch.device) -> BlockRouting | None:
        """The blocks of one attention call on its device; None for a site or a noise level that was not calibrated."""
        step, place = self.step(sigma), self._places.get(tuple(site))
        if step is None or place is None:
            return None
        packed = _sent(self.masks[self.index[step, place]], device)
        repeating = tuple(numpy.flatnonzero(self.repeats[step, place]).tolist())
        labels = self._labels(place, device) if self.shapes[place].any() else None
        return BlockRouting(unpack(packed, self.masks.shape[1]), self.block, repeating, labels)

    def shape_shares(self) -> dict[str, float]:
        """How many of the heads of all sites have blocks of each shape; shapes that none has are left out."""
        counts = numpy.bincount(self.shapes.ravel(), minlength=len(SHAPES)) / self.shapes.size
        return {name: float(share) for name, share in zip(SHAPES, counts) if share}

    def with_fewer_masks(self, most: int) -> Profile:
        """The same with at most ``most`` masks a head: see :func:`~.sharing.merge_masks`."""
        masks, index = [], numpy.empty_like(self.index)
        for place in range(len(self.sites)):
            for head in range(self.model.heads):
                used, members = numpy.unique(self.index[:, place, head], return_inverse=True)
                own, members = merge_masks([self.masks[mask] for mask in used], members, most)
                index[:, place, head] = members + len(masks)
                masks += own
        return replace(self, masks=numpy.stack(masks), index=index)

    @cached_property
    def density(self) -> float:
        """Share of the query-key pairs that are computed, mean over steps, sites and heads; blocks taken as full."""
        count = self.masks.shape[1]
        shares = popcount(self.masks) / count**2
        anchors = popcount(self.masks[:, ::ANCHOR_EVERY]) / count**2
        return float(numpy.where(self.repeats, anchors[self.index], shares[self.index]).mean())

    def forget_devices(self) -> None:
        """Free what calls left on their devices; the next one makes it anew."""
        self._tables.clear()

    def _labels(self, place: int, device: torch.device) -> torch.Tensor:
        """int32 ``[H, N]``: the block of every token for each head of a site."""
        table = self._tables.get(device)
        if table is None:
            table = self._tables[device] = block_table(self.grid, self.block).to(device)
        return table[_sent(self.shapes[place], device).long()]

    @cached_property
    def _tables(self) -> dict[torch.device, torch.Tensor]:
        return {}

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        return {site: place for place, site in enumerate(self.sites)}

    def check(self) -> None:
        """Raise ValueError unless all parts fit together: shapes, dtypes and ranges."""
        count = block_count(self.tokens, self.block) if self.tokens > 0 and self.block > 0 else 0
        shape = (len(self.sigmas), len(self.sites), self.model.heads)
        levels = (*self.sigmas, self.last_sigma)
        rules = {
            "numbers that are not positive": min(
                self.model.layers, self.model.head_dim, self.steps, self.prompts, *shape, count, *self.grid
            )
            > 0,
            f"a grid of {_grid(self.grid)} in place of frames x rows x columns": len(self.grid) == 3,
            "noise levels that do not fall": levels[0] <= self.first_sigma < math.inf
            and all(0 <= low < high for high, low in zip(levels, levels[1:])),
            "layers that the model does not have": all(0 <= layer < self.model.layers and ordinal >= 0 for layer, ordinal in self.sites),
            "the same layer twice": len(set(self.sites)) == len(self.sites),
            "fewer steps than it has levels": len(self.sigmas) <= self.steps,
            f"shapes of {self.shapes.dtype} {self.shapes.shape} in place of uint8 {shape[1:]}": _is(self.shapes, numpy.uint8, shape[1:]),
            f"an index of {self.index.dtype} {self.index.shape} in place of int32 {shape}": _is(self.index, numpy.int32, shape),
            f"repeating heads of {self.repeats.dtype} {self.repeats.shape} in place of bool {shape}": _is(self.repeats, bool, shape),
            f"masks of {self.masks.dtype} {self.masks.shape} for {count} blocks": _is(
                self.masks, numpy.uint8, (len(self.masks), count, ceil_div(count, 8))
            ),
        }
        broken = [what for what, holds in rules.items() if not holds]
        if not broken:
            spare = -count % 8
            rules = {
                "an index outside of its masks": 0 <= self.index.min() and self.index.max() < len(self.masks),
                "blocks of unknown shapes": self.shapes.max() < len(SHAPES),
                f"blocks of shapes for {self.tokens} tokens in a grid of {_grid(self.grid)}": not self.shapes.any()
                or self.tokens == math.prod(self.grid),
                "block rows without any block": bool(self.masks.any(-1).all()),
                "bits behind the last block": not spare or not (self.masks[..., -1] >> (8 - spare)).any(),
            }
            broken = [what for what, holds in rules.items() if not holds]
        if broken:
            raise ValueError(f"it has {'; '.join(broken)}")


def _sent(array: numpy.ndarray, device: torch.device) -> torch.Tensor:
    """``array`` on ``device``. From pinned memory, because a copy from any other makes the host wait for a GPU."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _is(array: numpy.ndarray, dtype: type, shape: tuple[int, ...]) -> bool:
    return array.dtype == dtype and array.shape == shape


def _grid(grid: tuple[int, int, int]) -> str:
    return " x ".join(map(str, grid))
