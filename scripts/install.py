"""pip install, told in a few lines: what is large, that it goes on, and how many packages there are.

    python scripts/install.py -r requirements-demo.txt

Arguments are pip's; what pip complains about is shown as it is.
"""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator

# Seconds without a line, after which one says what pip is at.
QUIET = 15
LARGE_MEGABYTES = 20
COMMAND = ("-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off")
STAGES = ("Collecting", "Downloading", "Processing", "Building", "Preparing", "Installing")
DOWNLOAD = re.compile(r"Downloading (?:\S*/)?([^/\s-]+)-(\d[^-\s]*)\S* \(([\d.]+) (MB|GB)\)")


def told(lines: Iterable[str | None], clock=time.monotonic) -> Iterator[str]:
    """What to show of the ``lines`` that pip prints; None stands for ``QUIET`` seconds without one."""
    began = shown = clock()
    at = "starting pip"
    for line in lines:
        text = (line or "").strip()
        at = text if text.startswith(STAGES) else at
        found = DOWNLOAD.match(text)
        if found and float(found[3]) * (1000 if found[4] == "GB" else 1) >= LARGE_MEGABYTES:
            yield f"  downloading {found[1]} {found[2]} ({found[3]} {found[4]})"
        elif text.startswith("Installing collected packages:"):
            yield f"  installing {text.count(',') + 1} packages"
        elif clock() - shown >= QUIET:
            yield f"  {clock() - began:.0f} s, at: {at[:100]}"
        else:
            continue
        shown = clock()


def install(*arguments: str) -> bool:
    """Run pip in this Python's environment with what it does on the screen; whether it succeeded."""
    process = subprocess.Popen([sys.executable, *COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    # An empty text, which no line is, for the end.
    threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put("")], daemon=True).start()
    try:
        for text in told(_until_the_end(lines)):
            print(text, flush=True)
        return process.wait() == 0
    except KeyboardInterrupt:
        process.wait()
        raise SystemExit("stopped: what is installed stays, and the next make goes on from there") from None


def _until_the_end(lines: queue.SimpleQueue) -> Iterator[str | None]:
    while True:
        try:
            line = lines.get(timeout=QUIET)
        except queue.Empty:
            line = None
        if line == "":
            return
        yield line


if __name__ == "__main__":
    raise SystemExit(not install(*sys.argv[1:]))
