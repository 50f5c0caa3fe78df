"""What the nodes say of their inputs: a line for each widget, the sockets between them, and what is no input at all."""

from __future__ import annotations

from comfy_api.latest import io

# From SVG-EAR Custom Settings or SVG-EAR Load Calibration to SVG-EAR Sparse Attention.
SettingsType = io.Custom("SVG_EAR_SETTINGS")
# From SVG-EAR Schedule.
ScheduleType = io.Custom("SVG_EAR_SCHEDULE")
# From SVG-EAR Record.
RecordingType = io.Custom("SVG_EAR_RECORDING")
# raylight's own.
RayActorsType = io.Custom("RAY_ACTORS")


class Widgets:
    """The widgets of a node, whose defaults are those of a dataclass with fields of the same names."""

    def __init__(self, defaults: type, tooltips: dict[str, str]):
        self._defaults, self._tooltips = defaults, tooltips

    def choice(self, name: str, choices: tuple[str, ...], advanced: bool | None = None):
        return io.Combo.Input(name, options=list(choices), advanced=advanced, **self._common(name))

    def share(self, name: str, least: float = 0.0):
        """A number from ``least`` to 1."""
        return io.Float.Input(name, min=least, max=1.0, step=0.01, round=0.001, **self._common(name))

    def count(self, name: str, least: int, most: int):
        return io.Int.Input(name, min=least, max=most, **self._common(name))

    def switch(self, name: str):
        return io.Boolean.Input(name, **self._common(name))

    def text(self, name: str):
        return io.String.Input(name, **self._common(name))

    def _common(self, name: str) -> dict:
        return {"default": getattr(self._defaults, name), "optional": True, "tooltip": self._tooltips[name]}


def refuse_unknown(node: type[io.ComfyNode], given: dict) -> None:
    """Raise ValueError for inputs that a node does not have: ComfyUI hands on whatever a prompt links, checked or not."""
    schema = node.define_schema()
    names = [entry.id for entry in schema.inputs]
    for name in given:
        if name not in names:
            raise ValueError(f"{schema.display_name} has no input {name}: disconnect it; its inputs are {', '.join(names)}")


def require_actors(ray_actors, missing: str | None) -> None:
    """Raise RuntimeError where raylight cannot be used because of what is ``missing``, ValueError where its workers are not connected."""
    if missing is not None:
        raise RuntimeError(missing)
    if ray_actors is None:
        raise ValueError("nothing is connected to ray_actors: connect the loader or the sampler of raylight")
