"""The SVG-EAR node: MODEL -> patched MODEL."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..kernels.settings import FULL, INT8
from .inputs import RecordingType, ScheduleType, SettingsType, Widgets, refuse_unknown
from .patch.options import AUTO, AUTOMATIC, CUSTOM, PRESETS, Options, RecordingOptions, ScheduleOptions
from .patch.override import Patch
from .patch.patching import recorded, tell
from .recording.selection import Selection

TOOLTIPS = {
    "model": "A video model: Wan 2.1 or 2.2, HunyuanVideo 1.0 or 1.5, LTX-Video, LTX-2, MiniMax-H3, Kandinsky 5, or a relative of Wan "
    "such as Animate, SCAIL-2, S2V, HuMo and VACE.",
    "preset": (
        "Trades speed against closeness to dense attention. For each: the share of pairs computed exactly in the first and the last "
        "step; the time of a 20 step clip of Wan 14B at 720p over that of a dense one, reckoned; PSNR against the dense clip on our own "
        "small model without CFG. quality: 60 to 10 %, 0.65, 38 dB. balanced: 35 to 6 %, 0.53, 35 dB. fast: 25 to 6 %, 0.49, 34 dB. "
        "few-step is for 4 to 8 step models (lightning, turbo): 30 % throughout, 0.67, 40 dB. custom takes what is connected to settings."
    ),
    "density": (
        "Share of the query-key pairs computed exactly in the last step; the steps before have more (warm_up_density). Lower is faster "
        "and further from dense; 0 takes the preset's. Raise it when details or motion suffer, for instance to 0.1."
    ),
    "dense_first_steps": (
        "Steps at the start of the denoising that stay dense; they settle the composition, and each costs full time. -1 is automatic: "
        "none where warm_up_density is used, else a fifth of the sampler's steps, at least 1, none with preset few-step. A sampler that "
        "continues another (the second expert of Wan 2.2) counts the steps before it as done."
    ),
    "dense_blocks": (
        "Layers that stay dense, such as 0, 1, 38-39; negative numbers count from the last layer (-1); empty for none. The "
        "first layer is sensitive and one layer costs little, so keep 0."
    ),
    "min_tokens": (
        "Sequences with fewer tokens stay dense, because there dense attention is the faster one. -1 is automatic: what SVG-EAR GPU Check "
        "found on this GPU, or without a check a cautious number, 24,576 on most NVIDIA GPUs."
    ),
    "memory_limit_mb": (
        "Working memory of one attention call in MB; 0 is automatic (half the size of q, k and v). Lower it when memory runs "
        "out, at some cost in speed."
    ),
    "strict": (
        "Stop with an error when attention cannot run sparse for a reason that is not one of your settings, instead of running it dense."
    ),
    "warm_up_density": (
        "Share of the pairs computed exactly in the first step, from where it falls step by step to density. -1 takes the preset's; 0 "
        "keeps dense_first_steps dense and all others at density. Raise it when the composition differs too much from dense."
    ),
    "precision": (
        "How queries and keys are multiplied. int8 is faster in long sequences, with a loss that can hardly be told from what skipped "
        "blocks lose; full is in the model's own precision. auto takes int8 where that was measured to be faster, and full elsewhere."
    ),
    "settings": "For preset custom: SVG-EAR Custom Settings, or SVG-EAR Load Calibration.",
    "schedule": "SVG-EAR Schedule: run sparse only in a part of the denoising.",
    "recording": "SVG-EAR Record: what SVG-EAR Routed Blocks can show. Without it a few layers, steps and heads, in at most 64 MB.",
}


def option_inputs() -> list:
    """The inputs that say how attention runs, for every node that makes it sparse."""
    widgets = Widgets(Options, TOOLTIPS)
    return [
        widgets.choice("preset", (*PRESETS, CUSTOM)),
        widgets.share("density"),
        widgets.count("dense_first_steps", -1, 10000),
        widgets.text("dense_blocks"),
        widgets.count("min_tokens", AUTOMATIC, 1048576),
        widgets.count("memory_limit_mb", 0, 1048576),
        widgets.switch("strict"),
        widgets.share("warm_up_density", -1.0),
        widgets.choice("precision", (AUTO, INT8, FULL), advanced=True),
        SettingsType.Input("settings", optional=True, tooltip=TOOLTIPS["settings"]),
        ScheduleType.Input("schedule", optional=True, tooltip=TOOLTIPS["schedule"]),
        RecordingType.Input("recording", optional=True, tooltip=TOOLTIPS["recording"]),
    ]


def options_of(node: type[io.ComfyNode], settings=None, schedule=None, recording=None, **widgets) -> Options:
    """The options of a node with :func:`option_inputs`. Raises ValueError for inputs that it does not have, or values it does not take."""
    refuse_unknown(node, widgets)
    return Options(**widgets, custom=settings, schedule=schedule or ScheduleOptions(), recording=recording or RecordingOptions())


def refused_blocks(dense_blocks: str | None) -> bool | str:
    """What ComfyUI's check of the inputs says of ``dense_blocks``; a value that comes over a link is None, and checked later."""
    if dense_blocks is None:
        return True
    try:
        Selection.parse(dense_blocks, "dense_blocks")
    except ValueError as error:
        return str(error)
    return True


class SVGEARAttention(io.ComfyNode):
    """Patches a MODEL so that its video self-attention runs sparse."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARAttention",
            display_name="SVG-EAR Sparse Attention",
            category="model/patch",
            search_aliases=["sparse attention", "Sparse VideoGen", "SVG2", "speed up video"],
            description=(
                "Sparse attention for Wan, HunyuanVideo, LTX and MiniMax-H3: of the attention between video tokens only the part "
                "that matters is computed exactly, the rest is estimated from cluster averages. No training. "
                "Put it last before the sampler. Of two such nodes in a row the later one counts alone. "
                "Connect SVG-EAR Report behind the sampler to see what it did."
            ),
            inputs=[
                io.Model.Input("model", tooltip=TOOLTIPS["model"]),
                *option_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model with sparse attention.")],
            hidden=[io.Hidden.unique_id],
        )

    # ComfyUI shows what is returned at every input that is named here, so that one is; its own checks see to the others.
    @classmethod
    def validate_inputs(cls, dense_blocks=Options.dense_blocks) -> bool | str:
        return refused_blocks(dense_blocks)

    @classmethod
    def execute(cls, model, **inputs) -> io.NodeOutput:
        patch = Patch(options_of(cls, **inputs), partial(tell, cls.hidden.unique_id))
        sparse = recorded(model, patch)
        patch.compile_early(model)
        return io.NodeOutput(sparse)
