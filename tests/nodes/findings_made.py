"""A GPU that is not there, and what a check might have found on it."""

from svg_ear.kernels.tuning import ATTEND_CHOICES, PROBE_CHOICES
from svg_ear.nodes.patch.findings import Card, Findings, Timing

NAME, CAPABILITY = "NVIDIA H100 80GB HBM3", (9, 0)
DENSITIES = (0.05, 0.1, 0.2, 0.3)


def dense_time(heads, tokens):
    """Milliseconds, about those of an H100."""
    return heads * tokens**2 * 1.4e-9


def sparse_time(heads, tokens, density):
    """With a part that does not depend on the pairs."""
    return 3 + heads * tokens * 3e-6 + 1.5 * density * dense_time(heads, tokens)


def card(dense="attention_pytorch", **changes):
    known = {"name": NAME, "capability": "9.0", "torch": "2.11.0", "triton": "3.6.0", "pack": "0.1.0", "dense": dense}
    return Card(**(known | changes))


def findings(sizes=((12, 8192), (12, 16384), (12, 32768), (40, 8192), (40, 16384)), **changes):
    """Findings with tiles that are not those of the table."""
    timings = tuple(
        Timing(
            heads,
            tokens,
            dense_time(heads, tokens),
            {density: sparse_time(heads, tokens, density) for density in DENSITIES},
            {"sage": dense_time(heads, tokens) / 2},
        )
        for heads, tokens in sizes
    )
    known = {"card": card(), "timings": timings, "attend": ATTEND_CHOICES[90][0], "probe": PROBE_CHOICES[90][0]}
    return Findings(**(known | changes))
