"""Install the requirements of the ComfyUI checkout that the tests use into the running Python, keeping its torch.

    python -m tests.comfyui.harness.install [STAMP]

Does nothing without a checkout. With a STAMP file, does nothing either while the stamp records the same requirements.
"""

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from benchmarks.checkout import find_checkout
from scripts.install import install as pip_install

TORCH_PARTS = ("torch", "torchvision", "torchaudio")
# ComfyUI imports both at start. Their wheels are linked against CUDA builds of torch, but the first pair imports beside
# any other torch once torchaudio's libraries are gone, and nothing that the tests run calls their kernels. It ends at
# Python 3.11; the second pair is for newer ones and needs a CUDA build of torch.
PAIRS = (("torchvision==0.16.2", "torchaudio==2.11.0"), ("torchvision==0.28.0", "torchaudio==2.11.0"))


def install(stamp: Path | None) -> None:
    """Install what the checkout asks for, except torch; raise where a step fails."""
    checkout = find_checkout()
    if checkout is None:
        print("no ComfyUI checkout found: its requirements are not installed")
        return
    listed = checkout.path / "requirements.txt"
    wanted = [line for line in listed.read_text().splitlines() if _name(line) not in TORCH_PARTS]
    torch = importlib.metadata.version("torch").split("+")[0]
    fingerprint = hashlib.sha256("\n".join([*wanted, *map(str, PAIRS), torch, sys.version]).encode()).hexdigest()
    if stamp is not None and stamp.is_file() and stamp.read_text() == fingerprint:
        return

    print(f"installing the requirements of {checkout}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        requirements, constraints = Path(folder, "requirements.txt"), Path(folder, "constraints.txt")
        requirements.write_text("\n".join(wanted))
        constraints.write_text(f"torch=={torch}\n")
        _pip("-r", str(requirements), "-c", str(constraints))
    _install_pair(torch)
    if stamp is not None:
        stamp.write_text(fingerprint)


def _install_pair(torch: str) -> None:
    for pair in PAIRS:
        if _imports("torchvision", "torchaudio"):
            return
        if not _pip("--no-deps", *pair, check=False):
            continue
        for library in Path(sysconfig.get_path("platlib"), "torchaudio", "lib").glob("*.so"):
            library.unlink()
    if not _imports("torchvision", "torchaudio"):
        raise SystemExit(
            f"torchvision and torchaudio do not import beside torch {torch} on Python {sys.version.split()[0]}: "
            "install a matching pair by hand, use Python 3.11 (make clean; make test PYTHON=python3.11), "
            "or run without the ComfyUI tests (COMFYUI_PATH=none)"
        )


def _name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[#]", requirement.strip().lower(), maxsplit=1)[0]


def _pip(*arguments: str, check: bool = True) -> bool:
    done = pip_install(*arguments)
    if check and not done:
        raise SystemExit("pip failed: see above")
    return done


def _imports(*modules: str) -> bool:
    # a new process: what is installed in between would not show in this one
    command = [sys.executable, "-c", "import " + ", ".join(modules)]
    return subprocess.run(command, capture_output=True).returncode == 0


if __name__ == "__main__":
    install(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
