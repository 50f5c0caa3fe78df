"""The loading node: a file -> a calibration for SVG-EAR Sparse Attention."""

from __future__ import annotations

from comfy_api.latest import io

from .calibrating import profiles


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
                "Loads a calibration from models/svg_ear for SVG-EAR Sparse Attention, whose preset has to be custom and whose "
                "method calibrated."
            ),
            inputs=[
                io.Combo.Input(
                    "name",
                    options=profiles.listed(),
                    tooltip="A file that SVG-EAR Save Calibration wrote, for this model, size and number of frames.",
                ),
            ],
            outputs=[profiles.ProfileType.Output(display_name="profile", tooltip="For the profile input of SVG-EAR Sparse Attention.")],
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        # A name that comes over a link is not known yet; execute checks it.
        return True if name is None else profiles.problem(name) or True

    @classmethod
    def fingerprint_inputs(cls, name) -> tuple:
        return profiles.stamp(profiles.path_of(name))

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        return io.NodeOutput(profiles.load(name))
