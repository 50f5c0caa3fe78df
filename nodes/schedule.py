"""The schedule node: in which part of the denoising attention runs sparse."""

from __future__ import annotations

from comfy_api.latest import io

from .inputs import ScheduleType, Widgets, refuse_unknown
from .patch.options import ScheduleOptions

TOOLTIPS = {
    "start_percent": (
        "Stay dense before this part of the denoising. Raise it when the composition differs too much from dense. Usually "
        "warm_up_density is enough."
    ),
    "end_percent": "Stay dense after this part of the denoising. Lower it when fine detail suffers.",
    "dense_last_steps": "Steps at the end of the denoising that stay dense. Rarely worth their time; try 1 when textures suffer.",
}


class SVGEARSchedule(io.ComfyNode):
    """Steps that stay dense, beside the first ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        widgets = Widgets(ScheduleOptions, TOOLTIPS)
        return io.Schema(
            node_id="SVGEARSchedule",
            display_name="SVG-EAR Schedule",
            category="model/patch",
            search_aliases=["sparse attention steps", "start percent", "end percent"],
            description="In which part of the denoising SVG-EAR Sparse Attention runs sparse. Connect it to schedule there.",
            inputs=[
                widgets.share("start_percent"),
                widgets.share("end_percent"),
                widgets.count("dense_last_steps", 0, 10000),
            ],
            outputs=[ScheduleType.Output(display_name="schedule", tooltip="For schedule of SVG-EAR Sparse Attention.")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        refuse_unknown(cls, widgets)
        return io.NodeOutput(ScheduleOptions(**widgets))
