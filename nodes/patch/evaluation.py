"""One evaluation of the diffusion model, and where in it an attention call happens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...kernels import SequenceLayout, SharedKeys
from ..recording.reasons import Reason
from ..recording.record import Run
from ..recording.size import VideoSize
from ..recording.trace import Place
from .blocks import running_block
from .call import AttentionCall
from .frames import frames_layout, is_frame, length_of
from .guides import guided_layout
from .schedule import Schedule
from .sequence import Architecture, Routed, Segments, apply_mask, packed_segments
from .state import StateStore

# Where an attention override lies in ``transformer_options``.
OVERRIDE = "optimized_attention_override"
# What ComfyUI means by the numbers of ``cond_or_uncond``.
COND = 0
BRANCHES = {COND: "cond", 1: "uncond"}


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
        architecture: how it lays out its tokens.
        grid: frames, rows and columns of the latent's patches.
        step, sparse_steps: see :class:`Place`.
        sigma: noise level, None where the sampler does not tell.
        step_reason: why the step stays dense.
        density: share of exact pairs in the step, None where it is that of the settings.
        branch, context_window: see :class:`StateKey`.
        inner: the attention override below ours.
        segments: what its sequences are packed of, empty where that is not known before the calls.
        size: of the video, None where it is not known.
        guides: how many of the grid's tokens are guides, behind the video.
        block: of the call that is running, None while it is not known to be one of the video's own attention.
        calls: attention calls so far.
        preferred: see :func:`preferred_attention`.
        run, states: what the evaluation is a part of, and the clusters that are kept in it.
    """

    model: object
    architecture: Architecture
    grid: tuple[int, int, int]
    step: int
    sigma: float | None
    sparse_steps: tuple[int, ...]
    step_reason: Reason | None
    density: float | None
    branch: tuple
    context_window: tuple
    inner: Callable | None = None
    segments: Segments = ()
    size: VideoSize | None = None
    guides: int = 0
    block: Block | None = None
    calls: int = 0
    preferred: dict = field(default_factory=dict)
    run: Run | None = None
    states: StateStore = field(default_factory=StateStore)
    _ordinals: Counter = field(default_factory=Counter)
    _layouts: dict = field(default_factory=dict)
    # The block whose calls share their keys, and what they found of them.
    _shared: tuple[tuple, SharedKeys] | None = None
    # The block of the last call, and how many queries its own attention had still to come.
    _running: tuple[int | None, int] = (None, 0)

    @property
    def own_grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns without the guides, which are whole frames."""
        frames, rows, columns = self.grid
        return frames - self.guides // (rows * columns), rows, columns

    def is_of_video(self, call: AttentionCall, transformer_options: dict) -> bool:
        """Whether a call is of the video's own attention, as far as that is told by where in its block it comes; to be asked once a call.

        Where guides have weights it comes in parts, until all queries were there.
        """
        number = running_block(transformer_options)[1]
        if number is None or not self.architecture.calls_video_first:
            return True
        last, left = self._running
        if number != last:
            left = 0 if self.architecture.leaves_video_out(transformer_options) else call.key_tokens
        self._running = number, left - call.tokens
        return left > 0

    @property
    def is_guided(self) -> bool:
        """Whether something is evaluated beside the conditioning, for guidance."""
        return any(kind != COND for kind in self.branch[0])

    def is_part(self, call: AttentionCall) -> bool:
        """Whether the queries of such a call are a part of those of the video and its guides."""
        return self.is_frame(call) or (self.guides > 0 and call.tokens < call.key_tokens)

    def is_frame(self, call: AttentionCall) -> bool:
        """Whether such a call is one of those for each frame."""
        return self.architecture.calls_frames and is_frame(call.tokens, call.key_tokens, self.grid)

    def length_of(self, call: AttentionCall) -> int:
        """Tokens of a call, to be compared with the fewest that a sparse one has."""
        return length_of(call.tokens, call.key_tokens) if self.is_frame(call) else call.tokens

    def locate(self, transformer_options: dict, is_part: bool = False) -> Block:
        """The block of a self-attention call; counts it, calls with a part of the queries apart from the others."""
        name = running_block(transformer_options)
        self._ordinals[name, is_part] += 1
        return self._block(*name, self._ordinals[name, is_part] - 1)

    def shared_keys(self, call: AttentionCall, block: Block) -> SharedKeys | None:
        """What the calls of ``block`` found of the keys that they share, None where they share none; kept until the last frame."""
        if not self.is_frame(call):
            return None
        name = (block.type, block.index)
        known = self._shared[1] if self._shared and self._shared[0] == name else SharedKeys()
        self._shared = (name, known) if block.ordinal + 1 < self.grid[0] else None
        return known

    def forget_keys(self) -> None:
        """Let go of the keys that calls share."""
        self._shared = None

    def named_block(self, transformer_options: dict) -> Block | None:
        """The block of a call that is not counted, None where the model does not say."""
        name = running_block(transformer_options)
        return None if name[1] is None else self._block(*name, 0)

    def _block(self, block_type: str | None, index: int | None, ordinal: int) -> Block:
        return Block(block_type, index, ordinal, *self.architecture.layer(block_type, ordinal if index is None else index, self.model))

    def place(self, block: Block, layout: SequenceLayout, batch: int) -> Place:
        """Where a sparse call of ``batch`` items happens."""
        kinds = self.branch[0] or (0,)
        branches = tuple(_branch(kinds[item * len(kinds) // batch]) for item in range(batch))
        whole = (grid for grid in (self.grid, self.own_grid) if math.prod(grid) == len(layout.video))
        grid = next(whole, None) if layout.routed_queries == layout.video else None
        return Place(block.layer, block.layers, self.step, self.sparse_steps, branches, grid)

    def owners(self, batch: int, layouts: Sequence[SequenceLayout]) -> tuple[int, ...] | None:
        """For each of ``batch`` items the one whose clusters it takes: without conditioning those of the same item with it.

        Guidance subtracts the two, and what they estimate alike falls out. None where they are not evaluated together, or not in the
        same places of the sequence: then each item has its own.
        """
        kinds = self.branch[0]
        if sorted(kinds) != sorted(BRANCHES) or batch % len(kinds) or len({layout.video for layout in layouts}) > 1:
            return None
        items = batch // len(kinds)
        return tuple(kinds.index(COND) * items + item % items for item in range(batch))

    def routed(self, call: AttentionCall) -> Routed | Reason:
        """Which tokens of a call are routed. A mask is read once, unless it changes: the layers of an evaluation share it."""
        mask, tokens, video = call.mask, call.key_tokens, math.prod(self.grid)
        # The mask itself is kept, so that its id cannot be taken by another.
        key = (call.tokens, tokens, id(mask), _version(mask))
        if key not in self._layouts:
            if self.architecture.calls_frames:
                layout = frames_layout(call.tokens, tokens, self.grid)
            elif self.guides:
                layout = guided_layout(call.tokens, tokens, video, self.guides)
            else:
                segments = packed_segments(call.options.get("transformer_options") or {}) or self.segments
                layout = self.architecture.layout(tokens, video, segments)
            known = layout if isinstance(layout, Reason) else apply_mask(layout, mask, tokens)
            self._layouts[key] = (known, mask)
        return self._layouts[key][0]


def _branch(kind: int) -> str:
    return BRANCHES.get(kind, f"branch {kind}")


def read_evaluation(
    model, architecture: Architecture, grid: tuple[int, int, int], transformer_options: dict, schedule: Schedule, inner: Callable | None
) -> Evaluation:
    """What an evaluation of ``model`` is, from what ComfyUI says of it. For ``inner`` see :class:`Evaluation`."""
    sigma = _first_number(transformer_options.get("sigmas"))
    window = transformer_options.get("context_window")
    return Evaluation(
        model=model,
        architecture=architecture,
        grid=grid,
        step=schedule.step(sigma),
        sigma=sigma,
        sparse_steps=schedule.sparse_steps,
        step_reason=schedule.dense_reason(sigma),
        density=schedule.density(sigma),
        branch=_branch_of(transformer_options),
        context_window=tuple(getattr(window, "index_list", None) or ()),
        inner=inner,
    )


def _branch_of(transformer_options: dict) -> tuple:
    """What tells evaluations of the same step apart: the conditionings in it, and what a guidance leaves out of the model."""
    kinds, names = (tuple(transformer_options.get(name) or ()) for name in ("cond_or_uncond", "uuids"))
    # Skip-layer guidance replaces blocks, spatio-temporal guidance skips the attention of some, modality guidance that between streams.
    replaced = tuple(sorted(map(str, (transformer_options.get("patches_replace") or {}).get("dit") or ())))
    skipped = tuple(sorted(map(str, transformer_options.get("stg_self_attn_blocks") or ())))
    streams = tuple(transformer_options.get(name, True) for name in ("a2v_cross_attn", "v2a_cross_attn"))
    return kinds, names, replaced, skipped, streams


def _first_number(values) -> float | None:
    """The first of ``values`` (a tensor of sigmas), None where there is none."""
    return float(values.flatten()[0]) if isinstance(values, Tensor) and values.numel() else None


def _version(mask: Tensor | None) -> object:
    """Changes when the mask is written to; a mask on the host that does not tell, as in inference mode, is read anew every time."""
    if mask is None:
        return None
    if not mask.is_inference():
        return mask._version
    return object() if mask.device.type == "cpu" else None
