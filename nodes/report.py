"""The report node: MODEL and LATENT -> what the run did, in words."""

from __future__ import annotations

from comfy_api.latest import io

from .inputs import refuse_unknown
from .recording.record import find_run
from .recording.summary import report, status, warnings
from .recording.words import on_node


class SVGEARReport(io.ComfyNode):
    """Says what SVG-EAR did in the sampler run that made a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARReport",
            display_name="SVG-EAR Report",
            category="model/patch",
            search_aliases=["sparse attention report", "SVG-EAR statistics"],
            description="Shows what SVG-EAR Sparse Attention did: sparse and dense calls with reasons, density and time.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that the sampler used, or any node behind SVG-EAR."),
                io.Latent.Input("latent", tooltip="The LATENT that the sampler made: it tells which run to report."),
            ],
            outputs=[io.String.Output(tooltip="The report as text.")],
        )

    @classmethod
    def execute(cls, model, latent, **unknown) -> io.NodeOutput:
        refuse_unknown(cls, unknown)
        found = find_run(model, latent)
        text = report(found)
        # A warning is said once, at the top of the text.
        line = status(found.run) if found.run and not warnings(found.run) else ""
        return io.NodeOutput(text, ui=on_node(text, line))
