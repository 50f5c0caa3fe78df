"""The saving node: MODEL and LATENT -> a file of what was gathered."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..kernels.calibration import Profile
from .calibrating.gathering import find_calibration, what_is_missing
from .calibrating.profiles import FOLDER, models_folder, path_to_write, save, taken
from .inputs import refuse_unknown
from .patch.version import pack_version
from .recording.words import Joined, Text, counted, on_node


class SVGEARSaveCalibration(io.ComfyNode):
    """Writes a calibration once enough runs were gathered."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SVGEARSaveCalibration",
            display_name="SVG-EAR Save Calibration",
            category="model/patch",
            search_aliases=["CalibAtt", "save attention profile"],
            description=(
                "Saves what SVG-EAR Calibrate gathered to models/svg_ear, once enough runs have been made. Queue the workflow several "
                "times, with another prompt and seed each time."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of SVG-EAR Calibrate that the sampler used."),
                io.Latent.Input("latent", tooltip="The LATENT of the sampler: saving waits for it."),
                io.String.Input(
                    "name",
                    default="calibration",
                    tooltip=(
                        "Name of the file in models/svg_ear, with / between folders. A calibration belongs to one model, size and number "
                        "of frames: name it after them."
                    ),
                ),
                io.Int.Input(
                    "runs",
                    default=4,
                    min=1,
                    max=1024,
                    optional=True,
                    tooltip=(
                        "Save after so many runs; before that the node only says how many there are. More runs find blocks that suit more "
                        "prompts; 16 is plenty."
                    ),
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Replace a file of this name. Off, one that another calibration wrote is refused before anything is sampled; the "
                        "one that this calibration wrote is written again with every further run."
                    ),
                ),
                io.Int.Input(
                    "largest_mb",
                    default=64,
                    min=3,
                    max=4096,
                    optional=True,
                    advanced=True,
                    tooltip="Size of the file. When it does not suffice, more steps share their blocks and compute more than they need.",
                ),
            ],
            outputs=[io.String.Output(tooltip="What was saved, or how many runs are missing.")],
        )

    @classmethod
    def validate_inputs(cls, name="calibration", overwrite=False) -> bool | str:
        # What comes over a link is not known yet; execute checks it.
        if name is None or overwrite is None:
            return True
        try:
            # Before anything is sampled: a name that is taken would fail the last run only.
            return taken(path_to_write(name), overwrite) or True
        except ValueError as error:
            return str(error)

    @classmethod
    def execute(cls, model, latent, name, runs=4, overwrite=False, largest_mb=64, **unknown) -> io.NodeOutput:
        refuse_unknown(cls, unknown)
        patch = find_calibration(model)
        if patch is None:
            raise ValueError("this MODEL gathers nothing: connect the MODEL of SVG-EAR Calibrate, or of a node behind it")
        path, calibration = path_to_write(name), patch.calibration
        if calibration.runs < runs:
            lines = [what_is_missing(patch, runs), taken(path, overwrite, calibration)]
        else:
            written = save(path, calibration, patch.found(), overwrite, made_by=f"svg-ear {pack_version()}", largest=largest_mb * 10**6)
            lines = summary(written, path)
        text = Joined("\n", filter(None, lines))
        return io.NodeOutput(text, ui=on_node(text, lines[0]))


def summary(profile: Profile, path: Path) -> list[str]:
    """What a calibration is of, in words, line by line."""
    grid = " x ".join(map(str, profile.grid))
    place, size = path.relative_to(models_folder()).as_posix(), path.stat().st_size
    takes = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    shapes = ", ".join(f"{name} {share:.0%}" for name, share in profile.shape_shares().items())
    model = {
        "model": profile.model.architecture,
        "layers": profile.model.layers,
        "heads": profile.model.heads,
        "dim": profile.model.head_dim,
    }
    noise = {"first": f"{profile.sigmas[0]:.3g}", "last": f"{profile.last_sigma:.3g}"}
    computed = {"density": f"{profile.density:.1%}", "repeating": f"{profile.repeats.mean():.1%}"}
    return [
        Text("Saved {file}, {size}, from {runs}", file=f"models/{FOLDER}/{place}", size=takes, runs=counted(profile.prompts, "run")),
        Text("Model: {model}, {layers} layers, {heads} heads of {dim}", **model),
        Text("Video: {grid} tokens (frames x rows x columns)", grid=grid),
        Text("Steps: {looked_at} of {steps}, noise levels {first} to {last}", looked_at=len(profile.sigmas), steps=profile.steps, **noise),
        Text("Kept: {budget}", budget=profile.budget),
        Text("Computed: {density} of the pairs; {repeating} of the heads repeat", **computed),
        Text("Shapes of blocks: {shapes}", shapes=shapes),
    ]
