"""Tiny random checkpoints with the key layouts that the models were published in.

Small, but not degenerate: two attention heads of the real head size, two blocks of each kind, weights scaled by fan-in
so that activations keep their size, query norms above 1 so that attention is not flat.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

DIM = 256
BLOCKS = 2
WAN_TEXT_DIM = 4096  # the one width that ComfyUI does not read from a Wan checkpoint
HUNYUAN_TEXT_DIM = 64
MINIMAX_TEXT_DIM = 64

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """One model family as the tests use it.

    name: the file name without its ending.
    model_class: the class in ComfyUI's ``supported_models`` that the checkpoint must be detected as.
    shapes: builds the key layout.
    latent: channels, frames, height and width of the default latent.
    patch: latent cells in one token, as (frames, height, width).
    conditioning: inputs for the fixture node ``SVGEARTestConditioning``.
    self_attention: eligible attention calls in one evaluation of the model.
    other_attention: the rest, such as cross-attention and the token refiner.
    audio: shape of the audio latent that is denoised beside the video, without its batch.
    """

    name: str
    model_class: str
    shapes: Callable[[], Shapes]
    latent: tuple[int, int, int, int]
    patch: tuple[int, int, int]
    conditioning: dict
    self_attention: int
    other_attention: int
    metadata: dict | None = field(default=None)
    audio: tuple[int, ...] | None = None

    @property
    def file_name(self) -> str:
        """What UNETLoader calls it."""
        return f"{self.name}.safetensors"

    def grid(self, latent: tuple[int, int, int, int] | None = None) -> tuple[int, int, int]:
        """Video tokens along frames, height and width."""
        _, *cells = latent or self.latent
        return tuple(-(-size // step) for size, step in zip(cells, self.patch))

    def tokens(self, latent: tuple[int, int, int, int] | None = None) -> int:
        """Video tokens of a latent."""
        frames, height, width = self.grid(latent)
        return frames * height * width

    def write(self, folder: Path, seed: int = 0) -> Path:
        """Write the checkpoint into ``folder`` and return its path."""
        path = folder / self.file_name
        metadata = {key: json.dumps(value) for key, value in self.metadata.items()} if self.metadata else None
        save_file(random_weights(self.shapes(), seed), path, metadata)
        return path


def random_weights(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Seeded bfloat16 tensors for a key layout."""
    generator = torch.Generator().manual_seed(seed)
    return {key: _tensor(key, shape, generator).to(torch.bfloat16) for key, shape in shapes.items()}


def _tensor(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if "norm_q" in key or "q_norm" in key:
        return 2 + 0.1 * noise
    if key.endswith(".weight") and len(shape) == 1:  # the other norms
        return 1 + 0.1 * noise
    if "modulation" in key or "scale_shift_table" in key:
        return 0.3 * noise if len(shape) == 3 else 0.3 * noise / shape[-1] ** 0.5
    if len(shape) == 1:
        return 0.05 * noise
    return noise / math.prod(shape[1:]) ** 0.5


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _patches(name: str, channels: int, patch: tuple[int, int, int]) -> Shapes:
    return {f"{name}.weight": (DIM, channels, *patch), f"{name}.bias": (DIM,)}


def _embedder(name: str, inputs: int, first: str, second: str) -> Shapes:
    return _linear(f"{name}.{first}", inputs, DIM) | _linear(f"{name}.{second}", DIM, DIM)


def wan(in_channels: int, out_channels: int, image: bool = False, vace: bool = False) -> Shapes:
    """Wan 2.1 and 2.2; ``image`` adds the image embedding of Wan 2.1 I2V, ``vace`` the control blocks of VACE."""
    shapes = _patches("patch_embedding", in_channels, (1, 2, 2))
    shapes |= _embedder("text_embedding", WAN_TEXT_DIM, "0", "2") | _embedder("time_embedding", 256, "0", "2")
    shapes |= _linear("time_projection.1", DIM, 6 * DIM)
    for block in range(BLOCKS):
        shapes |= _wan_block(f"blocks.{block}", image)
    if vace:
        shapes |= _patches("vace_patch_embedding", 96, (1, 2, 2))
        for block in range(BLOCKS):
            shapes |= _wan_block(f"vace_blocks.{block}", image) | _linear(f"vace_blocks.{block}.after_proj", DIM, DIM)
        shapes |= _linear("vace_blocks.0.before_proj", DIM, DIM)
    if image:
        shapes |= _norm("img_emb.proj.0", 1280) | _linear("img_emb.proj.1", 1280, 1280)
        shapes |= _linear("img_emb.proj.3", 1280, DIM) | _norm("img_emb.proj.4", DIM)
    return shapes | _linear("head.head", DIM, 4 * out_channels) | {"head.modulation": (1, 2, DIM)}


def _wan_block(name: str, image: bool) -> Shapes:
    shapes = {f"{name}.modulation": (1, 6, DIM)}
    for attention in ("self_attn", "cross_attn"):
        for projection in "qkvo":
            shapes |= _linear(f"{name}.{attention}.{projection}", DIM, DIM)
        shapes |= {f"{name}.{attention}.norm_{projection}.weight": (DIM,) for projection in "qk"}
    if image:
        shapes |= _linear(f"{name}.cross_attn.k_img", DIM, DIM) | _linear(f"{name}.cross_attn.v_img", DIM, DIM)
        shapes |= {f"{name}.cross_attn.norm_k_img.weight": (DIM,)}
    shapes |= _norm(f"{name}.norm3", DIM)
    return shapes | _linear(f"{name}.ffn.0", DIM, 2 * DIM) | _linear(f"{name}.ffn.2", 2 * DIM, DIM)


def hunyuan_video(version_1_5: bool = False) -> Shapes:
    """HunyuanVideo 1.0 (text pooled and embedded guidance) and 1.5 (byt5 and vision tokens, no single blocks)."""
    patch, in_channels, out_channels = ((1, 1, 1), 65, 32) if version_1_5 else ((1, 2, 2), 16, 16)
    shapes = _patches("img_in.proj", in_channels, patch) | _embedder("time_in.mlp", 256, "0", "2")
    shapes |= _linear("txt_in.input_embedder", HUNYUAN_TEXT_DIM, DIM)
    shapes |= _embedder("txt_in.t_embedder.mlp", 256, "0", "2")
    shapes |= _embedder("txt_in.c_embedder", HUNYUAN_TEXT_DIM, "linear_1", "linear_2")
    for block in range(2):
        name = f"txt_in.individual_token_refiner.blocks.{block}"
        shapes |= _norm(f"{name}.norm1", DIM) | _norm(f"{name}.norm2", DIM)
        shapes |= _linear(f"{name}.self_attn_qkv", DIM, 3 * DIM) | _linear(f"{name}.self_attn_proj", DIM, DIM)
        shapes |= _linear(f"{name}.mlp.fc1", DIM, 4 * DIM) | _linear(f"{name}.mlp.fc2", 4 * DIM, DIM)
        shapes |= _linear(f"{name}.adaLN_modulation.1", DIM, 2 * DIM)
    for block in range(BLOCKS):
        for stream in ("img", "txt"):
            name = f"double_blocks.{block}.{stream}"
            shapes |= _linear(f"{name}_mod.linear", DIM, 6 * DIM)
            shapes |= _linear(f"{name}_attn_qkv", DIM, 3 * DIM) | _linear(f"{name}_attn_proj", DIM, DIM)
            shapes |= {f"{name}_attn_{side}_norm.weight": (DIM // 2,) for side in "qk"}
            shapes |= _linear(f"{name}_mlp.fc1", DIM, 4 * DIM) | _linear(f"{name}_mlp.fc2", 4 * DIM, DIM)
    if version_1_5:
        shapes |= _norm("byt5_in.layernorm", 1472) | _linear("byt5_in.fc1", 1472, 2048)
        shapes |= _linear("byt5_in.fc2", 2048, 2048) | _linear("byt5_in.fc3", 2048, DIM)
        shapes |= _norm("vision_in.proj.0", 1152) | _linear("vision_in.proj.1", 1152, 1152)
        shapes |= _linear("vision_in.proj.3", 1152, DIM) | _norm("vision_in.proj.4", DIM)
        shapes |= {"cond_type_embedding.weight": (3, DIM)}
    else:
        shapes |= _embedder("vector_in", 768, "in_layer", "out_layer") | _embedder("guidance_in.mlp", 256, "0", "2")
        for block in range(BLOCKS):
            name = f"single_blocks.{block}"
            shapes |= _linear(f"{name}.linear1", DIM, 7 * DIM) | _linear(f"{name}.linear2", 5 * DIM, DIM)
            shapes |= {f"{name}.{side}_norm.weight": (DIM // 2,) for side in "qk"}
            shapes |= _linear(f"{name}.modulation.linear", DIM, 3 * DIM)
    shapes |= _linear("final_layer.linear", DIM, out_channels * patch[0] * patch[1] * patch[2])
    return shapes | _linear("final_layer.adaLN_modulation.1", DIM, 2 * DIM)


def ltx_video() -> Shapes:
    """LTX-Video: head size 64, separate cross-attention, one token per latent cell."""
    shapes = _linear("patchify_proj", 128, DIM) | _linear("proj_out", DIM, 128) | {"scale_shift_table": (2, DIM)}
    shapes |= _ltx_modulation("adaln_single", DIM, 6)
    shapes |= _embedder("caption_projection", LTX_CONFIG["caption_channels"], "linear_1", "linear_2")
    for block in range(BLOCKS):
        name = f"transformer_blocks.{block}"
        for attention in ("attn1", "attn2"):
            shapes |= _ltx_attention(f"{name}.{attention}", DIM, DIM, DIM)
        shapes |= _ltx_feed_forward(f"{name}.ff", DIM) | {f"{name}.scale_shift_table": (6, DIM)}
    return shapes


def ltx_2() -> Shapes:
    """LTX-2.3: video with head size 128, audio with 64 beside it, gated attention, and text that needs no projection."""
    shapes = {}
    for stream, dim in (("", DIM), ("audio_", LTX_AUDIO_DIM)):
        shapes |= _linear(f"{stream}patchify_proj", 128, dim) | _linear(f"{stream}proj_out", dim, 128)
        shapes |= {f"{stream}scale_shift_table": (2, dim)}
        shapes |= _ltx_modulation(f"{stream}adaln_single", dim, 9) | _ltx_modulation(f"{stream}prompt_adaln_single", dim, 2)
        shapes |= _ltx_modulation(f"av_ca_{stream or 'video_'}scale_shift_adaln_single", dim, 4)
        shapes |= _ltx_modulation(f"av_ca_{'v2a' if stream else 'a2v'}_gate_adaln_single", dim, 1)
        connector = f"{stream or 'video_'}embeddings_connector"
        shapes |= {f"{connector}.learnable_registers": (128, dim)}
        shapes |= _ltx_attention(f"{connector}.transformer_1d_blocks.0.attn1", dim, dim, dim, gates=2)
        shapes |= _ltx_feed_forward(f"{connector}.transformer_1d_blocks.0.ff", dim)
        for block in range(BLOCKS):
            name = f"transformer_blocks.{block}"
            for attention in ("attn1", "attn2"):
                shapes |= _ltx_attention(f"{name}.{stream}{attention}", dim, dim, dim, gates=2)
            shapes |= _ltx_feed_forward(f"{name}.{stream}ff", dim)
            shapes |= {f"{name}.{stream}scale_shift_table": (9, dim), f"{name}.{stream}prompt_scale_shift_table": (2, dim)}
            shapes |= {f"{name}.scale_shift_table_a2v_ca_{stream or 'video_'}".removesuffix("_"): (5, dim)}
    for block in range(BLOCKS):
        name = f"transformer_blocks.{block}"
        shapes |= _ltx_attention(f"{name}.audio_to_video_attn", DIM, LTX_AUDIO_DIM, LTX_AUDIO_DIM, gates=2)
        shapes |= _ltx_attention(f"{name}.video_to_audio_attn", LTX_AUDIO_DIM, DIM, LTX_AUDIO_DIM, gates=2)
    return shapes


def _ltx_modulation(name: str, dim: int, values: int) -> Shapes:
    embedder = f"{name}.emb.timestep_embedder"
    shapes = _linear(f"{embedder}.linear_1", 256, dim) | _linear(f"{embedder}.linear_2", dim, dim)
    return shapes | _linear(f"{name}.linear", dim, values * dim)


def _ltx_attention(name: str, queries: int, keys: int, inner: int, gates: int = 0) -> Shapes:
    shapes = _linear(f"{name}.to_q", queries, inner) | _linear(f"{name}.to_out.0", inner, queries)
    shapes |= _linear(f"{name}.to_k", keys, inner) | _linear(f"{name}.to_v", keys, inner)
    shapes |= {f"{name}.{side}_norm.weight": (inner,) for side in "qk"}
    return shapes | (_linear(f"{name}.to_gate_logits", queries, gates) if gates else {})


def _ltx_feed_forward(name: str, dim: int) -> Shapes:
    return _linear(f"{name}.net.0.proj", dim, 4 * dim) | _linear(f"{name}.net.2", 4 * dim, dim)


def minimax_h3() -> Shapes:
    """MiniMax-H3: one row of text, conditions, audio and video through blocks without biases."""
    shapes = (
        _linear("video_patch_proj", 24 * 4, DIM) | _linear("audio_patch_proj", 32, DIM) | _linear("condition_proj", MINIMAX_TEXT_DIM, DIM)
    )
    shapes |= _linear("time_embedder.proj_in", 256, DIM) | _linear("time_embedder.proj_out", DIM, DIM) | {"rope.inv_freq": (16,)}
    for name in [f"token_refiner.blocks.{block}" for block in range(2)] + [f"blocks.{block}" for block in range(BLOCKS)]:
        shapes |= {f"{name}.norm{norm}.weight": (DIM,) for norm in (1, 2)} | {f"{name}.attn.{side}_norm.weight": (128,) for side in "qk"}
        shapes |= {f"{name}.attn.qkv_proj.weight": (3 * DIM, DIM), f"{name}.attn.out_proj.weight": (DIM, DIM)}
        shapes |= {f"{name}.mlp.fc1.weight": (4 * DIM, DIM), f"{name}.mlp.fc2.weight": (DIM, 2 * DIM)}
        if name.startswith("blocks"):
            shapes |= _linear(f"{name}.adaln_proj.linear", DIM, 6 * 3 * DIM)
    shapes |= {"token_refiner.final_norm.weight": (DIM,), "final_layer.norm.weight": (DIM,)}
    shapes |= _linear("final_layer.adaln_proj.linear", DIM, 2 * DIM)
    return shapes | _linear("final_layer.video_out", DIM, 24 * 4) | _linear("final_layer.audio_out", DIM, 32)


LTX_CONFIG = {"num_attention_heads": 4, "attention_head_dim": 64, "cross_attention_dim": DIM, "caption_channels": 64}
LTX_AUDIO_DIM = DIM // 2
LTX_2_CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "cross_attention_dim": DIM,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": LTX_AUDIO_DIM,
    "caption_channels": 64,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "cross_attention_adaln": True,
    "apply_gated_attention": True,
    "connector_apply_gated_attention": True,
    "connector_num_layers": 1,
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 128,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 64,
    "rope_type": "split",
}

WAN_TEXT = {"tokens": 12, "channels": WAN_TEXT_DIM}
HUNYUAN_TEXT = {"tokens": 12, "channels": HUNYUAN_TEXT_DIM}

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("wan21_t2v", "WAN21_T2V", lambda: wan(16, 16), (16, 5, 24, 32), (1, 2, 2), WAN_TEXT, 2, 2),
        Architecture(
            "wan21_i2v",
            "WAN21_I2V",
            lambda: wan(36, 16, image=True),
            (16, 5, 24, 32),
            (1, 2, 2),
            WAN_TEXT | {"vision_tokens": 257, "vision_channels": 1280},
            2,
            4,
        ),
        # Fun Control has the image embedding too; the control video is concatenated where I2V has its mask and image.
        Architecture(
            "wan21_fun_control",
            "WAN21_FunControl2V",
            lambda: wan(48, 16, image=True),
            (16, 5, 24, 32),
            (1, 2, 2),
            WAN_TEXT | {"vision_tokens": 257, "vision_channels": 1280},
            2,
            4,
        ),
        # The two experts of Wan 2.2 14B have one layout, which is that of Wan 2.1 T2V.
        Architecture("wan22_t2v_high", "WAN21_T2V", lambda: wan(16, 16), (16, 5, 24, 32), (1, 2, 2), WAN_TEXT, 2, 2),
        Architecture("wan22_t2v_low", "WAN21_T2V", lambda: wan(16, 16), (16, 5, 24, 32), (1, 2, 2), WAN_TEXT, 2, 2),
        # Without an image embedding the image is only concatenated, and ComfyUI calls the layout T2V.
        Architecture("wan22_i2v_high", "WAN21_T2V", lambda: wan(36, 16), (16, 5, 24, 32), (1, 2, 2), WAN_TEXT, 2, 2),
        Architecture("wan22_i2v_low", "WAN21_T2V", lambda: wan(36, 16), (16, 5, 24, 32), (1, 2, 2), WAN_TEXT, 2, 2),
        Architecture("wan22_ti2v_5b", "WAN22_T2V", lambda: wan(48, 48), (48, 5, 24, 32), (1, 2, 2), WAN_TEXT, 2, 2),
        Architecture("wan21_vace", "WAN21_Vace", lambda: wan(16, 16, vace=True), (16, 5, 24, 32), (1, 2, 2), WAN_TEXT, 4, 4),
        Architecture(
            "hunyuan_video",
            "HunyuanVideo",
            hunyuan_video,
            (16, 5, 24, 32),
            (1, 2, 2),
            HUNYUAN_TEXT | {"pooled_channels": 768},
            4,
            2,
        ),
        Architecture(
            "hunyuan_video_15",
            "HunyuanVideo15",
            lambda: hunyuan_video(version_1_5=True),
            (32, 5, 12, 16),
            (1, 1, 1),
            HUNYUAN_TEXT | {"byt5_tokens": 7},
            2,
            2,
        ),
        Architecture(
            "ltx_video",
            "LTXV",
            ltx_video,
            (128, 5, 12, 16),
            (1, 1, 1),
            {"tokens": 12, "channels": LTX_CONFIG["caption_channels"], "masked": True},
            2,
            2,
            {"config": {"transformer": LTX_CONFIG}},
        ),
        # The token refiner runs before sampling.
        Architecture(
            "minimax_h3",
            "MiniMaxH3",
            minimax_h3,
            (24, 7, 12, 16),
            (1, 2, 2),
            {"tokens": 12, "channels": MINIMAX_TEXT_DIM},
            2,
            0,
            audio=(32, 2, 10),
        ),
        Architecture(
            "ltx_2",
            "LTXAV",
            ltx_2,
            (128, 5, 12, 16),
            (1, 1, 1),
            {"tokens": 12, "channels": DIM + LTX_AUDIO_DIM},
            2,
            10,
            {"config": {"transformer": LTX_2_CONFIG}},
            audio=(8, 6, 16),
        ),
    )
}
