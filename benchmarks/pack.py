"""Import the pack from its folder under the fixed name ``svg_ear``, the way ComfyUI loads a custom node."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load():
    """Load the repository root as the package ``svg_ear``; later calls return the same module."""
    if "svg_ear" not in sys.modules:
        spec = importlib.util.spec_from_file_location("svg_ear", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        module = importlib.util.module_from_spec(spec)
        sys.modules["svg_ear"] = module
        spec.loader.exec_module(module)
    return sys.modules["svg_ear"]
