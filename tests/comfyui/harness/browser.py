"""Chromium, Node.js and playwright-core: found, or installed where that is ours to do."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pack import ROOT

from .patience import Patience

PLAYWRIGHT = "playwright-core@1.65.1"
# Beside the packages of this Python, so that `make clean` removes it too.
FOLDER = Path(sys.prefix, "browser")
SCREENSHOTS = ROOT / "build" / "screenshots"
SCRIPTS = Path(__file__).resolve().parent.parent / "browser"
# Of an idle machine, on which loading the page takes the longest: some six.
SILENCE_SECONDS = 60
NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Browser:
    """Programs that drive the real interface."""

    chromium: str
    node: str
    playwright: Path

    def drive(self, script: str, address: str, profile: Path, request: dict) -> dict:
        """Run a script of tests/comfyui/browser/ against a server; it reads ``request`` and prints its findings as JSON.

        It also tells what it is at, and is ended when it tells nothing new for ``SILENCE_SECONDS`` of an idle machine.
        """
        request = request | {
            "address": address,
            "playwright": str(self.playwright),
            "chromium": self.chromium,
            "profile": str(profile),
            "screenshots": str(SCREENSHOTS),
        }
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        return json.loads(watch([self.node, str(SCRIPTS / script)], json.dumps(request), SILENCE_SECONDS))


def watch(command: list[str], given: str, silence: float) -> str:
    """What ``command`` prints when it is ``given`` a text; it has to say on stderr that it goes on.

    Raises RuntimeError where it fails, and TimeoutError, after ending it and what it started, where it is silent for longer than
    ``silence`` seconds of an idle machine.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    printed, told = [], []
    readers = [
        threading.Thread(target=lambda: printed.append(process.stdout.read()), daemon=True),
        threading.Thread(target=lambda: told.extend(process.stderr), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(given)
        patience, known = Patience(silence), 0
        while process.poll() is None:
            if len(told) > known:
                known = len(told)
                patience.renew()
            if not patience.lasts():
                raise TimeoutError(f"{command[-1]} told nothing for {patience}, after:\n{''.join(told)[-4000:]}")
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for reader in readers:
        reader.join()
    if process.returncode:
        raise RuntimeError(f"{command[-1]} failed:\n{''.join(told)[-4000:]}")
    return printed[0]


def missing() -> list[str]:
    """What is not there for the browser tests, in words."""
    found = {"Chromium": _chromium(), "Node.js": shutil.which("node"), "npm": shutil.which("npm")}
    return [name for name, path in found.items() if path is None]


def install() -> Browser:
    """Install playwright-core once, which downloads no browser, and return all three; raise where npm fails."""
    package = FOLDER / "node_modules" / "playwright-core"
    wanted = PLAYWRIGHT.split("@")[1]
    if not package.is_dir() or json.loads((package / "package.json").read_text())["version"] != wanted:
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(FOLDER), "--no-save", "--no-audit", "--no-fund", "--loglevel=error", PLAYWRIGHT]
        subprocess.run(command, check=True, timeout=300)
    return Browser(_chromium(), shutil.which("node"), package)


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)
