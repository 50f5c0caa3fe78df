"""What the pictures of the benches share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


def paths(stem: Path) -> list[Path]:
    """The files of a picture."""
    return [stem.with_suffix(".png"), stem.with_suffix(".svg")]


@contextmanager
def panels(stem: Path, count: int, width: float, salt: str) -> Iterator[tuple]:
    """A figure and its ``count`` axes side by side, each ``width`` inches wide, to draw on; written to :func:`paths` at the end.

    Ids of the SVG follow from ``salt`` and there is no date, so that the same figures give the same file.
    """
    with pyplot.rc_context({"font.size": 9, "svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(1, count, figsize=(width * count, 4), squeeze=False, layout="constrained")
        yield figure, axes[0]
        png, svg = paths(stem)
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=160)
        figure.savefig(svg, metadata={"Date": None})
        pyplot.close(figure)
