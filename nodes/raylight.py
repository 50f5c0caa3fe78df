"""The node for raylight's workers: RAY_ACTORS -> RAY_ACTORS whose models run sparse."""

from __future__ import annotations

from comfy_api.latest import io

from .attention import option_inputs, options_of, refused_blocks
from .distributed import raylight
from .inputs import RayActorsType, require_actors
from .patch.options import Options


class SVGEARRaylight(io.ComfyNode):
    """Makes the models in the workers of raylight run sparse, a part of the heads on each GPU."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARRaylight",
            display_name="SVG-EAR for raylight",
            category="model/patch",
            search_aliases=["raylight", "xDiT", "multi GPU", "sequence parallel", "Ulysses"],
            description=(
                "SVG-EAR Sparse Attention on several GPUs, for the samplers of raylight: between its loader and its sampler. Every GPU "
                "runs some of the heads. Connect SVG-EAR Report for raylight behind the sampler to see what it did. Needs raylight."
            ),
            inputs=[
                RayActorsType.Input("ray_actors", optional=True, tooltip="From raylight's loader of diffusion models."),
                *option_inputs(),
                io.Boolean.Input(
                    "enabled",
                    default=True,
                    optional=True,
                    tooltip=(
                        "Off takes sparse attention out of the workers. They keep it when this node is bypassed or deleted, until the "
                        "model is loaded anew."
                    ),
                ),
            ],
            outputs=[RayActorsType.Output("ray_actors", tooltip="The workers, for the sampler of raylight.")],
        )

    # See SVG-EAR Sparse Attention.
    @classmethod
    def validate_inputs(cls, dense_blocks=Options.dense_blocks) -> bool | str:
        return refused_blocks(dense_blocks)

    @classmethod
    def execute(cls, ray_actors=None, enabled=True, **inputs) -> io.NodeOutput:
        options = options_of(cls, **inputs)
        require_actors(ray_actors, raylight.missing())
        return io.NodeOutput(raylight.install(ray_actors, options) if enabled else raylight.remove(ray_actors))
