"""Tiny random checkpoints of the models made from Wan, and of Kandinsky 5, with what each reads beside the text."""

from dataclasses import dataclass
from itertools import pairwise

from .checkpoints import BLOCKS, DIM, WAN_TEXT, Architecture, Shapes, _linear, _norm, _patches, _wan_block, wan
from .graphs import Graph

# Channels, frames, height and width: 144 tokens of video, 48 of a frame.
LATENT = (16, 3, 12, 16)
PATCH = (1, 2, 2)
# Fewer tokens of the image than of the video, as it is in life.
VISION = WAN_TEXT | {"vision_tokens": 50, "vision_channels": 1280}
KANDINSKY_TEXT = {"tokens": 12, "channels": 3584, "pooled_channels": 768}


@dataclass(frozen=True)
class Variant:
    """A model as the tests use it.

    architecture: its checkpoint, and how many calls of an evaluation are of its own attention.
    latents: shapes of further latents, under the names of the fixture node ``SVGEARTestConditioning``.
    audio: shape of an audio embedding, None for none.
    """

    architecture: Architecture
    latents: dict[str, tuple[int, int, int, int]]
    audio: tuple[int, ...] | None = None

    def conditions(self, graph: Graph) -> dict:
        """Changes to the conditioning inputs of ``graph``."""
        latents = {name: graph.latent(shape, noise=1.0, seed=5 + place) for place, (name, shape) in enumerate(self.latents.items())}
        return latents | ({"audio": ",".join(map(str, self.audio))} if self.audio else {})


def animate() -> Shapes:
    """Wan 2.2 Animate: five blocks, because every fifth has a face adapter, and the encoders of a face that no test shows."""
    shapes = wan(36, 16, image=True) | _patches("pose_patch_embedding", 16, PATCH)
    for block in range(BLOCKS, 5):
        shapes |= _wan_block(f"blocks.{block}", image=True)
    shapes |= _linear("face_adapter.fuser_blocks.0.linear1_kv", DIM, 2 * DIM)
    for name in ("linear1_q", "linear2"):
        shapes |= _linear(f"face_adapter.fuser_blocks.0.{name}", DIM, DIM)
    shapes |= {f"face_adapter.fuser_blocks.0.{side}_norm.weight": (DIM // 2,) for side in "qk"}
    shapes |= {"face_encoder.padding_tokens": (1, 1, 1, DIM)} | _linear("face_encoder.out_proj", 1024, DIM)
    for name, inputs, outputs in (("conv1_local", 512, 4096), ("conv2", 1024, 1024), ("conv3", 1024, 1024)):
        shapes |= {f"face_encoder.{name}.conv.weight": (outputs, inputs, 3), f"face_encoder.{name}.conv.bias": (outputs,)}
    net = "motion_encoder.enc.net_app.convs"
    shapes |= {f"{net}.0.0.weight": (32, 3, 1, 1), f"{net}.0.1.bias": (1, 32, 1, 1), f"{net}.8.weight": (512, 512, 4, 4)}
    for number, (inputs, outputs) in enumerate(pairwise((32, 64, 128, 256, 512, 512, 512, 512)), 1):
        name = f"{net}.{number}"
        shapes |= {f"{name}.conv1.0.weight": (inputs, inputs, 3, 3), f"{name}.conv1.1.bias": (1, inputs, 1, 1)}
        shapes |= {f"{name}.conv2.1.weight": (outputs, inputs, 3, 3), f"{name}.conv2.2.bias": (1, outputs, 1, 1)}
        shapes |= {f"{name}.conv2.0.kernel": (4, 4), f"{name}.skip.0.kernel": (4, 4), f"{name}.skip.1.weight": (outputs, inputs, 1, 1)}
    for number in range(5):
        shapes |= _linear(f"motion_encoder.enc.fc.{number}", 512, 512 if number < 4 else 20)
    return shapes | {"motion_encoder.dec.direction.weight": (512, 20)}


def scail2() -> Shapes:
    """SCAIL-2: the pose at half size behind the video, a reference frame before it, and masks of identities."""
    return wan(20, 16, image=True) | _patches("patch_embedding_pose", 20, PATCH) | _patches("patch_embedding_mask", 28, PATCH)


def humo() -> Shapes:
    """HuMo: attention to the audio in every block, a reference behind the video."""
    shapes = wan(16, 16)
    for block in range(BLOCKS):
        name = f"blocks.{block}.audio_cross_attn_wrapper"
        for projection, inputs in zip("qkvo", (DIM, 1536, 1536, DIM)):
            shapes |= _linear(f"{name}.audio_cross_attn.{projection}", inputs, DIM)
        shapes |= {f"{name}.audio_cross_attn.norm_{side}.weight": (DIM,) for side in "qk"} | _norm(f"{name}.norm1_audio", DIM)
    for number, inputs, outputs in ((1, 8 * 5 * 1280, 512), (2, 512, 512), (3, 512, 16 * 1536)):
        shapes |= _linear(f"audio_proj.audio_proj_glob_{number}.layer", inputs, outputs)
    return shapes | _norm("audio_proj.audio_proj_glob_norm.layer", 1536)


def s2v() -> Shapes:
    """Wan 2.2 S2V: audio injected behind some blocks, a reference behind the video."""
    shapes = wan(16, 16) | {"trainable_cond_mask.weight": (3, DIM)} | _patches("cond_encoder", 16, PATCH)
    encoder = "casual_audio_encoder"
    shapes |= {f"{encoder}.weights": (1, 25, 1, 1), f"{encoder}.encoder.padding_tokens": (1, 1, 1, DIM)}
    convolutions = (("conv1_local", 1024, DIM), ("conv1_global", 1024, DIM // 4), ("conv2", DIM // 4, DIM // 2), ("conv3", DIM // 2, DIM))
    for name, inputs, outputs in convolutions:
        shapes |= {f"{encoder}.encoder.{name}.conv.weight": (outputs, inputs, 3), f"{encoder}.encoder.{name}.conv.bias": (outputs,)}
    shapes |= _linear(f"{encoder}.encoder.final_linear", DIM, DIM)
    for number in range(12):
        for projection in "qkvo":
            shapes |= _linear(f"audio_injector.injector.{number}.{projection}", DIM, DIM)
        shapes |= {f"audio_injector.injector.{number}.norm_{side}.weight": (DIM,) for side in "qk"}
        shapes |= _linear(f"audio_injector.injector_adain_layers.{number}.linear", DIM, 2 * DIM)
    for name, patch in (("proj", (1, 2, 2)), ("proj_2x", (2, 4, 4)), ("proj_4x", (4, 8, 8))):
        shapes |= _patches(f"frame_packer.{name}", 16, patch)
    return shapes


def kandinsky5() -> Shapes:
    """Kandinsky 5 of head size 64: a block for the text, then blocks of self-attention and attention to the text."""
    time = 64
    shapes = _linear("time_embeddings.in_layer", DIM, time) | _linear("time_embeddings.out_layer", time, time)
    for name, inputs, outputs in (("text_embeddings", 3584, DIM), ("pooled_text_embeddings", 768, time)):
        shapes |= _linear(f"{name}.in_layer", inputs, outputs) | _norm(f"{name}.norm", outputs)
    shapes |= _linear("visual_embeddings.in_layer", 4 * (2 * 16 + 1), DIM)
    blocks = [("text_transformer_blocks.0", "text", 6, ("self",))]
    blocks += [(f"visual_transformer_blocks.{block}", "visual", 9, ("self", "cross")) for block in range(BLOCKS)]
    for name, kind, parameters, attentions in blocks:
        shapes |= _linear(f"{name}.{kind}_modulation.out_layer", time, parameters * DIM)
        for attention in (f"{name}.{kind}_attention" for kind in attentions):
            for projection in ("to_query", "to_key", "to_value", "out_layer"):
                shapes |= _linear(f"{attention}.{projection}", DIM, DIM)
            shapes |= {f"{attention}.{side}_norm.weight": (64,) for side in ("query", "key")}
        shapes |= {f"{name}.feed_forward.in_layer.weight": (2 * DIM, DIM), f"{name}.feed_forward.out_layer.weight": (DIM, 2 * DIM)}
    return shapes | _linear("out_layer.modulation.out_layer", time, 2 * DIM) | _linear("out_layer.out_layer", DIM, 4 * 16)


ANIMATE2 = {"config": {"transformer": {"model_type": "animate2"}}}
FRAME, POSE, HALF = (16, 1, 12, 16), (16, 2, 12, 16), (16, 3, 6, 8)

VARIANTS = {
    variant.architecture.name: variant
    for variant in (
        Variant(Architecture("wan22_animate", "WAN22_Animate", animate, LATENT, PATCH, VISION, 5, 10), {"pose": POSE}),
        # In each of two blocks the pose's own attention and three frames; both attend to text and image.
        Variant(
            Architecture("wan_animate2", "WAN_Animate2", lambda: wan(36, 16, image=True), LATENT, PATCH, VISION, 8, 8, ANIMATE2),
            {"pose": POSE},
        ),
        Variant(Architecture("wan21_scail2", "WAN21_SCAIL2", scail2, LATENT, PATCH, VISION, 2, 4), {"reference": FRAME, "pose": HALF}),
        # Attention to the audio has as many queries, and few keys.
        Variant(Architecture("wan21_humo", "WAN21_HuMo", humo, LATENT, PATCH, WAN_TEXT, 2, 4), {"reference": FRAME}, (1, 3, 8, 5, 1280)),
        Variant(Architecture("wan22_s2v", "WAN22_S2V", s2v, LATENT, PATCH, WAN_TEXT, 2, 2), {"reference": FRAME}, (1, 25, 1024, 12)),
        Variant(Architecture("kandinsky5_lite", "Kandinsky5", kandinsky5, LATENT, PATCH, KANDINSKY_TEXT, 2, 3), {}),
    )
}
