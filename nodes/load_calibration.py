"""The loading node: a file -> settings for SVG-EAR Sparse Attention."""

from __future__ import annotations

from comfy_api.latest import io

from ..kernels import Settings
from ..kernels.settings import CALIBRATED
from .calibrating import profiles
from .inputs import SettingsType, Widgets, refuse_unknown
from .patch.options import CustomSettings

TOOLTIPS = {
    "name": "A file that SVG-EAR Save Calibration wrote, for this model, size and number of frames.",
    "compensate": "Estimate the skipped pairs from block averages. Off drops them, as published: faster and further from dense.",
}


class SVGEARLoadCalibration(io.ComfyNode):
    """Reads and checks a calibration."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARLoadCalibration",
            display_name="SVG-EAR Load Calibration",
            category="model/patch",
            search_aliases=["CalibAtt", "load attention profile"],
            description=(
                "Loads a calibration from models/svg_ear, whose blocks SVG-EAR Sparse Attention then computes without any search. "
                "Connect it to settings there, with preset custom."
            ),
            inputs=[
                io.Combo.Input("name", options=profiles.listed(), tooltip=TOOLTIPS["name"]),
                Widgets(Settings, TOOLTIPS).switch("compensate"),
            ],
            outputs=[SettingsType.Output(display_name="settings", tooltip="For settings of SVG-EAR Sparse Attention.")],
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        # A name that comes over a link is not known yet; execute checks it.
        return True if name is None else profiles.problem(name) or True

    @classmethod
    def fingerprint_inputs(cls, name, **others) -> tuple:
        return profiles.stamp(profiles.path_of(name))

    @classmethod
    def execute(cls, name, compensate=Settings.compensate, **unknown) -> io.NodeOutput:
        refuse_unknown(cls, unknown)
        return io.NodeOutput(CustomSettings.of(profiles.load(name), method=CALIBRATED, compensate=compensate))
