"""The report node: MODEL and LATENT -> what the run did, in words."""

from __future__ import annotations

from comfy_api.latest import io

from .inputs import refuse_unknown
from .recording.record import find_run
from .recording.summary import headline, report


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
        _, run, is_match = find_run(model, latent)
        text = report(run, is_match)
        status = headline(run) if run else ""
        return io.NodeOutput(text, ui={"text": [text], "status": [status]})
