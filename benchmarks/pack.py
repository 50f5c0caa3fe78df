"""Import the pack from its folder under a fixed name, the way ComfyUI loads a custom node."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load(folder: Path = ROOT, name: str = "svg_ear"):
    """Load ``folder``, this repository or another checkout of it, as the package ``name``; later calls return the same module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
