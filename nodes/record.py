"""The recording node: what of a run can be looked at afterwards."""

from __future__ import annotations

from comfy_api.latest import io

from .inputs import RecordingType, Widgets, refuse_unknown
from .patch.options import RecordingOptions

TOOLTIPS = {
    "layers": (
        "Layers whose routing SVG-EAR Routed Blocks can show, such as 1, 20, -1; auto takes the first, a middle and the last "
        "sparse one, empty none. Density and error are recorded for every layer anyway."
    ),
    "steps": "Steps whose routing is recorded, counted from 0 in each sampler; auto takes the first, a middle and the last sparse one.",
    "heads": "Heads whose routing is recorded; auto takes the first and the last.",
    "limit_mb": (
        "Host memory that the recorded routing of the last runs may take, in MB (while sampling it lies on the GPU). At 720p one "
        "layer, step and head takes about 1.5 MB. 0 records none."
    ),
}


class SVGEARRecord(io.ComfyNode):
    """Chooses the calls whose routing is recorded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        widgets = Widgets(RecordingOptions, TOOLTIPS)
        return io.Schema(
            node_id="SVGEARRecord",
            display_name="SVG-EAR Record",
            category="model/patch",
            search_aliases=["record attention", "record routing"],
            description=(
                "Chooses which layers, steps and heads SVG-EAR Routed Blocks can show. Connect it to recording of SVG-EAR Sparse "
                "Attention. Without it a few of each are recorded."
            ),
            inputs=[
                widgets.text("layers"),
                widgets.text("steps"),
                widgets.text("heads"),
                widgets.count("limit_mb", 0, 65536),
            ],
            outputs=[RecordingType.Output(display_name="recording", tooltip="For recording of SVG-EAR Sparse Attention.")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        refuse_unknown(cls, widgets)
        return io.NodeOutput(RecordingOptions(**widgets))
