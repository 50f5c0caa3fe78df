"""The comparing node: two clips -> how close they are, how fast each was made, and both beside each other."""

from __future__ import annotations

from comfy_api.latest import io

from .inputs import refuse_unknown
from .recording.record import RunRecord, find_run
from .recording.words import on_node
from .showing.compare import Closeness, comparison, side_by_side


class SVGEARCompare(io.ComfyNode):
    """Compares a sparse clip with the dense one of the same seed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARCompare",
            display_name="SVG-EAR Compare",
            category="model/patch",
            search_aliases=["PSNR", "A/B", "compare dense and sparse", "side by side"],
            description=(
                "Compares the clip that was made with SVG-EAR with the dense one: PSNR, the time of both samplers, and both side by side. "
                "Use the same noise, prompt and settings for both."
            ),
            is_output_node=True,
            inputs=[
                io.Image.Input("dense", tooltip="The decoded clip of the dense run."),
                io.Image.Input("sparse", tooltip="The decoded clip of the sparse run, of the same size and length."),
                io.Model.Input(
                    "dense_model",
                    optional=True,
                    tooltip=(
                        "For the time of the dense run: the MODEL of a SVG-EAR Sparse Attention with dense_first_steps 10000, which runs "
                        "all dense and takes the time."
                    ),
                ),
                io.Latent.Input("dense_latent", optional=True, tooltip="The LATENT of the dense sampler."),
                io.Model.Input("sparse_model", optional=True, tooltip="The MODEL that the sparse sampler used."),
                io.Latent.Input("sparse_latent", optional=True, tooltip="The LATENT of the sparse sampler."),
            ],
            outputs=[
                io.String.Output(tooltip="PSNR and times as text."),
                io.Image.Output(tooltip="Both clips side by side, dense on the left."),
            ],
        )

    @classmethod
    def execute(cls, dense, sparse, dense_model=None, dense_latent=None, sparse_model=None, sparse_latent=None, **unknown) -> io.NodeOutput:
        refuse_unknown(cls, unknown)
        runs = _run(dense_model, dense_latent), _run(sparse_model, sparse_latent)
        line, text = comparison(Closeness.of(dense, sparse), *runs)
        return io.NodeOutput(text, side_by_side(dense, sparse), ui=on_node(text, line))


def _run(model, latent: dict | None) -> RunRecord | None:
    """The run that made a latent, None where it is not known."""
    if model is None or latent is None:
        return None
    found = find_run(model, latent)
    return found.run if found.is_match else None
