"""What the figures of a run are held against, and the length from which sparse attention pays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .. import pack
from .inputs import SWEEP
from .methods import BASELINE, OURS, sol_name

pack.load()
from svg_ear.kernels.settings import FULL, INT8  # noqa: E402
from svg_ear.nodes.patch.break_even import break_even as crossing  # noqa: E402

Row = Mapping[str, object]

# Least speed-up over cuDNN SDPA by shape and density, in either precision.
SPEEDUPS = {
    FULL: {("wan-720p", 0.1): 3.9, ("wan-720p", 0.05): 5.2, ("wan-720p", 0.2): 2.3, ("hunyuan-720p", 0.1): 4.0, ("wan-480p", 0.1): 2.4},
    INT8: {("wan-720p", 0.1): 5.4, ("wan-480p", 0.1): 3.1, ("wan-5b-720p", 0.1): 2.7, ("32k", 0.1): 2.9},
}
REFERENCE = ("wan-720p", 0.1)
# The kind of data that the picture shows.
DRAWN = "structured"
USEFUL_TFLOPS = {FULL: 350, INT8: 450}
SMALL_STAGES = ("permute", "summarize", "probe", "route")
SMALL_STAGES_SHARE = 0.2
EXTRA_OVER_INPUTS = 1.5
FIRST_CALL_SECONDS = 20
HOST_MILLISECONDS, KERNELS = 3, 90


@dataclass(frozen=True)
class Bar:
    """A value and the least (``least``) or the most that it may be; None where the run did not measure it."""

    what: str
    value: float | None
    limit: float
    least: bool

    @property
    def passed(self) -> bool | None:
        """Whether the value is within the limit; None where it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        verdict = {True: "ok    ", False: "MISSED", None: "not measured"}[self.passed]
        value = "" if self.value is None else f" {self.value:.3g}"
        return f"{verdict} {self.what}:{value} ({'at least' if self.least else 'at most'} {self.limit:.3g})"


def bars(rows: Sequence[Row], min_tokens: int, densities: Collection[float]) -> list[Bar]:
    """Every bar, measured or not: about ours, not about calibrated calls.

    Args:
        rows: of the bench, numbers or their text. All bars but the one against Sol-Attn, whose exact share depends on the
            data, are about the first kind of data.
        min_tokens: the length from which the node computes sparsely.
        densities: those that the node's presets use.
    """
    kinds = dict.fromkeys(row["data"] for row in rows) or {DRAWN: None}
    every, rows = rows, [row for row in rows if row["data"] == next(iter(kinds))]
    found = [
        Bar(
            f"{shape} at density {density}{_named(precision)}: speed-up over {BASELINE}",
            number(ours(rows, shape, density, precision), "speedup"),
            least,
            True,
        )
        for precision, speedups in SPEEDUPS.items()
        for (shape, density), least in speedups.items()
    ]
    call, int8 = (ours(rows, *REFERENCE, precision) for precision in (FULL, INT8))
    where = f"{REFERENCE[0]} at density {REFERENCE[1]}"
    milliseconds = number(call, "ms")
    small = [number(call, f"{name}_ms") for name in SMALL_STAGES]
    for kind in kinds:
        same = [row for row in every if row["data"] == kind]
        peer = _only(same, shape=REFERENCE[0], method=sol_name(1.3))
        ratio = _ratio(number(ours(same, *REFERENCE), "ms"), number(peer, "ms"))
        found.append(Bar(f"{where}, {kind} data: time over that of {sol_name(1.3)}", ratio, 1.0, False))
    found += [
        *(
            Bar(
                f"{where}{_named(precision)}: useful TFLOP/s of attend", number(row, "attend_useful_tflops"), USEFUL_TFLOPS[precision], True
            )
            for precision, row in ((FULL, call), (INT8, int8))
        ),
        Bar(f"{where}: k-means of q and k over flash_kmeans", _cluster_ratio(rows, REFERENCE[0]), 1.0, False),
        Bar(
            f"{where}: share of {', '.join(SMALL_STAGES)}",
            None if None in small else _ratio(sum(small), milliseconds),
            SMALL_STAGES_SHARE,
            False,
        ),
        Bar(f"{where}: extra memory over q, k and v", number(call, "extra_over_inputs"), EXTRA_OVER_INPUTS, False),
        Bar(
            f"{where}: extra memory in int8 over that in full",
            _ratio(number(int8, "extra_mib"), number(call, "extra_mib")),
            1.0,
            False,
        ),
    ]
    checked = [row["host_synchronisation"] for row in rows if row["method"] == OURS and row.get("host_synchronisation")]
    found.append(Bar("calls that make the host wait", sum(text != "none" for text in checked) if checked else None, 0, False))
    preset = [row for row in rows if row["method"] == OURS and number(row, "density") in densities and precision_of(row) == FULL]
    long = [number(row, "speedup") for row in preset if number(row, "tokens") >= min_tokens]
    lowest = min((speedup for speedup in long if speedup), default=None)
    found.append(Bar(f"lowest speed-up of a preset from min_tokens ({min_tokens}) on", lowest, 1.0, True))
    return found


def break_even(rows: Iterable[Row], density: float) -> float | None:
    """Tokens at which ours and the baseline take the same time in the sweep, interpolated in logarithms.

    The shortest length of the sweep when ours is faster everywhere, infinity when it is slower at the longest, None
    without a sweep.
    """
    names = {shape.name for shape in SWEEP}
    points = [
        (number(row, "tokens"), number(row, "speedup"), 1.0)
        for row in rows
        if row["shape"] in names and row["method"] == OURS and number(row, "density") == density and number(row, "speedup")
        if precision_of(row) == FULL
    ]
    return crossing(points) if points else None


def overtaking(rows: Sequence[Row], density: float) -> float | None:
    """Tokens at which int8 takes as long as full in the sweep, as :func:`break_even` tells them."""
    points = []
    for shape in SWEEP:
        full, int8 = (ours(rows, shape.name, density, precision) for precision in (FULL, INT8))
        if ratio := _ratio(number(full, "ms"), number(int8, "ms")):
            points.append((shape.tokens, ratio, 1.0))
    return crossing(points) if points else None


def ours(rows: Iterable[Row], shape: str, density: float, precision: str = FULL) -> Row | None:
    """The row of a whole call of ours."""
    return _only((row for row in rows if number(row, "density") == density and precision_of(row) == precision), shape=shape, method=OURS)


def precision_of(row: Row) -> str:
    """The precision of a call; rows that name none are of full precision."""
    return str(row.get("precision") or FULL)


def _named(precision: str) -> str:
    return "" if precision == FULL else f", {precision}"


def _only(rows: Iterable[Row], **columns: str) -> Row | None:
    """The first row with these values, or None."""
    return next((row for row in rows if all(row.get(name) == value for name, value in columns.items())), None)


def number(row: Row | None, column: str) -> float | None:
    """The number in ``column``; None without a row or where it is empty."""
    value = None if row is None else row.get(column)
    return None if value in (None, "") else float(value)


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value / other


def _cluster_ratio(rows: Sequence[Row], shape: str) -> float | None:
    """Time of ours over that of flash_kmeans for the same clusters of queries and keys."""
    peers = {row["method"]: number(row, "ms") for row in rows if row["shape"] == shape and row["method"].startswith("flash_kmeans ")}
    same = [_only(rows, shape=shape, method=name.replace("flash_kmeans", OURS, 1)) for name in peers]
    if not peers or None in same:
        return None
    return sum(number(row, "ms") for row in same) / sum(peers.values())
