"""The models and clips of the bench, as their makers published them. Imports neither torch nor ComfyUI."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import accumulate, cycle, islice

HEAD_DIM = 128
# One layer is dense, so two are the fewest with a sparse one.
TINY_WIDTH = 2 * HEAD_DIM
TINY_DEPTH = 3
TINY_TEXT = 12

Configuration = dict[str, object]


@dataclass(frozen=True)
class Size:
    """A clip in pixels and frames."""

    width: int
    height: int
    frames: int


@dataclass(frozen=True)
class Latent:
    """Channels of a latent, pixels and frames in one of its cells, and cells in a token as (frames, height, width).

    ``rhythm`` has the frames of its cells one after the other, over and over, where they are not all alike but for the first.
    """

    channels: int
    spatial: int
    temporal: int
    patch: tuple[int, int, int]
    rhythm: tuple[int, ...] = ()

    def frames(self, count: int) -> int:
        """Cells along time of so many frames."""
        if not self.rhythm:
            return (count - 1) // self.temporal + 1
        reached = list(accumulate(islice(cycle(self.rhythm), count)))
        return reached.index(count) + 1


@dataclass(frozen=True)
class Audio:
    """The audio latent beside a video: channels, frequency bins (or ears), and how many of its frames a frame of video has.

    Its frames come before the bins, or ``time_last``.
    """

    channels: int
    bins: int
    rate: float
    time_last: bool = False


@dataclass(frozen=True)
class Model:
    """One model, and how ComfyUI feeds it.

    Attributes:
        title: what tables and pictures call it.
        detected: the class that ComfyUI's loader must find.
        network: module and class of ComfyUI's diffusion model.
        width: channels of a token.
        depths: transformer blocks in each list of them.
        configuration: what else that class takes, from width and depths.
        latent: how a clip becomes tokens.
        sizes: clips by name.
        text: tokens and channels of the conditioning.
        pooled: channels of its pooled part, 0 for none.
        guidance: embedded guidance, None without.
        audio: what is sampled together with the video, None for nothing.
        text_follows_width: whether the conditioning is as wide as tokens are, or always the same.
        is_told: whether the loader reads the configuration from the file's metadata, because weights alone do not tell it.
    """

    title: str
    detected: str
    network: tuple[str, str]
    width: int
    depths: tuple[int, ...]
    configuration: Callable[[int, tuple[int, ...]], Configuration]
    latent: Latent
    sizes: dict[str, Size]
    text: tuple[int, int]
    pooled: int = 0
    guidance: float | None = None
    audio: Audio | None = None
    text_follows_width: bool = False
    is_told: bool = False

    @property
    def layers(self) -> int:
        """Transformer blocks."""
        return sum(self.depths)

    def with_layers(self, layers: int) -> Model:
        """The same with about so many blocks, the lists in their proportion."""
        return replace(self, depths=tuple(max(1, round(depth * layers / self.layers)) if depth else 0 for depth in self.depths))

    def tiny(self) -> Model:
        """Two heads, a few blocks, a clip of some hundred tokens and less text, for a CPU."""
        latent = self.latent
        rows, columns = (latent.spatial * cells for cells in latent.patch[1:])
        size = Size(8 * columns, 6 * rows, 4 * latent.temporal + 1)
        depths = tuple(min(depth, TINY_DEPTH) for depth in self.depths)
        text = TINY_TEXT, self.text[1] * TINY_WIDTH // self.width if self.text_follows_width else self.text[1]
        return replace(self, width=TINY_WIDTH, depths=depths, sizes={name: size for name in self.sizes}, text=text)

    def load_class(self) -> type:
        """ComfyUI's class of the diffusion model."""
        module, name = self.network
        return getattr(import_module(module), name)

    def latent_shape(self, size: Size) -> tuple[int, int, int, int, int]:
        """Of a batch of one: channels, frames, height and width."""
        latent = self.latent
        cells = latent.frames(size.frames), size.height // latent.spatial, size.width // latent.spatial
        return 1, latent.channels, *cells

    def audio_shape(self, size: Size) -> tuple[int, int, int, int] | None:
        """Of a batch of one: channels, frames and bins of the audio latent, in that order or with frames last; None without."""
        if self.audio is None:
            return None
        cells = round(size.frames * self.audio.rate), self.audio.bins
        return 1, self.audio.channels, *(reversed(cells) if self.audio.time_last else cells)

    def tokens(self, size: Size) -> int:
        """Video tokens."""
        return math.prod(-(-cells // step) for cells, step in zip(self.latent_shape(size)[2:], self.latent.patch))


def _wan(ffn: int, channels: int) -> Callable[[int, tuple[int, ...]], Configuration]:
    def configuration(width: int, depths: tuple[int, ...]) -> Configuration:
        return {
            "model_type": "t2v",
            "patch_size": (1, 2, 2),
            "text_len": 512,
            "in_dim": channels,
            "out_dim": channels,
            "dim": width,
            "ffn_dim": ffn if width > TINY_WIDTH else 2 * width,
            "freq_dim": 256,
            "text_dim": 4096,
            "num_heads": width // HEAD_DIM,
            "num_layers": depths[0],
            "window_size": (-1, -1),
            "qk_norm": True,
            "cross_attn_norm": True,
            "eps": 1e-6,
        }

    return configuration


def _hunyuan(text_channels: int, version_1_5: bool) -> Callable[[int, tuple[int, ...]], Configuration]:
    def configuration(width: int, depths: tuple[int, ...]) -> Configuration:
        return {
            "in_channels": 65 if version_1_5 else 16,
            "out_channels": 32 if version_1_5 else 16,
            "patch_size": [1, 1, 1] if version_1_5 else [1, 2, 2],
            "vec_in_dim": None if version_1_5 else 768,
            "context_in_dim": text_channels,
            "hidden_size": width,
            "mlp_ratio": 4.0,
            "num_heads": width // HEAD_DIM,
            "depth": depths[0],
            "depth_single_blocks": depths[1],
            "axes_dim": [16, 56, 56],
            "theta": 256,
            "qkv_bias": True,
            "guidance_embed": not version_1_5,
            "byt5": version_1_5,
            "meanflow": False,
            "use_cond_type_embedding": version_1_5,
            "vision_in_dim": 1152 if version_1_5 else None,
            "meanflow_sum": version_1_5,
        }

    return configuration


def _ltx_2(width: int, depths: tuple[int, ...]) -> Configuration:
    """LTX-2.3, whose text arrives as its connectors leave it: these never run in a sampler, and are as small as can be."""
    return {
        "num_attention_heads": width // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "cross_attention_dim": width,
        "audio_num_attention_heads": width // HEAD_DIM,
        "audio_attention_head_dim": HEAD_DIM // 2,
        "audio_cross_attention_dim": width // 2,
        "caption_channels": 3840,
        "num_layers": depths[0],
        "caption_proj_before_connector": True,
        "caption_projection_first_linear": False,
        "cross_attention_adaln": True,
        "apply_gated_attention": True,
        "connector_num_layers": 1,
        "connector_num_attention_heads": 1,
        "use_middle_indices_grid": True,
        "causal_temporal_positioning": True,
        "av_ca_timestep_scale_multiplier": 1000.0,
        "rope_type": "split",
        "frequencies_precision": "float64",
    }


def _minimax(width: int, depths: tuple[int, ...]) -> Configuration:
    """With the table of time embeddings that the file of ComfyUI's template has in the place of wide modulations."""
    heads = 56 if width > TINY_WIDTH else width // HEAD_DIM
    return {
        "hidden_size": width,
        "num_layers": depths[0],
        "token_refiner_num_layers": 2,
        "num_attention_heads": heads,
        "attention_head_dim": HEAD_DIM,
        "ffn_hidden_size": 14336 if width > TINY_WIDTH else 2 * width,
        "text_dim": 5120,
        "time_embed_dim": 64,
        "adaln_curve_grid": 1001,
    }


WAN = ("comfy.ldm.wan.model", "WanModel")
HUNYUAN = ("comfy.ldm.hunyuan_video.model", "HunyuanVideo")
WAN_720P, WAN_480P, WAN_640 = Size(1280, 720, 81), Size(832, 480, 81), Size(640, 640, 81)
WAN_TEXT = (512, 4096)

EIGHTH = Latent(16, 8, 4, (1, 2, 2))

MODELS = {
    "wan-14b": Model(
        *("Wan 14B", "WAN21_T2V", WAN, 5120, (40,), _wan(13824, 16), EIGHTH),
        sizes={"720p": WAN_720P, "480p": WAN_480P, "640": WAN_640},
        text=WAN_TEXT,
    ),
    "wan-5b": Model(
        *("Wan 5B", "WAN22_T2V", WAN, 3072, (30,), _wan(14336, 48), Latent(48, 16, 4, (1, 2, 2))),
        sizes={"720p": Size(1280, 704, 121)},
        text=WAN_TEXT,
    ),
    "wan-1.3b": Model("Wan 1.3B", "WAN21_T2V", WAN, 1536, (30,), _wan(8960, 16), EIGHTH, sizes={"480p": WAN_480P}, text=WAN_TEXT),
    "hunyuan": Model(
        *("HunyuanVideo", "HunyuanVideo", HUNYUAN, 3072, (20, 40), _hunyuan(4096, False), EIGHTH),
        sizes={"720p": Size(1280, 720, 129)},
        text=(256, 4096),
        pooled=768,
        guidance=6.0,
    ),
    "hunyuan-1.5": Model(
        *("HunyuanVideo 1.5", "HunyuanVideo15", HUNYUAN, 2048, (54, 0), _hunyuan(3584, True), Latent(32, 16, 4, (1, 1, 1))),
        sizes={"720p": Size(1280, 720, 121)},
        text=(256, 3584),
        pooled=768,
    ),
    "ltx-2": Model(
        *("LTX-2.3", "LTXAV", ("comfy.ldm.lightricks.av_model", "LTXAVModel"), 4096, (48,), _ltx_2, Latent(128, 32, 8, (1, 1, 1))),
        sizes={"1080p": Size(1920, 1088, 121), "1080p-241": Size(1920, 1088, 241)},
        text=(1024, 6144),
        # 24 frames of video and 25 of the audio latent a second.
        audio=Audio(8, 16, 25 / 24),
        text_follows_width=True,
        is_told=True,
    ),
    "minimax-h3": Model(
        *("MiniMax-H3", "MiniMaxH3", ("comfy.ldm.minimax.model", "MiniMaxH3Model"), 5376, (50,), _minimax),
        Latent(24, 16, 4, (1, 2, 2), rhythm=(1, 4, 4, 4, 4)),
        sizes={"704p": Size(1280, 704, 124), "704p-243": Size(1280, 704, 243)},
        text=(256, 5120),
        # 24 frames of video and 40 of the audio latent a second, in stereo.
        audio=Audio(32, 2, 40 / 24, time_last=True),
    ),
}


@dataclass(frozen=True)
class Clip:
    """One model at one size and guidance scale; CFG 1 evaluates the prompt alone, more the empty prompt too."""

    model: str
    size: str
    cfg: float = 1.0

    def __str__(self):
        return f"{self.model}/{self.size}" + (f"/cfg{self.cfg:g}" if self.cfg != 1 else "")

    @classmethod
    def parse(cls, text: str) -> Clip:
        """``model/size`` or ``model/size/cfg5``. Raises ValueError for what is not in :data:`MODELS`."""
        name, size, *cfg = text.split("/")
        if name not in MODELS or size not in MODELS[name].sizes or len(cfg) > 1:
            raise ValueError(f"{text!r} is no clip of the bench; it has {', '.join(map(str, CLIPS))}, and other scales as /cfg3")
        return cls(name, size, float(cfg[0].removeprefix("cfg")) if cfg else 1.0)


CLIPS = (
    Clip("wan-14b", "720p"),
    Clip("hunyuan", "720p"),
    Clip("hunyuan-1.5", "720p"),
    Clip("wan-14b", "480p"),
    Clip("wan-14b", "480p", 5.0),
    # Each expert of Wan 2.2 I2V, as its template runs it.
    Clip("wan-14b", "640"),
    Clip("wan-5b", "720p"),
    Clip("wan-1.3b", "480p"),
    Clip("ltx-2", "1080p"),
    Clip("ltx-2", "1080p-241"),
    Clip("minimax-h3", "704p"),
    Clip("minimax-h3", "704p-243"),
)
