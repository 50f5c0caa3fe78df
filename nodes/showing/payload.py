"""A run as data for the view in the browser, small enough to be kept with the workflow's history."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass

import numpy

from ..recording.record import RunRecord
from ..recording.routed import CODES, HIGHEST, LOWEST
from ..recording.summary import headline, report
from ..recording.trace import RoutingMap
from .arrange import arranged
from .palette import ERROR_RANGE

VERSION = 1
MOST_BYTES = 1_900_000
MOST_RUNS = 4
# Rows and columns of a map, and tokens of a video, from fine to coarse; the first that fits is taken.
DETAILS = ((512, 1024, 40_000), (256, 512, 20_000), (160, 320, 20_000), (128, 256, 10_000), (96, 192, 5_000))
# The map that the view opens with is always sent in this detail.
FINE = DETAILS[1]
# Errors are sent in coarser steps than they are kept, 13 % up or down: the last bits of their codes cost half the room.
CODE_STEP = 4
NOTHING = 255


def payload(runs: list[RunRecord], shown: RunRecord | None, is_match: bool, chosen: RoutingMap | None) -> dict:
    """What the view draws: the figures of the last runs, and as many of their routing maps as there is room for.

    Args:
        runs: newest first.
        shown: the run to open with; its maps come before those of other runs.
        is_match: whether it made the latent that was asked about.
        chosen: the map to open with.
    """
    if shown is None:
        return {"version": VERSION, "runs": []}
    ordered = [shown, *(run for run in runs if run is not shown and run.trace.sparse)][:MOST_RUNS]
    found = {"version": VERSION, "matched": is_match, "runs": [_run(run, number) for number, run in enumerate(ordered)]}
    if chosen is not None:
        found["chosen"] = {"layer": chosen.layer, "step": chosen.step, "branch": chosen.branch, "head": chosen.head}
    while len(found["runs"]) > 1 and _size(found) > MOST_BYTES // 2:
        found["runs"].pop()
    for run, described in zip(ordered, found["runs"]):
        described["maps"], described["mapsLeftOut"] = _maps(run, chosen, MOST_BYTES - _size(found))
        described["mapsLeftOut"] += run.trace.maps_left_out
    return found


def _size(value) -> int:
    return len(json.dumps(value))


def _run(run: RunRecord, number: int) -> dict:
    trace = run.trace
    steps = max(run.steps, 1 + max((step for _, _, step in trace.sparse), default=0))
    reasons = list({reason.name: reason for reason in trace.dense.values()}.values())
    dense = numpy.full((trace.layers, steps), NOTHING, dtype=numpy.uint8)
    for (layer, step), reason in trace.dense.items():
        if step < steps:
            dense[layer, step] = reasons.index(reason)
    return {
        "title": f"{'this run' if number == 0 else 'earlier'}, {run.steps} steps, {run.seconds:.1f} s",
        "headline": headline(run),
        "report": report(run),
        "layers": trace.layers,
        "steps": steps,
        "reasons": [{"name": reason.name, "sentence": reason.sentence, "remedy": reason.remedy} for reason in reasons],
        "dense": _packed(dense),
        "branches": {branch: _tables(run, branch, steps) for branch in trace.branches},
        "maps": [],
        "mapsLeftOut": 0,
    }


def _tables(run: RunRecord, branch: str, steps: int) -> dict:
    """Density and error ``[layers, steps, heads]`` in parts of their largest value."""
    heads = max(figures.shape[1] for (name, _, _), figures in run.trace.sparse.items() if name == branch)
    values = numpy.full((2, run.trace.layers, steps, heads), numpy.nan)
    for (name, layer, step), figures in run.trace.sparse.items():
        if name == branch:
            values[:, layer, step, : figures.shape[1]] = figures
    tables = {"heads": heads}
    for name, table in zip(("density", "error"), values):
        top = max(float(numpy.nanmax(table)), 1e-9)
        codes = numpy.where(numpy.isnan(table), NOTHING, numpy.nan_to_num(table) / top * (NOTHING - 1)).round()
        tables[name] = {"top": top} | _packed(codes.astype(numpy.uint8))
    return tables


def _maps(run: RunRecord, chosen: RoutingMap | None, room: int) -> tuple[list[dict], int]:
    """Maps that fit into ``room`` bytes, and how many did not."""

    def importance(recorded: RoutingMap) -> tuple:
        return recorded is not chosen, recorded.branch, recorded.step, recorded.head, recorded.layer

    waiting = sorted(run.trace.maps, key=importance)
    if not waiting:
        return [], 0
    detail = next((level for level in DETAILS if _size(_map(waiting[0], level)) * len(waiting) * 1.2 <= room), DETAILS[-1])
    found = []
    for recorded in waiting:
        described = _map(recorded, max(detail, FINE) if recorded is chosen else detail)
        room -= _size(described)
        if room < 0:
            break
        found.append(described)
    return found, len(waiting) - len(found)


def _map(recorded: RoutingMap, detail: tuple[int, int, int]) -> dict:
    coarse = coarser(recorded, *detail[:2])
    stride = _stride(coarse, detail[2])
    return {
        "layer": recorded.layer,
        "step": recorded.step,
        "branch": recorded.branch,
        "head": recorded.head,
        "density": round(recorded.density, 5),
        "queries": _packed(coarse.group_sizes),
        "keys": _packed(coarse.cluster_sizes),
        "groups": _packed(coarse.groups),
        "clusters": _packed(coarse.clusters),
        "exact": _packed(coarse.exact),
        "errors": _packed(coarse.error_codes) | {"lowest": LOWEST, "highest": HIGHEST, "codes": CODES},
        "grid": recorded.grid and [len(range(0, size, step)) for size, step in zip(recorded.grid, stride)],
        "stride": list(stride),
        "queryLabels": _packed(_strided(coarse.query_labels, recorded.grid, stride)),
        "keyLabels": _packed(_strided(coarse.key_labels, recorded.grid, stride)),
    }


@dataclass(frozen=True)
class CoarseMap:
    """A routing map of which neighbouring rows and columns were merged.

    Attributes:
        exact: uint8 ``[R, C]``, share of the pairs computed exactly, 255 for all of them.
        error_codes: uint8 ``[R, C]`` as in :class:`HeadRouting`, errors below the range of the colours as 0.
        group_sizes, cluster_sizes: tokens of each row and column; groups, clusters: how many were merged into it.
        query_labels, key_labels: row and column of each token.
    """

    exact: numpy.ndarray
    error_codes: numpy.ndarray
    group_sizes: numpy.ndarray
    cluster_sizes: numpy.ndarray
    groups: numpy.ndarray
    clusters: numpy.ndarray
    query_labels: numpy.ndarray
    key_labels: numpy.ndarray


def coarser(recorded: RoutingMap, rows: int, columns: int) -> CoarseMap:
    """Arrange a map and merge neighbours until it has at most ``rows`` rows and ``columns`` columns, about equal in tokens."""
    fine = arranged(recorded)
    row_sizes, column_sizes = fine.group_sizes, fine.cluster_sizes
    row_of, column_of = _buckets(row_sizes, rows), _buckets(column_sizes, columns)
    row_starts, column_starts = (numpy.flatnonzero(numpy.diff(of, prepend=-1)) for of in (row_of, column_of))

    def total(cells):
        return numpy.add.reduceat(numpy.add.reduceat(cells, row_starts, axis=0), column_starts, axis=1)

    pairs = row_sizes[:, None] * column_sizes
    merged_rows = numpy.add.reduceat(row_sizes, row_starts)
    # Errors of clusters add in squares; those of groups are relative to outputs of their own, so they average.
    errors = numpy.sqrt(total(fine.errors.astype(float) ** 2 * row_sizes[:, None]) / merged_rows[:, None])
    levels = (numpy.log10(numpy.maximum(errors, 10.0**LOWEST)) - LOWEST) / (HIGHEST - LOWEST) * CODES
    codes = (levels / CODE_STEP).round().clip(1, CODES // CODE_STEP) * CODE_STEP
    return CoarseMap(
        exact=(total(fine.exact * pairs) / total(pairs) * 255).round().astype(numpy.uint8),
        error_codes=numpy.where(errors < ERROR_RANGE[0], 0, codes).astype(numpy.uint8),
        group_sizes=merged_rows,
        cluster_sizes=numpy.add.reduceat(column_sizes, column_starts),
        groups=numpy.bincount(row_of),
        clusters=numpy.bincount(column_of),
        query_labels=row_of[fine.query_labels],
        key_labels=column_of[fine.key_labels],
    )


def _buckets(sizes: numpy.ndarray, count: int) -> numpy.ndarray:
    """For each group, in order, the number of the bucket that it falls in, without gaps."""
    if len(sizes) <= count:
        return numpy.arange(len(sizes))
    middle = numpy.cumsum(sizes) - sizes / 2
    return numpy.unique((middle / sizes.sum() * count).astype(int), return_inverse=True)[1]


def _stride(coarse: CoarseMap, tokens: int) -> tuple[int, int, int]:
    """Every how many rows and columns of tokens are sent; every frame is."""
    step = int(numpy.ceil(numpy.sqrt(len(coarse.key_labels) / tokens)))
    return 1, max(step, 1), max(step, 1)


def _strided(labels: numpy.ndarray, grid: tuple[int, int, int] | None, stride: tuple[int, int, int]) -> numpy.ndarray:
    return labels[:0] if grid is None else labels.reshape(grid)[tuple(slice(None, None, step) for step in stride)].ravel()


def _packed(values: numpy.ndarray) -> dict:
    """Unsigned integers of 8, 16 or 32 bits, little-endian, deflated, in base 64."""
    bits = next(size for size in (8, 16, 32) if int(values.max(initial=0)) < 2**size)
    raw = numpy.ascontiguousarray(values, dtype=f"<u{bits // 8}").tobytes()
    return {"bits": bits, "shape": list(values.shape), "data": base64.b64encode(zlib.compress(raw, 9)).decode()}
