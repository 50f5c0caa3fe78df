"""Nodes that only the tests use: seeded inputs without encoders, faults on demand, and results that can be compared."""

import gc
import json
import os
import time

import comfy.nested_tensor
import comfy.patcher_extension
import folder_paths
import numpy
import torch
from aiohttp import web
from comfy_api.torch_helpers import set_torch_compile_wrapper
from server import PromptServer

evaluations = 0


def _int(default=0, maximum=1 << 31):
    return "INT", {"default": default, "min": 0, "max": maximum}


class _VisionOutput:
    """What the models read of a CLIP vision output."""

    def __init__(self, hidden):
        self.penultimate_hidden_states = hidden
        self.last_hidden_state = hidden


class Conditioning:
    """Random text conditioning, with whatever else an architecture reads beside it.

    ``file`` names an .npy file in the input folder that holds the text tokens ``[1, tokens, channels]`` instead.
    ``masked`` adds an attention mask, in which ``padding`` of the last text tokens are off. ``image`` adds a latent image
    and mask for image-to-video models, ``reference`` a reference latent and ``context`` a context latent. MiniMax-H3 has its own:
    ``keyframe``, to begin with, and ``shown``, a video with its sound to refer to. ``pose`` is the latent of a pose's video, ``audio``
    the shape of an audio embedding, as numbers with commas between.
    """

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        sizes = ("pooled_channels", "vision_tokens", "vision_channels", "byt5_tokens", "padding")
        return {
            "required": {"seed": _int(), "tokens": _int(12), "channels": _int(4096)},
            "optional": {
                **{name: _int() for name in sizes},
                "masked": ("BOOLEAN", {"default": False}),
                "file": ("STRING", {"default": ""}),
                "audio": ("STRING", {"default": ""}),
                **{name: ("LATENT",) for name in ("image", "reference", "context", "keyframe", "shown", "pose")},
            },
        }

    def run(
        self,
        seed,
        tokens,
        channels,
        pooled_channels=0,
        vision_tokens=0,
        vision_channels=0,
        byt5_tokens=0,
        padding=0,
        masked=False,
        file="",
        audio="",
        image=None,
        reference=None,
        context=None,
        pose=None,
        keyframe=None,
        shown=None,
    ):
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, tokens, channels, generator=generator)
        if file:
            text = torch.from_numpy(numpy.load(os.path.join(folder_paths.get_input_directory(), file)))
        entries = {"pooled_output": None}
        if pooled_channels:
            entries["pooled_output"] = torch.randn(1, pooled_channels, generator=generator)
        if vision_tokens:
            entries["clip_vision_output"] = _VisionOutput(torch.randn(1, vision_tokens, vision_channels, generator=generator))
        if byt5_tokens:
            entries["conditioning_byt5small"] = torch.randn(1, byt5_tokens, 1472, generator=generator)
        if masked or padding:
            entries["attention_mask"] = torch.ones(1, tokens, dtype=torch.long)  # the models take floats for a bias
            entries["attention_mask"][:, tokens - padding :] = 0
        if image is not None:
            entries["concat_latent_image"] = image["samples"]
            entries["concat_mask"] = torch.ones_like(image["samples"][:, :1])
            entries["concat_mask"][:, :, 0] = 0
        if reference is not None:
            entries["reference_latents"] = [reference["samples"]]
        if context is not None:
            entries["context_latents"] = [context["samples"]]
        if pose is not None:
            entries["pose_video_latent"] = pose["samples"]
        if audio:
            entries["audio_embed"] = torch.randn(*map(int, audio.split(",")), generator=generator)
        if keyframe is not None:
            sound = torch.randn(1, 32, 2, 3, generator=generator)
            entries["minimax_keyframes"] = [{"resolved_frame_index": 0, "latent": keyframe["samples"], "audio_latent": sound}]
        if shown is not None:
            entries["minimax_refs"] = [_shown(shown["samples"], torch.randn(1, 32, 2, 4, generator=generator))]
        return ([[text, entries]],)


def _shown(video, sound):
    """A video to refer to as MiniMax-H3's nodes hand it on."""
    frames, rows, columns = video.shape[2:]
    size = {"latent_t": frames, "latent_h": rows, "latent_w": columns, "ref_audio_t": sound.shape[-1]}
    return {"kind": "video_audio", "latent": video, "audio_latent": sound} | size


class Latent:
    """An empty latent of any shape, or a random one where ``noise`` is above 0; ``masked`` adds a random noise mask.

    ``audio``, such as 32x2x10, is the shape of an empty second stream.
    """

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        shape = {"channels": _int(16), "frames": _int(5), "height": _int(24), "width": _int(32)}
        return {
            "required": shape,
            "optional": {
                "batch": _int(1),
                "seed": _int(),
                "noise": ("FLOAT", {"default": 0.0}),
                "masked": ("BOOLEAN", {"default": False}),
                "audio": ("STRING", {"default": ""}),
            },
        }

    def run(self, channels, frames, height, width, batch=1, seed=0, noise=0.0, masked=False, audio=""):
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, channels, frames, height, width)
        latent = {"samples": noise * torch.randn(shape, generator=generator) if noise else torch.zeros(shape)}
        if masked:
            latent["noise_mask"] = torch.rand((batch, 1, *shape[2:]), generator=generator)
        if audio:
            beside = torch.zeros(batch, *map(int, audio.split("x")))
            latent["samples"] = comfy.nested_tensor.NestedTensor((latent["samples"], beside))
        return (latent,)


class GuideVAE:
    """What the nodes for guides ask of a VAE: random latents of 32 pixels a cell; and what an IC-LoRA says of its references."""

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ("VAE", "IC_LORA_PARAMETERS")
    downscale_index_formula = (8, 32, 32)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"downscale": _int(1)}}

    def run(self, downscale):
        return self, {"reference_downscale_factor": downscale}

    def encode(self, pixels):
        frames, height, width, _ = pixels.shape
        return torch.randn(1, 128, (frames - 1) // 8 + 1, height // 32, width // 32, generator=torch.Generator().manual_seed(5))


class MidSampling:
    """Counts the evaluations of the model; may raise at one of them, or slow each down so that an interrupt can land."""

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": ("MODEL",)},
            "optional": {"fail_at": _int(), "delay_ms": _int(), "run": _int()},
        }

    def run(self, model, fail_at=0, delay_ms=0, run=0):
        model = model.clone()

        def wrapper(executor, *args, **kwargs):
            global evaluations
            evaluations += 1
            time.sleep(delay_ms / 1000)
            if evaluations == fail_at:
                raise RuntimeError(f"planted failure at evaluation {fail_at}")
            return executor(*args, **kwargs)

        kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
        model.add_wrapper_with_key(kind, "svg-ear-tests", wrapper)
        return (model,)


class CountAttention:
    """An attention override that counts calls and passes them on to the one that was there before it."""

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    calls = 0

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}, "optional": {"run": _int()}}

    def run(self, model, run=0):
        model = model.clone()
        options = model.model_options["transformer_options"]
        previous = options.get("optimized_attention_override")

        def override(func, *args, **kwargs):
            CountAttention.calls += 1
            return func(*args, **kwargs) if previous is None else previous(func, *args, **kwargs)

        options["optimized_attention_override"] = override
        return (model,)


class ModelFacts:
    """As JSON: the classes that ComfyUI chose for a model, and what hangs on it."""

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        facts = {
            "model_class": type(model.model.model_config).__name__,
            "base_class": type(model.model).__name__,
            "attachments": sorted(model.attachments),
            "transformer_options": sorted(model.model_options.get("transformer_options", {})),
        }
        return {"ui": {"text": [json.dumps(facts)]}}


class Save:
    """Save a LATENT as .npy and hand its path back in the node's ``file``, that of each stream where it has several.

    With ``model`` it is saved as that model sees it, without the scale and shift of its latent format.
    """

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"latent": ("LATENT",), "name": ("STRING", {"default": "latent"})},
            "optional": {"model": ("MODEL",)},
        }

    def run(self, latent, name, model=None):
        samples = latent["samples"] if model is None else model.model.process_latent_in(latent["samples"])
        streams = samples.unbind() if samples.is_nested else [samples]
        paths = [os.path.join(folder_paths.get_output_directory(), f"{name}-{number}.npy") for number in range(len(streams))]
        for path, stream in zip(paths, streams):
            numpy.save(path, stream.float().cpu().numpy())
        return {"ui": {"file": paths}}


class Image:
    """Three channels of a video latent as images between 0 and 1."""

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    def run(self, latent):
        return (latent["samples"][0, :3].permute(1, 2, 3, 0).float().sigmoid(),)


class ShowText:
    """Hand a STRING back to the test in the node's ``text``."""

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"forceInput": True})}}

    def run(self, text):
        return {"ui": {"text": [text]}}


class Anything:
    """A text that may be linked to inputs of every type, as nodes with wildcard outputs may be."""

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ("*",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {})}}

    def run(self, text):
        return (text,)


class Compile:
    """A model compiled as ComfyUI's compile node does it, without a compiler that takes long."""

    CATEGORY = "svg-ear tests"
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        model = model.clone()
        guards = {"guard_filter_fn": lambda entries: ["transformer_options" not in entry.name for entry in entries]}
        set_torch_compile_wrapper(model=model, backend="eager", options=guards)
        return (model,)


NODE_CLASS_MAPPINGS = {
    f"SVGEARTest{node.__name__}": node
    for node in (Anything, Conditioning, Latent, GuideVAE, MidSampling, CountAttention, ModelFacts, Save, Image, ShowText, Compile)
}


@PromptServer.instance.routes.get("/svg-ear-tests/state")
async def _state(request):
    """Counters; with ``?memory`` also what live tensors hold, which takes a while."""
    state = {"evaluations": evaluations, "attention_calls": CountAttention.calls}
    if "memory" in request.query:
        gc.collect()
        tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
        state |= {"tensors": len(tensors), "tensor_bytes": sum(dict(map(_storage, tensors)).values())}
    return web.json_response(state)


def _storage(tensor):
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):  # freed meanwhile by the thread that samples, or never allocated
        return 0, 0


@PromptServer.instance.routes.post("/svg-ear-tests/reset")
async def _reset(request):
    """Set the counters to 0."""
    global evaluations
    evaluations = CountAttention.calls = 0
    return web.json_response({})
