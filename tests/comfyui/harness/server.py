"""One ComfyUI server process in a folder of its own, with the pack and the fixture nodes in it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.checkout import Checkout
from benchmarks.pack import ROOT

from .client import Client
from .patience import Patience

FIXTURE_NODES = Path(__file__).resolve().parent.parent / "fixture_nodes"
# On an idle machine, where it takes some ten.
READY_SECONDS = 90


class Server:
    """Start with ``start``, talk through ``client``, end with ``stop``; or use it as a context manager.

    base: ComfyUI's base directory. Checkpoints belong in ``models_dir``; results come to ``base / "output"``.
    log_path: everything that the server printed; ``log()`` reads it.
    """

    def __init__(self, checkout: Checkout, base: Path, with_pack: bool = True, extra_arguments: tuple[str, ...] = ()):
        self.checkout = checkout
        self.base = base
        self.log_path = base / "server.log"
        self.models_dir = base / "models" / "diffusion_models"
        self.extra_arguments = extra_arguments
        self.process: subprocess.Popen | None = None
        self.client: Client | None = None
        packs = base / "custom_nodes"
        for folder in (self.models_dir, packs, base / "output"):
            folder.mkdir(parents=True, exist_ok=True)
        (packs / "svg-ear-tests").symlink_to(FIXTURE_NODES, target_is_directory=True)
        if with_pack:
            (packs / "svg-ear").symlink_to(ROOT, target_is_directory=True)

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *error) -> None:
        self.stop()

    def start(self) -> "Server":
        """Start the process and return when it answers; raise with the end of its log when it does not."""
        port = _free_port()
        command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{self.base / 'comfy.db'}", "--disable-api-nodes"]
        # what ComfyUI chooses by itself on a GPU
        command += ["--disable-auto-launch", "--use-pytorch-cross-attention", *self.extra_arguments]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.checkout.path,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # the tensors are so small that threads would mostly wait for each other
                env=os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
            )
        self.client = Client(f"http://127.0.0.1:{port}")
        patience = Patience(READY_SECONDS)
        while not self.client.answers():
            if self.process.poll() is not None or not patience.lasts():
                self.stop()
                raise RuntimeError(f"{self.checkout} did not start; the end of its log:\n{self.log()[-4000:]}")
            time.sleep(0.2)
        return self

    def stop(self) -> None:
        """End the process."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def log(self) -> str:
        """What the server printed so far, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_path.read_text(errors="replace"))

    def resident_bytes(self) -> int:
        """Memory that the process holds now (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
