"""One evaluation of the diffusion model, and where in it an attention call happens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...kernels import SequenceLayout
from ..recording.reasons import Reason
from ..recording.trace import Place
from .schedule import Schedule
from .sequence import Architecture, apply_mask, find_architecture, video_grid

# What ComfyUI means by the numbers of ``cond_or_uncond``.
BRANCHES = {0: "cond", 1: "uncond"}


@dataclass(frozen=True)
class Block:
    """A transformer block as the model names it, the number of the self-attention call in it, and its number among all layers."""

    type: str | None
    index: int | None
    ordinal: int
    layer: int
    layers: int

    @property
    def site(self) -> tuple[int, int]:
        """What a calibration calls it."""
        return self.layer, self.ordinal


@dataclass
class Evaluation:
    """One evaluation of the diffusion model, from which its attention calls learn where they are.

    Travels in ``transformer_options``; each evaluation has its own, so threads never share one.

    Attributes:
        model: the diffusion model.
        architecture: None when its tokens are not understood.
        grid: frames, rows and columns of the latent's patches, None when it is not a video.
        step, sparse_steps: see :class:`Place`.
        sigma: noise level, None where the sampler does not tell.
        step_reason: why the step stays dense.
        branch, context_window: see :class:`StateKey`.
        inner: the attention override below ours.
        block: of the call that is running, None while it is not known to be one of the video's own attention.
    """

    model: object
    architecture: Architecture | None
    grid: tuple[int, int, int] | None
    step: int
    sigma: float | None
    sparse_steps: tuple[int, ...]
    step_reason: Reason | None
    branch: tuple
    context_window: tuple
    inner: Callable | None = None
    block: Block | None = None
    _ordinals: Counter = field(default_factory=Counter)
    _layouts: dict = field(default_factory=dict)

    def locate(self, transformer_options: dict) -> Block:
        """The block of a self-attention call; counts it."""
        name = (transformer_options.get("block_type"), transformer_options.get("block_index"))
        self._ordinals[name] += 1
        return self._block(*name, self._ordinals[name] - 1)

    def named_block(self, transformer_options: dict) -> Block | None:
        """The block of a call that is not counted, None where the model does not say."""
        name = (transformer_options.get("block_type"), transformer_options.get("block_index"))
        return None if self.architecture is None or name[1] is None else self._block(*name, 0)

    def _block(self, block_type: str | None, index: int | None, ordinal: int) -> Block:
        return Block(block_type, index, ordinal, *self.architecture.layer(block_type, ordinal if index is None else index, self.model))

    def place(self, block: Block, layout: SequenceLayout, batch: int) -> Place:
        """Where a sparse call of ``batch`` items happens."""
        kinds = self.branch[0] or (0,)
        branches = tuple(_branch(kinds[item * len(kinds) // batch]) for item in range(batch))
        grid = self.grid if math.prod(self.grid) == len(layout.video) else None
        return Place(block.layer, block.layers, self.step, self.sparse_steps, branches, grid)

    def layouts(self, tokens: int, mask: Tensor | None) -> list[SequenceLayout] | Reason:
        """Which tokens are routed. A mask is read once: the layers of an evaluation share it."""
        # The mask itself is kept, so that its id cannot be taken by another.
        key = (tokens, id(mask))
        if key not in self._layouts:
            layout = self.architecture.layout(tokens, math.prod(self.grid))
            known = layout if isinstance(layout, Reason) else apply_mask(layout, mask, tokens)
            self._layouts[key] = (known, mask)
        return self._layouts[key][0]


def _branch(kind: int) -> str:
    return BRANCHES.get(kind, f"branch {kind}")


def read_evaluation(
    diffusion_model, x: Tensor, transformer_options: dict, latent_shapes: Sequence[Sequence[int]] | None, schedule: Schedule
) -> Evaluation:
    """What an evaluation of ``diffusion_model`` on the latent ``x`` is, from what ComfyUI says of it.

    ``latent_shapes`` are those of the parts of a packed audio-video latent, video first; None for others.
    """
    model = uncompiled(diffusion_model)
    sigmas = transformer_options.get("sigmas")
    sigma = None if sigmas is None else float(sigmas.flatten()[0])
    window = transformer_options.get("context_window")
    # Skip-layer guidance evaluates the same conditioning once more with blocks replaced.
    replaced = tuple(sorted(map(str, transformer_options.get("patches_replace", {}).get("dit", ()))))
    return Evaluation(
        model=model,
        architecture=find_architecture(model),
        grid=video_grid(tuple(latent_shapes[0] if latent_shapes else x.shape), model),
        step=schedule.step(sigma),
        sigma=sigma,
        sparse_steps=schedule.sparse_steps,
        step_reason=schedule.dense_reason(sigma),
        branch=(tuple(transformer_options.get("cond_or_uncond", ())), tuple(transformer_options.get("uuids", ())), replaced),
        context_window=tuple(getattr(window, "index_list", ())),
    )


def uncompiled(diffusion_model):
    """The diffusion model itself where torch.compile wraps it and hides its class."""
    return getattr(diffusion_model, "_orig_mod", diffusion_model)
