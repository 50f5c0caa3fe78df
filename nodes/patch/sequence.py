"""Where the video and the conditioning tokens are in a sequence, per architecture."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels import SequenceLayout
from ..recording.reasons import MASK_HIDES_VIDEO, MASK_VARIES, MASK_WEIGHTS, UNKNOWN_TOKENS, Reason

# Start, stop and kind of the parts that a sequence is packed of.
Segments = tuple[tuple[int, int, str], ...]
# Masks written as additive terms hide with minus infinity or the lowest number of their type.
HIDDEN = -1e4


@dataclass(frozen=True)
class Routed:
    """Which tokens of a call are routed.

    Attributes:
        layouts: one per batch item, or one for all.
        biases: what a mask adds to the logits of keys around the video, ``[B or 1, 1, L]``; None where it adds nothing.
    """

    layouts: tuple[SequenceLayout, ...]
    biases: Tensor | None = None


@dataclass(frozen=True)
class Architecture:
    """How a family of diffusion models lays out its sequence. Subclasses are recognised through their base class.

    Attributes:
        name: for the report.
        model_class: class of the diffusion model.
        block_lists: attributes that hold the transformer blocks, in the order they run.
        names_blocks: whether ``transformer_options`` says which block is running; otherwise see :mod:`.blocks`.
        video_tokens: ``all``: every token is routed, also reference and context latents around the video;
            ``last``: the video ends the sequence, what is before it is conditioning; ``only``: nothing but the video.
            Where ComfyUI says what the sequence is packed of, see :func:`packed_segments`, that counts instead.
        rhythm: see :class:`VideoSize`.
        calls_frames: whether the video's own attention comes as a call for each frame, see :mod:`.frames`.
        calls_video_first: whether a block calls the video's own attention before any other.
    """

    name: str
    model_class: str
    block_lists: tuple[str, ...]
    names_blocks: bool
    video_tokens: str
    rhythm: tuple[int, ...] = ()
    calls_frames: bool = False
    calls_video_first: bool = False

    def layout(self, tokens: int, video: int, segments: Segments = ()) -> SequenceLayout | Reason:
        """Split a sequence of ``tokens`` tokens of a model that works on ``video`` patches, packed of ``segments`` where that is known."""
        # Those of another sequence are of an evaluation that the model packed anew.
        if segments and segments[-1][1] == tokens:
            return _packed_layout(segments, video)
        if not 0 < video <= tokens or (self.video_tokens == "only" and tokens != video):
            return UNKNOWN_TOKENS
        if self.video_tokens == "last":
            start = tokens - video
            return SequenceLayout(range(start, tokens), (range(start),) if start else ())
        return SequenceLayout(range(tokens))

    def leaves_video_out(self, transformer_options: dict) -> bool:
        """Whether the running block does without the video's own attention, as guidances have it."""
        return bool(transformer_options.get("stg_skip_self_attn")) or not transformer_options.get("run_vx", True)

    def is_other_stream(self, shape: tuple[int, ...], video: int, diffusion_model) -> bool:
        """Whether a call of ``B, H, L, D`` has the heads of what runs beside ``video`` tokens of video, as LTX-2's audio does."""
        audio = tuple(getattr(diffusion_model, f"audio_{name}", None) for name in ("num_attention_heads", "attention_head_dim"))
        own = tuple(getattr(diffusion_model, name, None) for name in ("num_attention_heads", "attention_head_dim"))
        return None not in audio and (shape[1], shape[3]) == audio and (audio != own or shape[2] < video)

    def layers(self, diffusion_model) -> int:
        """How many blocks there are over all block lists."""
        return sum(len(getattr(diffusion_model, name)) for name in self.block_lists)

    def layer(self, block_type: str | None, block_index: int, diffusion_model) -> tuple[int, int]:
        """Number of a block over all block lists, and how many blocks there are."""
        before = len(getattr(diffusion_model, self.block_lists[0])) if block_type == "single" else 0
        return before + block_index, self.layers(diffusion_model)


# A class comes before those that it is made from.
ARCHITECTURES = (
    Architecture("Wan-Animate-2", "WanAnimate2Model", ("blocks",), True, "only", calls_frames=True),
    Architecture("Wan", "WanModel", ("blocks",), True, "all"),
    Architecture("HunyuanVideo", "HunyuanVideo", ("double_blocks", "single_blocks"), True, "last"),
    Architecture("LTX", "LTXVModel", ("transformer_blocks",), False, "only", calls_video_first=True),
    Architecture("MiniMax-H3", "MiniMaxH3Model", ("blocks",), False, "last", rhythm=(1, 4, 4, 4, 4)),
    Architecture("Kandinsky 5", "Kandinsky5", ("visual_transformer_blocks",), True, "only"),
)


def packed_segments(said: dict) -> Segments:
    """What ComfyUI says that MiniMax-H3's sequence is packed of, in order; empty where it does not.

    ``said`` are the ``transformer_options`` of a call, where newer cores put it, or what the model is given beside its latent, where
    ComfyUI 0.33 does.
    """
    packing = said.get("minimax_h3_layout") or (said.get("minimax_payload") or {}).get("layout")
    return tuple(getattr(packing, "segments", ()))


def _packed_layout(segments: Segments, video: int) -> SequenceLayout | Reason:
    """The one segment of video is routed; text, audio, conditions and references are exact."""
    routed = [range(start, stop) for start, stop, kind in segments if kind == "video"]
    if [len(span) for span in routed] != [video] or not video:
        return UNKNOWN_TOKENS
    around = range(routed[0].start), range(routed[0].stop, segments[-1][1])
    return SequenceLayout(routed[0], tuple(span for span in around if span))


def find_architecture(diffusion_model) -> Architecture | None:
    """The family that a diffusion model belongs to, or None when its tokens are not understood."""
    ancestors = {ancestor.__name__ for ancestor in type(diffusion_model).__mro__}
    found = next((known for known in ARCHITECTURES if known.model_class in ancestors), None)
    return found if found and all(hasattr(diffusion_model, name) for name in found.block_lists) else None


def video_grid(shape: tuple[int, ...], diffusion_model) -> tuple[int, int, int] | None:
    """Frames, rows and columns of tokens of a latent ``[B, C, T, H, W]`` after padding to whole patches; None for other latents."""
    patch = getattr(diffusion_model, "patch_size", None) or (1, 1, 1)
    if len(shape) != 5 or not isinstance(patch, (tuple, list)) or len(patch) != 3 or not all(shape[2:]):
        return None
    return tuple(math.ceil(size / step) for size, step in zip(shape[2:], patch))


def apply_mask(layout: SequenceLayout, mask: Tensor | None, tokens: int) -> Routed | Reason:
    """One layout per batch item of the mask (one in all without a mask): the visible keys as ranges.

    The mask is boolean (true shows a key) or additive, of shape ``[Q, L]``, ``[B, Q, L]`` or ``[B, heads, Q, L]``, and
    must say the same of a key to every query and head. Reads the mask from its device.
    """
    if mask is None:
        return Routed((layout,))
    if mask.ndim == 2:
        mask = mask.unsqueeze(0)
    if mask.ndim == 3:
        mask = mask.unsqueeze(1)
    if mask.shape[1] != 1 or mask.shape[2] != 1:
        return MASK_VARIES
    if mask.shape[3] != tokens:
        return UNKNOWN_TOKENS

    keys, video = mask[:, 0, 0].cpu(), slice(layout.video.start, layout.video.stop)
    visible, biases = keys, None
    if keys.dtype != torch.bool:
        visible = ~(keys <= HIDDEN)
        weighted = visible & (keys != 0)
        if weighted[:, video].any():
            return MASK_WEIGHTS
        biases = mask[:, 0] if weighted.any() else None
    if not visible[:, video].all():
        return MASK_HIDES_VIDEO
    spans = (tuple(run for span in layout.conditioning for run in _runs(item, span)) for item in visible)
    return Routed(tuple(replace(layout, conditioning=around) for around in spans), biases)


def _runs(visible: Tensor, span: range) -> list[range]:
    """Maximal ranges of true positions inside ``span``."""
    inside = visible[span.start : span.stop].int()
    edges = torch.diff(inside, prepend=inside.new_zeros(1), append=inside.new_zeros(1)).nonzero().flatten() + span.start
    return [range(start, stop) for start, stop in edges.view(-1, 2).tolist()]
