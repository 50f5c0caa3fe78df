"""The direction of imports between the folders, as pyproject.toml states it, and that a step back is found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINT = Path(sys.executable).with_name("lint-imports")


@pytest.fixture
def pack(tmp_path):
    """The pack under its fixed name, to be changed at will."""
    shipped = tmp_path / "svg_ear"
    shipped.mkdir()
    shutil.copy(ROOT / "__init__.py", shipped)
    for folder in ("kernels", "nodes"):
        shutil.copytree(ROOT / folder, shipped / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return shipped


def lint(pack: Path) -> subprocess.CompletedProcess:
    """Check the contracts on ``pack`` and the benches."""
    paths = os.pathsep.join(map(str, (pack.parent, ROOT)))
    command = [LINT, ROOT / "pyproject.toml", "--no-cache", "--verbose"]
    return subprocess.run(command, cwd=pack.parent, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)


def test_imports_run_one_way(pack):
    found = lint(pack)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nodes/recording/record.py", "from ..patch.options import Options"),
        ("nodes/patch/override.py", "from ..showing.palette import INK"),
        ("nodes/showing/figure.py", "from ..calibrating import gathering"),
        ("nodes/calibrating/gathering.py", "from ..report import SVGEARReport"),
        ("kernels/pipeline.py", "from ..nodes.recording import reasons"),
        ("kernels/device.py", "import comfy.model_management"),
        ("kernels/torch_stages/route.py", "from ..triton_stages.route import table_size"),
        ("kernels/counts.py", "from .clustering import cluster_tokens"),
    ],
)
def test_a_step_back_is_found(pack, file, line):
    with open(pack / file, "a") as module:
        module.write(f"\n{line}\n")
    found = lint(pack)
    assert found.returncode == 1 and "BROKEN" in found.stdout, found.stdout + found.stderr
