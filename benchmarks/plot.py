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
def panels(stem: Path, count: int, width: float, salt: str, below: bool = False) -> Iterator[tuple]:
    """A figure and its ``count`` axes side by side, or each ``below`` the one before, to draw on; written to :func:`paths` at the end.

    Each is ``width`` inches wide and 4 high.

    Ids of the SVG follow from ``salt`` and there is no date, so that the same figures give the same file.
    """
    with pyplot.rc_context({"font.size": 9, "svg.hashsalt": salt, "svg.fonttype": "none"}):
        rows, columns = (count, 1) if below else (1, count)
        figure, axes = pyplot.subplots(rows, columns, figsize=(width * columns, 4 * rows), squeeze=False, layout="constrained")
        yield figure, axes.flatten()
        png, svg = paths(stem)
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(png, dpi=160)
        figure.savefig(svg, metadata={"Date": None})
        pyplot.close(figure)
