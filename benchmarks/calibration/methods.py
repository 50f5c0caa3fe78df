"""Calibrating the demo model, and what chooses as many blocks online as a calibration has."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import pack
from ..demo_model import sample
from ..host import AttentionHost
from ..position_blocks import attend_blocks, best_blocks, block_sizes, exact_share
from ..quality.calibrated import CalibratedAttention
from ..quality.cost import position_blocks_density
from ..quality.methods import Scale

pack.load()
from svg_ear.kernels import BlockRouting, SequenceLayout  # noqa: E402
from svg_ear.kernels.block_shapes import SHAPES  # noqa: E402
from svg_ear.kernels.blocks import ANCHOR_EVERY, BLOCK  # noqa: E402
from svg_ear.kernels.calibration import (  # noqa: E402
    Calibration,
    CalibrationRun,
    ModelIdentity,
    Profile,
    write_profile,
)

__all__ = [
    "SHAPES",
    "CalibratingHost",
    "Calibration",
    "MatchedRaster",
    "OnlineBlocks",
    "Profile",
    "identity",
    "start_run",
    "write_profile",
]


class CalibratingHost(AttentionHost):
    """Dense attention of a diffusers ``WanTransformer3DModel``, of which a calibration learns.

    Args:
        transformer: the model; its processors are wrapped for good.
        run: what learns; None only samples.
    """

    def __init__(self, transformer, run: CalibrationRun | None):
        super().__init__(transformer)
        self.run = run

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
        """As :class:`AttentionHost`."""
        output = super().attend(layer, query, key, value, **options)
        if self.run is not None and self.run.wants(self.step):
            layouts = [SequenceLayout(range(query.shape[1]))] * query.shape[0]
            heads_first = (tensor.transpose(1, 2) for tensor in (query, key, output))
            self.run.observe((layer, 0), self.step, *heads_first, layouts=layouts)
        return output


def start_run(calibration: Calibration, scale: Scale) -> CalibrationRun:
    """A run of the demo model's schedule."""
    return calibration.start(sample.sigmas(scale.steps).tolist(), scale.grid)


def identity(transformer) -> ModelIdentity:
    """What ComfyUI would call the demo model."""
    shape = tuple(transformer.patch_embedding.weight.shape)
    attention = transformer.config
    return ModelIdentity("WanModel", attention.num_layers, attention.num_attention_heads, attention.attention_head_dim, shape)


def computed_shares(blocks: BlockRouting, tokens: int) -> Tensor:
    """float64 ``[H]``: the share of the pairs of each head that ``blocks`` computes."""
    sizes = block_sizes(tokens, blocks.exact.device, blocks.size).double()
    rows = (blocks.exact * sizes).sum(-1) * sizes
    rows[list(blocks.repeating)] *= torch.arange(len(sizes), device=sizes.device) % ANCHOR_EVERY == 0
    return rows.sum(-1) / tokens**2


class OnlineBlocks(CalibratedAttention):
    """As many blocks of the same size as a profile has, per head, chosen in every call by the scores of block means."""

    def _blocks(self, layer: int, step: int, query: Tensor, key: Tensor) -> BlockRouting:
        share = computed_shares(super()._blocks(layer, step, query, key), query.shape[2])
        return BlockRouting(best_blocks(query, key, share, BLOCK)[0], BLOCK)


class MatchedRaster(CalibratedAttention):
    """Position blocks with a pooled term, as many pairs as a profile has per head, chosen in every call."""

    def __call__(self, layer: int, step: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens = query.shape[2]
        exact = best_blocks(query, key, computed_shares(self._blocks(layer, step, query, key), tokens))
        share = exact_share(exact, tokens)
        self.spent.append((share, position_blocks_density(share)))
        return attend_blocks(query, key, value, exact)
