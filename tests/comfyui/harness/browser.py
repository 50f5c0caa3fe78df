"""Chromium, Node.js and playwright-core: found, or installed where that is ours to do."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pack import ROOT

PLAYWRIGHT = "playwright-core@1.65.1"
# Beside the packages of this Python, so that `make clean` removes it too.
FOLDER = Path(sys.prefix, "browser")
SCREENSHOTS = ROOT / "build" / "screenshots"
SCRIPTS = Path(__file__).resolve().parent.parent / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Browser:
    """Programs that drive the real interface."""

    chromium: str
    node: str
    playwright: Path

    def drive(self, script: str, address: str, profile: Path, request: dict, timeout: float) -> dict:
        """Run a script of tests/comfyui/browser/ against a server; it reads ``request`` and prints its findings as JSON."""
        request = request | {
            "address": address,
            "playwright": str(self.playwright),
            "chromium": self.chromium,
            "profile": str(profile),
            "screenshots": str(SCREENSHOTS),
        }
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        command = [self.node, str(SCRIPTS / script)]
        finished = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout)
        if finished.returncode:
            raise RuntimeError(f"{script} failed:\n{finished.stderr[-4000:]}")
        return json.loads(finished.stdout)


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
