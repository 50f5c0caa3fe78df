"""The report node for raylight: RAY_ACTORS and LATENT -> what the run did in each worker, in words."""

from __future__ import annotations

from comfy_api.latest import io

from .distributed import raylight
from .inputs import RayActorsType, refuse_unknown, require_actors
from .recording.summary import report_of_workers, status
from .recording.words import on_node


class SVGEARRaylightReport(io.ComfyNode):
    """Says what SVG-EAR did on each GPU in the raylight sampler run that made a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARRaylightReport",
            display_name="SVG-EAR Report for raylight",
            category="model/patch",
            search_aliases=["raylight report", "multi GPU report"],
            description="Shows what SVG-EAR for raylight did: a report of the first GPU, and a line for each of the others.",
            is_output_node=True,
            inputs=[
                RayActorsType.Input("ray_actors", optional=True, tooltip="From the sampler of raylight."),
                io.Latent.Input("latent", tooltip="The LATENT that the sampler made: it tells which run to report."),
            ],
            outputs=[io.String.Output(tooltip="The report as text.")],
        )

    @classmethod
    def execute(cls, latent, ray_actors=None, **unknown) -> io.NodeOutput:
        refuse_unknown(cls, unknown)
        require_actors(ray_actors, raylight.missing())
        found = raylight.found(ray_actors, latent)
        run = found[0].run
        return io.NodeOutput(text := report_of_workers(found), ui=on_node(text, status(run) if run else ""))
