"""Open the sample workflows in the real interface, by hand: python tests/comfyui/browser/run.py [FOLDER FOR SCREENSHOTS]

Needs a ComfyUI checkout, Chromium, Node.js and playwright-core (`npm install playwright-core`, found through NODE_PATH or
in node_modules/ of the repository). Says loudly what is missing and then checks nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from harness.checkout import HOW_TO_GET_ONE, ROOT, find_checkout  # noqa: E402
from harness.server import Server  # noqa: E402


def main(screenshots: Path) -> int:
    """Return 0 when every workflow is clean or the check cannot run, 1 otherwise."""
    checkout, chromium, node = find_checkout(), shutil.which("chromium"), shutil.which("node")
    playwright = _playwright()
    missing = [
        what
        for what, there in (
            (f"a ComfyUI checkout ({HOW_TO_GET_ONE})", checkout),
            ("chromium", chromium),
            ("node", node),
            ("playwright-core (npm install playwright-core)", playwright),
        )
        if there is None
    ]
    if missing:
        print(f"THE BROWSER CHECK DID NOT RUN: missing {', '.join(missing)}")
        return 0
    screenshots.mkdir(parents=True, exist_ok=True)
    workflows = sorted((ROOT / "workflows").glob("*.json"))
    with tempfile.TemporaryDirectory() as folder, Server(checkout, Path(folder, "base")) as server:
        shutil.copytree(checkout.path / "input", server.base / "input", dirs_exist_ok=True)
        address, profile = server.client.address, str(Path(folder, "profile"))
        command = [node, HERE / "check_workflows.mjs", address, playwright, chromium, profile, screenshots, *workflows]
        output = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    report = json.loads(output.stdout)
    for name, found in report.items():
        faults = [f"{kind}: {fault}" for kind in ("missing", "overlaps", "rejected", "errors") for fault in found[kind]]
        print(f"{name}: {'ok' if not faults else ''}", *faults, sep="\n  " if faults else "")
        if "-v" in sys.argv:
            print(json.dumps(found["sizes"], indent=1))
    print(f"screenshots: {screenshots}")
    return int(any(found[kind] for found in report.values() for kind in ("missing", "overlaps", "rejected", "errors")))


def _playwright() -> Path | None:
    folders = [ROOT / "node_modules", *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)))]
    return next((folder / "playwright-core" for folder in folders if (folder / "playwright-core").is_dir()), None)


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "-v"]
    raise SystemExit(main(Path(given[0] if given else tempfile.gettempdir(), "svg-ear-workflows")))
