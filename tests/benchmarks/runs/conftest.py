"""Says loudly what is left out without a ComfyUI."""

from benchmarks.checkout import HOW_TO_GET_ONE, find_checkout

CHECKOUT = find_checkout()


def pytest_terminal_summary(terminalreporter):
    if CHECKOUT is None:
        line = f"NO SAMPLER RUN OF THE BENCH WAS MADE: no ComfyUI checkout found; {HOW_TO_GET_ONE}"
        terminalreporter.write_line(line, red=True, bold=True)
