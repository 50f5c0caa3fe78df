"""What `make` says and does, with interpreters that only write down how they are called."""

import shutil
import subprocess
import sys

import pytest

from benchmarks.pack import ROOT
from scripts.install import QUIET, told

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
FAKE = """#!/bin/sh
echo "$*" >> {log}
case "$1 $2" in
"-c import"*) exit {old} ;;
"-m venv") mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" && cp "$0" "$3/bin/python" ;;
"{failing}") exit 3 ;;
esac
"""
# As pip 23 and pip 25 print them.
PIP = """Collecting torch==2.13.0 (from -r requirements-demo.txt (line 2))
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (190.5 MB)
Collecting numpy
  Using cached numpy-2.3.5-cp311-cp311-manylinux_2_28_x86_64.whl (16 MB)
  Downloading numpy-2.3.5-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (62 kB)
Downloading https://files.example.org/packages/nvidia_cudnn_cu13-9.13.0.50-py3-none-manylinux_2_27_x86_64.whl (0.7 GB)
Downloading tqdm-4.67.1-py3-none-any.whl (78 kB)
Installing collected packages: numpy, tqdm, torch
Successfully installed numpy-2.3.5 torch-2.13.0 tqdm-4.67.1"""


@pytest.fixture
def repository(tmp_path):
    """A folder with what the Makefile needs of the repository."""
    for name in ("Makefile", "requirements.txt", "requirements-demo.txt", "requirements-test.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(repository, *arguments, old=0, failing="none"):
    """Run make with the fake interpreter: its status, what it printed, and the calls of the interpreter."""
    fake, log = repository / "fake-python", repository / "calls"
    fake.write_text(FAKE.format(log=log, old=old, failing=failing))
    fake.chmod(0o755)
    log.unlink(missing_ok=True)
    command = ["make", f"PYTHON={fake}", *arguments]
    finished = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    return finished.returncode, finished.stdout + finished.stderr, log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("target", ["demo", "test"])
def test_an_old_interpreter_is_told_with_the_target_that_was_asked_for(repository, target):
    status, said, calls = make(repository, target, old=1)
    assert status and f"Python 3.11 or newer is needed, and {repository / 'fake-python'} is not: make {target} PYTHON=python3.12" in said
    assert len(calls) == 1


def test_without_a_target_nothing_runs(repository):
    status, said, calls = make(repository)
    assert status == 0 and calls == []
    assert all(f"make {target} " in said for target in ("demo", "test", "clean")) and "DEMO_ARGS" in said and "PYTHON ?=" not in said


@pytest.mark.parametrize(("target", "ran"), [("demo", "-m benchmarks.demo --seconds 9"), ("test", "-m pytest -k strict")])
def test_a_target_installs_once_and_runs(repository, target, ran):
    arguments = (target, "DEMO_ARGS=--seconds 9", "PYTEST_ARGS=-k strict")
    status, said, calls = make(repository, *arguments)
    assert status == 0 and f"scripts/install.py -r requirements-{target}.txt" in calls and calls[-1] == ran
    assert f"installing requirements-{target}.txt" in said
    _, said, calls = make(repository, *arguments)
    assert not any("scripts/install.py" in call or "venv" in call.split() for call in calls) and calls[-1] == ran


def test_an_install_that_failed_is_tried_again(repository):
    for _ in range(2):
        status, _, calls = make(repository, "demo", failing="scripts/install.py -r")
        assert status and calls[-1] == "scripts/install.py -r requirements-demo.txt"


def test_clean_leaves_nothing_that_git_ignores(repository):
    before = {path.name for path in repository.iterdir()} | {"fake-python"}
    listed = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if "*" not in line]
    for name in [*listed, "nodes/__pycache__"]:
        (repository / name).mkdir(parents=True)
        (repository / name / "file.pyc").touch()
    assert {"build", ".venv", "demo_output"} <= set(listed)
    make(repository, "clean")
    assert {path.name for path in repository.iterdir()} == before | {"nodes"} and not any((repository / "nodes").iterdir())


def test_an_install_is_told_in_a_few_lines():
    assert list(told(PIP.splitlines(), clock=lambda: 0)) == [
        "  downloading torch 2.13.0 (190.5 MB)",
        "  downloading nvidia_cudnn_cu13 9.13.0.50 (0.7 GB)",
        "  installing 3 packages",
    ]


def test_a_long_silence_is_told_too():
    seconds = iter(range(0, 10_000, QUIET))
    lines = list(told(["Collecting numpy\n", None, "  Successfully uninstalled setuptools-65.5.0\n"], clock=lambda: next(seconds)))
    assert len(lines) == 3 and all("Collecting numpy" in line for line in lines)


def test_pip_that_fails_fails(tmp_path):
    command = [sys.executable, "-m", "scripts.install", "--no-index", "--no-such-option"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 1 and "no such option" in finished.stderr and finished.stdout == ""
