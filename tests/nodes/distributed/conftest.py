"""raylight, Ray and ComfyUI as far as the pack uses them, and what the tests of this folder share."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))


def _forget():
    for name in [name for name in sys.modules if name.split(".")[0] in ("comfy", "ray", "raylight")]:
        del sys.modules[name]


@pytest.fixture
def engine():
    """The folder with the packages of the engine."""
    return HERE / "engine"


@pytest.fixture
def raylight(monkeypatch, engine):
    """The packages of the engine, for one test; gives the module of forwards."""
    # Modules of the pack that saw them belong to this test alone.
    for package, name in (("patch", "patching"), ("distributed", "worker"), ("distributed", "raylight")):
        monkeypatch.delitem(sys.modules, f"svg_ear.nodes.{package}.{name}", raising=False)
        # A package keeps what was imported of it, and hands that out whatever sys.modules says.
        monkeypatch.delattr(f"svg_ear.nodes.{package}.{name}", raising=False)
    _forget()
    monkeypatch.syspath_prepend(str(engine))
    import raylight.forwards

    yield raylight.forwards
    _forget()
