"""Generate clips with the demo model: conditioning, noise schedule, sampler and decoding.

Latents here are the model's own: fp32 ``[B, 16, T, H, W]``, one latent frame per video frame. A LATENT that ComfyUI saved
has been through Wan's latent format and has to pass its ``process_in`` first.
"""

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from .model import WanTransformer
from .video import codebook, decode_rgb, object_count, uniforms
from .video import conditioning as clip_conditioning

WEIGHTS = Path(__file__).resolve().parents[2] / "tests" / "assets" / "svg_ear_demo_wan21_t2v_bf16.safetensors"
SMALL_GRID = (5, 14, 24)
MEDIUM_GRID = (9, 22, 40)
LARGE_GRID = (21, 30, 52)

cached_codebook = lru_cache(codebook)


def load_demo_model(device="cpu", dtype=torch.float32, weights=WEIGHTS):
    """The trained transformer as this folder's ``WanTransformer``, which needs nothing but torch and safetensors."""
    model = WanTransformer()
    model.load_state_dict(load_file(weights))
    return model.to(device, dtype).eval().requires_grad_(False)


def load_demo_transformer(device="cpu", dtype=torch.float32, weights=WEIGHTS):
    """The trained transformer as diffusers' ``WanTransformer3DModel``, on ``device`` in ``dtype``.

    In half precision the modules that diffusers declares sensitive (norms, time embedding, modulation) stay fp32.
    """
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        freq_dim=256,
        ffn_dim=1024,
        num_layers=8,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )
    model.load_state_dict(convert_wan_transformer_to_diffusers(load_file(weights)))
    for name, parameter in model.named_parameters():
        keep = any(part in name for part in model._keep_in_fp32_modules)
        parameter.data = parameter.data.to(device, torch.float32 if keep else dtype)
    model.rope.to(device)
    return model.eval().requires_grad_(False)


def conditioning(seed, grid=SMALL_GRID):
    """Conditioning of the clip that ``video.describe(seed)`` puts into words, and the null conditioning of guidance.

    ``grid`` is the token grid ``(t, h, w)``: small windows hold fewer objects. Returns two fp32 ``[1, 6, 4096]``; null is zero.
    """
    tokens = clip_conditioning(uniforms([seed]), object_count(2 * grid[1]), cached_codebook())
    return tokens, torch.zeros_like(tokens)


def starting_noise(seed, grid=SMALL_GRID):
    """Gaussian noise of ``seed``, the same on every device: fp32 ``[1, 16, t, 2h, 2w]`` on the CPU."""
    shape = (1, 16, grid[0], 2 * grid[1], 2 * grid[2])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigmas(steps=20, shift=5.0):
    """Noise levels from 1 to 0, shifted as in Wan (``shift * u / (1 + (shift - 1) * u)``): fp32 ``[steps + 1]``."""
    u = torch.linspace(1, 0, steps + 1)
    return shift * u / (1 + (shift - 1) * u)


def velocity(transformer, latents, sigma, context):
    """The transformer's ``noise - data`` for ``latents [B, 16, T, H, W]`` at one ``sigma``, in fp32.

    ``transformer`` is either model of this file; it runs in the dtype of its weights.
    """
    dtype = transformer.patch_embedding.weight.dtype
    time = torch.full((latents.shape[0],), float(sigma) * 1000, device=latents.device)
    out = transformer(latents.to(dtype), time, context.to(dtype))
    return (out if isinstance(out, torch.Tensor) else out.sample).float()


@torch.no_grad()
def sample(transformer, seed, grid=SMALL_GRID, steps=20, shift=5.0, guidance=3.0, progress=None):
    """Generate one clip with Euler steps.

    ``grid`` is in tokens ``(t, h, w)``, a token being 8x6 pixels of one frame. With ``guidance`` other than 1 each step
    evaluates a batch of two, null conditioning first; with 1 only the conditional half. ``progress(step, steps)`` is
    called after each step, counting from 1. Returns model latents, fp32 ``[1, 16, t, 2h, 2w]`` on the transformer's device.
    """
    device = next(transformer.parameters()).device
    tokens, null = (part.to(device) for part in conditioning(seed, grid))
    latents = starting_noise(seed, grid).to(device)
    levels = sigmas(steps, shift).tolist()
    for step, (level, following) in enumerate(zip(levels, levels[1:])):
        if guidance == 1:
            flow = velocity(transformer, latents, level, tokens)
        else:
            without, towards = velocity(transformer, latents.expand(2, -1, -1, -1, -1), level, torch.cat([null, tokens])).chunk(2)
            flow = without + guidance * (towards - without)
        latents = latents + (following - level) * flow
        if progress is not None:
            progress(step + 1, steps)
    return latents


def decode(latents):
    """Frames of one clip's model latents ``[1, 16, T, h, w]``: uint8 ``[T, 4h, 3w, 3]`` on the CPU."""
    video = decode_rgb(latents)[0].clamp(0, 1) * 255
    return video.round().byte().permute(1, 2, 3, 0).cpu()
