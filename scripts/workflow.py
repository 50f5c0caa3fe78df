"""A workflow as the interface opens it, laid out in columns of nodes."""

import json
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
MARGIN, GAP, TITLE = 25, 40, 30

# type: (sockets, outputs), each as "name:TYPE", + for a space in a name
NODES = {
    "CheckpointLoaderSimple": ("", "MODEL:MODEL CLIP:CLIP VAE:VAE"),
    "UNETLoader": ("", "MODEL:MODEL"),
    "CLIPLoader": ("", "CLIP:CLIP"),
    "DualCLIPLoader": ("", "CLIP:CLIP"),
    "CLIPVisionLoader": ("", "CLIP_VISION:CLIP_VISION"),
    "VAELoader": ("", "VAE:VAE"),
    "LoraLoaderModelOnly": ("model:MODEL", "MODEL:MODEL"),
    "LatentUpscaleModelLoader": ("", "LATENT_UPSCALE_MODEL:LATENT_UPSCALE_MODEL"),
    "LTXAVTextEncoderLoader": ("", "CLIP:CLIP"),
    "LTXVAudioVAELoader": ("", "Audio+VAE:VAE"),
    "LoadImage": ("", "IMAGE:IMAGE MASK:MASK"),
    "CLIPVisionEncode": ("clip_vision:CLIP_VISION image:IMAGE", "CLIP_VISION_OUTPUT:CLIP_VISION_OUTPUT"),
    "CLIPTextEncode": ("clip:CLIP", "CONDITIONING:CONDITIONING"),
    "FluxGuidance": ("conditioning:CONDITIONING", "CONDITIONING:CONDITIONING"),
    "ConditioningZeroOut": ("conditioning:CONDITIONING", "CONDITIONING:CONDITIONING"),
    "ModelSamplingSD3": ("model:MODEL", "MODEL:MODEL"),
    "SVGEARAttention": ("model:MODEL settings:SVG_EAR_SETTINGS schedule:SVG_EAR_SCHEDULE recording:SVG_EAR_RECORDING", "MODEL:MODEL"),
    "SVGEARRecord": ("", "recording:SVG_EAR_RECORDING"),
    "SVGEARCalibrate": ("model:MODEL", "MODEL:MODEL"),
    "SVGEARSaveCalibration": ("model:MODEL latent:LATENT", "STRING:STRING"),
    "SVGEARLoadCalibration": ("", "settings:SVG_EAR_SETTINGS"),
    "SVGEARRoutedBlocks": ("model:MODEL latent:LATENT", "IMAGE:IMAGE LATENT:LATENT"),
    "SVGEARReport": ("model:MODEL latent:LATENT", "STRING:STRING"),
    "SVGEARCompare": (
        "dense:IMAGE sparse:IMAGE dense_model:MODEL dense_latent:LATENT sparse_model:MODEL sparse_latent:LATENT",
        "STRING:STRING IMAGE:IMAGE",
    ),
    "PreviewImage": ("images:IMAGE", ""),
    "RandomNoise": ("", "NOISE:NOISE"),
    "KSamplerSelect": ("", "SAMPLER:SAMPLER"),
    "BasicScheduler": ("model:MODEL", "SIGMAS:SIGMAS"),
    "ManualSigmas": ("", "SIGMAS:SIGMAS"),
    "SamplerCustom": (
        "model:MODEL positive:CONDITIONING negative:CONDITIONING sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT",
        "output:LATENT denoised_output:LATENT",
    ),
    "CFGGuider": ("model:MODEL positive:CONDITIONING negative:CONDITIONING", "GUIDER:GUIDER"),
    "SamplerCustomAdvanced": (
        "noise:NOISE guider:GUIDER sampler:SAMPLER sigmas:SIGMAS latent_image:LATENT",
        "output:LATENT denoised_output:LATENT",
    ),
    "LTXVConditioning": ("positive:CONDITIONING negative:CONDITIONING", "positive:CONDITIONING negative:CONDITIONING"),
    "EmptyLTXVLatentVideo": ("", "LATENT:LATENT"),
    "LTXVEmptyLatentAudio": ("audio_vae:VAE", "Latent:LATENT"),
    "LTXVConcatAVLatent": ("video_latent:LATENT audio_latent:LATENT", "latent:LATENT"),
    "LTXVSeparateAVLatent": ("av_latent:LATENT", "video_latent:LATENT audio_latent:LATENT"),
    "LTXVLatentUpsampler": ("samples:LATENT upscale_model:LATENT_UPSCALE_MODEL vae:VAE", "LATENT:LATENT"),
    "LTXVAudioVAEDecode": ("samples:LATENT audio_vae:VAE", "Audio:AUDIO"),
    "MiniMaxH3ImageToVideo": ("clip:CLIP vae:VAE first_frame:IMAGE last_frame:IMAGE", "positive:CONDITIONING LATENT:LATENT"),
    "EmptyHunyuanLatentVideo": ("", "LATENT:LATENT"),
    "EmptyHunyuanVideo15Latent": ("", "LATENT:LATENT"),
    "Wan22ImageToVideoLatent": ("vae:VAE start_image:IMAGE", "LATENT:LATENT"),
    "WanImageToVideo": (
        "positive:CONDITIONING negative:CONDITIONING vae:VAE clip_vision_output:CLIP_VISION_OUTPUT start_image:IMAGE",
        "positive:CONDITIONING negative:CONDITIONING latent:LATENT",
    ),
    "KSampler": (
        "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT",
        "LATENT:LATENT",
    ),
    "KSamplerAdvanced": (
        "model:MODEL positive:CONDITIONING negative:CONDITIONING latent_image:LATENT",
        "LATENT:LATENT",
    ),
    "VAEDecode": ("samples:LATENT vae:VAE", "IMAGE:IMAGE"),
    "VAEDecodeAudio": ("samples:LATENT vae:VAE", "AUDIO:AUDIO"),
    "VAEDecodeTiled": ("samples:LATENT vae:VAE", "IMAGE:IMAGE"),
    "CreateVideo": ("images:IMAGE audio:AUDIO", "VIDEO:VIDEO"),
    "SaveVideo": ("video:VIDEO", ""),
    "Note": ("", ""),
}
# The widgets of our nodes by name, in the order of the schema and with its defaults: older interfaces read no names.
# tests/comfyui/test_workflows.py compares with the schema.
WIDGETS = {
    "SVGEARAttention": {
        "preset": "balanced",
        "density": 0.0,
        "dense_first_steps": -1,
        "dense_blocks": "0",
        "min_tokens": -1,
        "memory_limit_mb": 0,
        "strict": False,
        "warm_up_density": -1.0,
        "precision": "auto",
    },
    "SVGEARRecord": {"layers": "auto", "steps": "auto", "heads": "auto", "limit_mb": 64},
    "SVGEARRoutedBlocks": {"layer": -1, "step": -1, "head": -1, "branch": "cond", "frames": 4, "width": 1400},
    "SVGEARReport": {},
    "SVGEARCompare": {},
    "SVGEARCalibrate": {
        "density": 0.2,
        "energy": 0.0,
        "block_shapes": "best per head",
        "looks": 5,
        "min_tokens": 4096,
        "memory_limit_gb": 16.0,
        "repeating_heads": False,
        "restart": 0,
    },
    "SVGEARSaveCalibration": {"name": "calibration", "runs": 4, "overwrite": False, "largest_mb": 64},
    "SVGEARLoadCalibration": {"name": None, "compensate": True},
}
HEIGHTS = {
    "SVGEARAttention": 375,
    "SVGEARRecord": 200,
    "SVGEARRoutedBlocks": 1160,
    "PreviewImage": 560,
    "CLIPTextEncode": 160,
    "ManualSigmas": 130,
    "MiniMaxH3ImageToVideo": 280,
    "Note": 330,
    "LoadImage": 330,
    "SVGEARReport": 300,
    "SVGEARCompare": 430,
    "SVGEARCalibrate": 340,
    "SVGEARSaveCalibration": 440,
    "SVGEARLoadCalibration": 150,
    "SaveVideo": 380,
    "CreateVideo": 150,
}
# Folders in models/ of files from repositories whose own folders are not ComfyUI's.
ELSEWHERE = {
    "ltx-2.3-22b-dev-fp8.safetensors": "checkpoints",
    "ltx-2.3-spatial-upscaler-x2-1.1.safetensors": "latent_upscale_models",
}
# The line that a node shows while it runs and after it, which it grows by.
TOLD = {"SVGEARAttention": 90}


def place_of(address: str) -> tuple[str, str]:
    """Folder in models/ and name of the file that ``address`` gives."""
    name = address.rsplit("/", 1)[1]
    return ELSEWHERE.get(name) or address.rsplit("/", 2)[1], name


def _socket(entry: str) -> dict[str, str]:
    name, kind = entry.split(":")
    return {"name": name.replace("+", " "), "type": kind}


@dataclass
class Workflow:
    """A workflow that grows column by column; ``save`` writes it in the format that the interface opens."""

    title: str
    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)
    right: float = 0
    column: tuple = ()

    def start(self, title: str, width: int, color: str = "#3f789e") -> None:
        """Begin a group to the right of the last one; nodes added next are stacked in it."""
        self._close()
        self.column = (title, width, color, len(self.nodes))
        self.bottom = TITLE + MARGIN

    def add(self, kind: str, values: list | dict = (), title: str | None = None, models: list[str] = (), **inputs) -> dict:
        """Add a node below the last one of its group. ``inputs`` are outputs of other nodes as (node, name).

        ``values`` are those of its widgets in order; of our nodes, the ones that are not the default by name. ``models`` are
        addresses of the files that the node loads, which the interface offers for download.
        """
        named = {}
        if kind in WIDGETS:
            named = WIDGETS[kind] | dict(values)
            assert named.keys() == WIDGETS[kind].keys(), f"{kind} has no {named.keys() - WIDGETS[kind].keys()}"
            values = list(named.values())
        sockets, outputs = ([_socket(entry) for entry in side.split()] for side in NODES[kind])
        height = HEIGHTS.get(kind, 20 * max(len(sockets), len(outputs)) + 24 * len(values) + 24) + TOLD.get(kind, 0)
        node = {
            "id": len(self.nodes) + 1,
            "type": kind,
            "pos": [self.right + MARGIN, self.bottom + TITLE],
            "size": [self.column[1] - 2 * MARGIN, height],
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": [socket | {"link": None} for socket in sockets],
            "outputs": [socket | {"links": []} for socket in outputs],
            "properties": {"Node name for S&R": kind},
            "widgets_values": list(values),
        }
        if named:
            node["widgets_values_named"] = named
        if title:
            node["title"] = title
        if models:
            node["properties"]["models"] = [
                {"name": name, "url": address, "directory": folder} for address, (folder, name) in zip(models, map(place_of, models))
            ]
        self.bottom += TITLE + height + MARGIN
        self.nodes.append(node)
        for name, (source, output) in inputs.items():
            self._link(source, output, node, name)
        return node

    def save(self) -> None:
        """Write the file."""
        self._close()
        content = {
            "id": f"svg-ear-{self.title}",
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        path = FOLDER / f"{self.title}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")

    def _link(self, source: dict, output: str, target: dict, name: str) -> None:
        source_slot = [slot["name"] for slot in source["outputs"]].index(output)
        target_slot = [slot["name"] for slot in target["inputs"]].index(name)
        kind = source["outputs"][source_slot]["type"]
        assert kind == target["inputs"][target_slot]["type"], f"{source['type']} {output} into {target['type']} {name}"
        link = len(self.links) + 1
        self.links.append([link, source["id"], source_slot, target["id"], target_slot, kind])
        source["outputs"][source_slot]["links"].append(link)
        target["inputs"][target_slot]["link"] = link

    def _close(self) -> None:
        if not self.column:
            return
        title, width, color, _ = self.column
        bounds = [self.right, 0, width, self.bottom]
        self.groups.append({"id": len(self.groups) + 1, "title": title, "bounding": bounds, "color": color, "font_size": 24, "flags": {}})
        self.right += width + GAP
        self.column = ()
