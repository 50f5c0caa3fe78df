"""A diffusion model, a sampler run and an attention function in a few lines, in place of ComfyUI's."""

from dataclasses import fields
from functools import partial
from types import SimpleNamespace

import torch
from svg_ear.kernels import Settings
from svg_ear.nodes.patch.options import CustomSettings, Options, RecordingOptions, ScheduleOptions
from svg_ear.nodes.patch.override import OVERRIDE, Patch
from torch.nn.functional import scaled_dot_product_attention

HEADS, DIM = 2, 64
# Every call is sparse, at one density.
WIDGETS = {"min_tokens": 0, "dense_blocks": "", "dense_first_steps": 0, "warm_up_density": 0.0, "density": 0.2}


class WanModel:
    """Named like ComfyUI's class, by which the architecture is recognised."""

    patch_size = (1, 2, 2)
    blocks = [None] * 4


class WanAnimate2Model(WanModel):
    """Asks for the attention of one frame after the other."""


class Kandinsky5:
    patch_size = (1, 2, 2)
    visual_transformer_blocks = [None] * 2


class HunyuanVideo:
    patch_size = [1, 2, 2]
    double_blocks = [None] * 2
    single_blocks = [None] * 3


class LTXVModel:
    """Does not say which block is running, but lets a node replace each."""

    transformer_blocks = [None] * 2
    names_blocks = False


class MiniMaxH3Model:
    """One row of text, audio and video; as in ComfyUI 0.33 it does not say which block is running."""

    patch_size = (1, 2, 2)
    blocks = [None] * 3
    names_blocks = False


class Unknown:
    pass


MODELS = {
    "wan": WanModel,
    "animate2": WanAnimate2Model,
    "kandinsky": Kandinsky5,
    "hunyuan": HunyuanVideo,
    "ltx": LTXVModel,
    "minimax": MiniMaxH3Model,
    "unknown": Unknown,
}


def flow_sigma(percent, shift=3.0):
    """A flow model's sigma at a share of the denoising."""
    left = 1.0 - percent
    return shift * left / (1 + (shift - 1) * left)


def flow_schedule(steps, start=0.0):
    """Sigmas of ``steps`` steps from a share of the denoising to its end."""
    return [flow_sigma(start + (1 - start) * step / steps) for step in range(steps + 1)]


def dense(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **options):
    """What ComfyUI's attention functions compute."""
    if not skip_reshape:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=options.get("scale"))
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def options(**widgets):
    """Options from the widgets of all our nodes in one row; those of SVG-EAR Record begin with ``record_``."""
    recording = {name: widgets.pop(name) for name in tuple(widgets) if name.startswith("record_")}
    schedule, routing = (
        {
            entry.name: widgets.pop(entry.name)
            for entry in fields(part)
            if entry.name in widgets and entry.name not in ("density", "precision")
        }
        for part in (ScheduleOptions, Settings)
    )
    if routing:
        widgets["custom"] = CustomSettings.of(**routing)
    return Options(
        **widgets,
        schedule=ScheduleOptions(**schedule),
        recording=RecordingOptions(**{name.removeprefix("record_"): value for name, value in recording.items()}),
    )


class Harness:
    """Plays ComfyUI around one patch; ``evaluate`` hands the attention function of a block to a test."""

    def __init__(self, model="wan", **widgets):
        self.patch = Patch(options(**(WIDGETS | widgets)))
        self.base_model = SimpleNamespace(diffusion_model=MODELS[model](), model_sampling=SimpleNamespace(percent_to_sigma=flow_sigma))
        self.sample_sigmas = torch.tensor(flow_schedule(5))
        self.model_options = {}
        self.dense_calls = 0

    def sample(self, body, result=None, latent=None):
        """Run ``body`` as a sampler run from ``latent`` and return its record."""

        def sampler():
            try:
                body()
                return torch.zeros(1, 4) if result is None else result
            finally:
                self.patch.cleanup(None)

        self.wrap(sampler, latent)
        return self.patch.recorder.newest()

    def wrap(self, sampler, latent=None):
        """Call ``sampler`` as ComfyUI does, through the patch, to sample from ``latent``; hand on what it returns."""

        def executor(noise, latent_image):
            return sampler()

        executor.class_obj = SimpleNamespace(model_options=self.model_options)
        return self.patch.outer_sample(executor, torch.zeros(1, 4), torch.ones(1, 4) if latent is None else latent)

    def evaluate(self, body, *, step=2, shape=(1, 16, 3, 8, 16), conditions=None, **transformer_options):
        """Run ``body(attention)`` inside one evaluation of the diffusion model."""
        sigmas = transformer_options.pop("sigmas", self.sample_sigmas[step : step + 1])
        given = {
            "cond_or_uncond": [0],
            "uuids": ["cond"],
            "sample_sigmas": self.sample_sigmas,
            "sigmas": sigmas,
        } | transformer_options

        def executor(x, t, concat, cross, control, options, **kwargs):
            def attention(*args, block=0, block_type="double", **kwargs):
                def run(given):
                    attend = partial(options[OVERRIDE], self._func) if OVERRIDE in options else self._func
                    return {"img": attend(*args, transformer_options=given["transformer_options"], **kwargs)}

                names_blocks = getattr(self.base_model.diffusion_model, "names_blocks", True)
                place = {"block_index": block, "block_type": block_type} if names_blocks and block is not None else {}
                given = {"transformer_options": options | place}
                replaced = ((options.get("patches_replace") or {}).get("dit") or {}).get(("double_block", block))
                return (run(given) if replaced is None else replaced(given, {"original_block": run}))["img"]

            attention.options = options
            return body(attention)

        executor.class_obj = self.base_model
        return self.patch.apply_model(executor, torch.zeros(shape), None, None, None, None, given, **(conditions or {}))

    def _func(self, *args, **kwargs):
        self.dense_calls += 1
        kwargs.pop("transformer_options")
        return dense(*args, **kwargs)


def qkv(tokens=96, batch=1, seed=0, heads=HEADS, dim=DIM):
    """q, k and v ``[B, L, H * D]``."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, tokens, heads * dim, generator=generator) for _ in range(3))


def counts(record):
    """How often each reason kept a call of a run dense, by name."""
    return {reason.name: count for reason, count in record.dense_calls.items()}


def split(tensors, heads=HEADS):
    """``[B, H, L, D]`` of ``[B, L, H * D]``."""
    return tuple(t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in tensors)


def dense_reasons(played, body, **evaluation):
    """Names of the reasons of one evaluation in a run of its own."""
    return counts(played.sample(lambda: played.evaluate(body, **evaluation)))
