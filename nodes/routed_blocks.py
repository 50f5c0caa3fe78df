"""The visualization node: MODEL and LATENT -> a picture, and a view on the node."""

from __future__ import annotations

import numpy
import torch
from comfy_api.latest import io

from .inputs import refuse_unknown
from .recording.record import find_run
from .recording.trace import RoutingMap
from .showing.figure import figure
from .showing.payload import payload

AUTOMATIC = -1


class SVGEARRoutedBlocks(io.ComfyNode):
    """Shows where the sampler run that made a latent computed attention exactly, and what it estimated."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARRoutedBlocks",
            display_name="SVG-EAR Routed Blocks",
            category="model/patch",
            search_aliases=["sparse attention map", "attention heat map", "SVG-EAR visualization"],
            description=(
                "Shows what SVG-EAR Sparse Attention did: which blocks of one head were exact and which estimated, density and "
                "estimated error of every layer and step, and where in the video the exact blocks are. On the node itself you can "
                "choose any recorded layer, step and head; the image output shows the ones chosen in the inputs. What is recorded "
                "is set on SVG-EAR Record."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that the sampler used, or any node behind SVG-EAR."),
                io.Latent.Input("latent", tooltip="The LATENT that the sampler made: it tells which run to show. Passed on unchanged."),
                _number("layer", "Layer of the routing map, from 0; the nearest recorded one is drawn. -1 takes one in the middle."),
                _number("step", "Step of the routing map, from 0; the nearest recorded one is drawn. -1 takes one in the middle."),
                _number("head", "Head of the routing map, from 0; the nearest recorded one is drawn. -1 takes the first."),
                io.Combo.Input(
                    "branch",
                    options=["cond", "uncond"],
                    default="cond",
                    optional=True,
                    tooltip="Which side of the guidance to draw: the prompt's (cond) or the negative prompt's (uncond).",
                ),
                io.Int.Input("frames", default=4, min=1, max=16, optional=True, tooltip="Frames of the video to paint in the image."),
                io.Int.Input("width", default=1400, min=700, max=4096, step=2, optional=True, tooltip="Width of the image in pixels."),
            ],
            outputs=[
                io.Image.Output(tooltip="The figure."),
                io.Latent.Output(tooltip="The latent as it came in, so that the node can sit between sampler and decoder."),
            ],
        )

    @classmethod
    def execute(
        cls, model, latent, layer=AUTOMATIC, step=AUTOMATIC, head=AUTOMATIC, branch="cond", frames=4, width=1400, **unknown
    ) -> io.NodeOutput:
        refuse_unknown(cls, unknown)
        found = find_run(model, latent)
        chosen = choose_map(found.run.trace.maps, layer, step, head, branch) if found.run else None
        picture = numpy.asarray(figure(found.run, chosen, frames, width), dtype=numpy.float32) / 255
        data = payload(found, chosen)
        return io.NodeOutput(torch.from_numpy(picture)[None], latent, ui={"svg_ear": [data]})


def choose_map(maps: tuple[RoutingMap, ...], layer: int, step: int, head: int, branch: str) -> RoutingMap | None:
    """The recorded map nearest to what was asked for; -1 asks for the middle layer and step and the first head."""
    if not maps:
        return None
    layers, steps = (sorted({getattr(recorded, name) for recorded in maps}) for name in ("layer", "step"))
    layer = layers[len(layers) // 2] if layer < 0 else layer
    step = steps[len(steps) // 2] if step < 0 else step

    def distance(recorded: RoutingMap) -> tuple:
        return (
            recorded.branch != branch,
            abs(recorded.layer - layer),
            abs(recorded.step - step),
            abs(recorded.head - max(head, 0)),
        )

    return min(maps, key=distance)


def _number(name: str, tooltip: str):
    return io.Int.Input(name, default=AUTOMATIC, min=AUTOMATIC, max=10000, optional=True, tooltip=tooltip)
