"""What a run left out and why, told at its end: a plugin of pytest, registered by conftest.py.

With several workers only the process that prints the summary has these hooks.
"""

from collections import Counter

import torch
from harness import browser

from benchmarks.checkout import HOW_TO_GET_ONE, find_checkout

COMFYUI_TESTS = "tests/comfyui/"
CHECKOUT = find_checkout()
NO_BROWSER = browser.missing()
NO_CHECKOUT_REASON, NO_BROWSER_REASON, NO_GPU_REASON = "no ComfyUI checkout found", f"missing {', '.join(NO_BROWSER)}", "no CUDA GPU"
# What a reason means to somebody who sees it for the first time.
MEANING = {
    NO_GPU_REASON: "need a CUDA GPU; here the kernels ran in Triton's interpreter instead, and were compiled without running",
    NO_CHECKOUT_REASON: f"need a ComfyUI: {HOW_TO_GET_ONE}, then run `make test` again",
    NO_BROWSER_REASON: f"drive a browser: install {', '.join(NO_BROWSER)}, then run `make test` again",
}


def explained(reasons: list[str]) -> list[str]:
    """Lines for the tests that were skipped, of which ``reasons`` has the reason each; none for none."""
    if not reasons:
        return []
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    lines = [f"{count} {MEANING.get(reason, f'were left out: {reason}')}" for reason, count in counts.most_common()]
    return [
        f"{len(reasons)} tests were skipped, which is no fault:",
        *(f"  {line}" for line in lines),
        "  docs/contributing.md, What is skipped, says what that leaves untested",
    ]


def pytest_report_header():
    return f"ComfyUI: {CHECKOUT or 'NOT FOUND'}"


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "longrepr")]
    for line in explained([report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]):
        terminalreporter.write_line(line)
    if any(report.nodeid.startswith(COMFYUI_TESTS) for report in reports):
        _tell_of_comfyui(terminalreporter)
    if not torch.cuda.is_available():
        files = "tests/kernels/test_cuda*.py and tests/nodes/patch/test_dense_cuda.py"
        terminalreporter.write_line(f"NO CUDA GPU: {files} did not run; nothing here ran on a GPU.", yellow=True)


def _tell_of_comfyui(terminalreporter):
    if CHECKOUT is None:
        line = f"THE COMFYUI TESTS AND THE SAMPLER RUN OF THE BENCH DID NOT RUN: no checkout found; {HOW_TO_GET_ONE}"
        terminalreporter.write_line(line, red=True, bold=True)
    else:
        terminalreporter.write_line(f"ComfyUI tests ran against {CHECKOUT}", green=True, bold=True)
    if NO_BROWSER:
        terminalreporter.write_line(f"THE BROWSER TESTS DID NOT RUN: missing {', '.join(NO_BROWSER)}", red=True, bold=True)
    elif browser.SCREENSHOTS.is_dir():
        terminalreporter.write_line(f"screenshots of the browser tests: {browser.SCREENSHOTS}")
