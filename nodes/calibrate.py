"""The calibrating node: MODEL -> a MODEL that samples densely while block energies are gathered."""

from __future__ import annotations

from functools import partial

from comfy_api.latest import io

from ..kernels.block_shapes import SHAPES
from ..kernels.calibration import Calibration
from .calibrating.gathering import CALIBRATION, CalibratingPatch
from .inputs import refuse_unknown
from .patch.patching import patched, tell

# Options of the input ``block_shapes``: every shape that there is, or consecutive tokens.
BEST_SHAPES, RASTER = "best per head", "raster"


class SVGEARCalibrate(io.ComfyNode):
    """Patches a MODEL so that its dense runs are learned from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARCalibrate",
            display_name="SVG-EAR Calibrate",
            category="model/patch",
            search_aliases=["CalibAtt", "calibrate sparse attention", "attention profile"],
            description=(
                "Learns which attention a video model needs: the model samples densely as usual, in up to twice the time (three times "
                "with five steps or fewer), and the attention between blocks of 128 tokens is added up over all runs. SVG-EAR Save "
                "Calibration writes the result to a file, with which SVG-EAR Sparse Attention saves the search in every step."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The video model to calibrate. Put this node last before the sampler."),
                io.Float.Input(
                    "density",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    tooltip=(
                        "Share of the attention blocks that is kept for every block of queries, those that get the most attention. Lower "
                        "is faster and further from dense. 0 keeps as many as energy says."
                    ),
                ),
                io.Float.Input(
                    "energy",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "With density 0: share of the attention that the blocks kept in the last steps must hold; 0 takes the published "
                        "value, 0.76 to 0.97. At the same number of blocks this is further from dense than a density."
                    ),
                ),
                io.Combo.Input(
                    "block_shapes",
                    options=[BEST_SHAPES, RASTER],
                    default=BEST_SHAPES,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Which 128 tokens make a block. best per head: whichever of rows of a frame, tiles of a frame, and tubes through "
                        "all frames suits the attention of a head best. raster: rows for all heads, as published."
                    ),
                ),
                io.Int.Input(
                    "looks",
                    default=5,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How many steps to look at, spread over the schedule; the steps between take the nearest one's blocks. Attention "
                        "turns slowly: five of 20 steps were as good as all. More take more time and host memory."
                    ),
                ),
                io.Int.Input(
                    "min_tokens",
                    default=4096,
                    min=0,
                    max=1048576,
                    optional=True,
                    advanced=True,
                    tooltip="Sequences with fewer tokens are not looked at.",
                ),
                io.Float.Input(
                    "memory_limit_gb",
                    default=16.0,
                    min=0.1,
                    max=4096.0,
                    step=0.5,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Host memory that what is gathered may take. A look at a 14B model takes 1.3 GB at 480p and 6.7 GB at 720p, a "
                        "third of that with raster blocks. There are fewer looks where it does not suffice."
                    ),
                ),
                io.Boolean.Input(
                    "repeating_heads",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Find heads whose output repeats over the video, of which a quarter is computed and copied, as published: faster, "
                        "and further from dense."
                    ),
                    advanced=True,
                ),
                io.Int.Input(
                    "restart",
                    default=0,
                    min=0,
                    max=1 << 30,
                    optional=True,
                    advanced=True,
                    tooltip="Change this number to forget all runs and begin anew. Any other change of this node does that too.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model that is learned from. Connect it to the sampler and to SVG-EAR Save Calibration.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        density=0.2,
        energy=0.0,
        block_shapes=BEST_SHAPES,
        looks=5,
        min_tokens=4096,
        memory_limit_gb=16.0,
        repeating_heads=False,
        restart=0,
        **unknown,
    ) -> io.NodeOutput:
        refuse_unknown(cls, unknown)
        calibration = Calibration(
            density=density,
            energy=energy,
            looks=looks,
            memory_limit=int(memory_limit_gb * 2**30),
            repeating=repeating_heads,
            shapes=tuple(SHAPES) if block_shapes == BEST_SHAPES else (RASTER,),
        )
        patch = CalibratingPatch(calibration, min_tokens, partial(tell, cls.hidden.unique_id))
        model = patched(model, patch)
        model.set_attachments(CALIBRATION, patch)
        return io.NodeOutput(model)
