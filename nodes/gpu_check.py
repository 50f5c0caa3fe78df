"""The checking node: what sparse attention is worth on this GPU, measured once and remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.utils
import numpy
import torch
from comfy.ldm.modules import attention
from comfy_api.latest import io

from .. import kernels
from .checking.check import Check, Checked
from .checking.measure import Attention, Measure
from .checking.plan import FULL, QUICK
from .checking.report import report, status
from .inputs import refuse_unknown
from .patch.findings import Card, Findings
from .patch.findings_file import dense_attention, findings_path, found_on, write
from .patch.patching import tell
from .recording.words import on_node
from .showing.gpu_check import gpu_check_figure

PICTURE_WIDTH = 1400
PROGRESS = 1000
# Attention of ComfyUI's registry that is timed beside the one that is set, where it is installed.
OTHERS = ("comfy_kitchen_int8", "sage")


class SVGEARGPUCheck(io.ComfyNode):
    """Measures dense and sparse attention on the GPU, and keeps what it found for SVG-EAR Sparse Attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARGPUCheck",
            display_name="SVG-EAR GPU Check",
            category="model/patch",
            search_aliases=["benchmark attention", "break-even", "tune SVG-EAR"],
            description=(
                "Measures on your GPU from how many tokens on sparse attention is the faster one, and which kernel tiles suit it. "
                "SVG-EAR Sparse Attention with min_tokens -1 uses what was found. Needs no model; run it once, and again after an update "
                "of torch, Triton or this pack."
            ),
            is_output_node=True,
            inputs=[
                io.Boolean.Input(
                    "quick",
                    default=False,
                    optional=True,
                    tooltip=(
                        "On: about 20 seconds, up to 32,768 tokens, no tiles are tried. Off: about 2 minutes, up to 131,072 tokens, with "
                        "the tiles. Compiling kernels comes on top, once."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(tooltip="What was found, in words and as tables."),
                io.Image.Output(tooltip="Speed-up over dense attention by length."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> float:
        # Never equal to itself: whoever queues a check wants it to run.
        return float("nan")

    @classmethod
    def execute(cls, quick=False, **unknown) -> io.NodeOutput:
        refuse_unknown(cls, unknown)
        device = comfy.model_management.get_torch_device()
        reason = "there is no GPU here" if device.type == "cpu" else kernels.unavailable_reason(device)
        if reason is not None:
            nothing = f"Nothing to check: {reason}."
            return _shown(nothing, nothing, None)
        if device.index is None:
            device = torch.device(device.type, torch.cuda.current_device())
        # Models that are loaded take memory that long sequences need.
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        checked = check(device, quick, _progress(cls.hidden.unique_id))
        text = report(checked)
        if checked.findings.heads:
            text += f"\n\n{_kept(findings_path(), checked.findings)}"
        return _shown(text, status(checked.findings), checked.findings)


def check(device: torch.device, quick: bool, progress: Callable[[float, str], None]) -> Checked:
    """Check a GPU with the attention that ComfyUI has."""
    with torch.cuda.device(device):
        measure = Measure(device, attentions())
        return Check(Card.of(device, dense_attention()), measure, QUICK if quick else FULL, progress, found_on(device)).run()


def attentions() -> dict[str, Attention]:
    """Dense attention by name: the one that ComfyUI uses, then others that are installed."""
    chosen = attention.optimized_attention
    found = {dense_attention(): chosen}
    registry = getattr(attention, "REGISTERED_ATTENTION_FUNCTIONS", {})
    found |= {name: registry[name] for name in OTHERS if name in registry and registry[name] is not chosen}
    return found


def _kept(path: Path, findings: Findings) -> str:
    """Keep what was found; what became of it, in words."""
    try:
        write(path, findings)
    except OSError as error:
        return f"It could not be kept in {path}, so nothing will use it: {error}"
    return f"Kept in {path.parent.name}/{path.name} of ComfyUI's user folder, for SVG-EAR Sparse Attention with min_tokens -1."


def _progress(node_id) -> Callable[[float, str], None]:
    bar = comfy.utils.ProgressBar(PROGRESS)

    def show(share: float, text: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(round(share * PROGRESS))
        tell(node_id, text)

    return show


def _shown(text: str, line: str, findings: Findings | None) -> io.NodeOutput:
    picture = numpy.asarray(gpu_check_figure(findings, line, PICTURE_WIDTH), dtype=numpy.float32) / 255
    return io.NodeOutput(text, torch.from_numpy(picture)[None], ui=on_node(text, line))
