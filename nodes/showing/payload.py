"""A run as data for the view in the browser, small enough to be kept with the workflow's history."""

from __future__ import annotations

import base64
import json
import zlib

import numpy

from ..recording.record import Found, RunRecord
from ..recording.routed import CODES, HIGHEST, LOWEST
from ..recording.summary import headline, nothing_recorded, warnings
from ..recording.trace import RoutingMap
from ..recording.words import Joined, Text, counted, duration, for_browser
from .coarse import Totals

VERSION = 1
MOST_BYTES = 1_900_000
MOST_RUNS = 4
# Rows and columns of a map, and tokens of a video, from fine to coarse; the first that fits is taken.
DETAILS = ((512, 1024, 40_000), (256, 512, 20_000), (160, 320, 20_000), (128, 256, 10_000), (96, 192, 5_000))
# The map that the view opens with is always sent in this detail.
FINE = DETAILS[1]
NOTHING = 255


def payload(found: Found, chosen: RoutingMap | None) -> dict:
    """What the view draws: the figures of the last runs, and as many of their routing maps as there is room for.

    Args:
        found: its run is the one to open with, whose maps come before those of other runs.
        chosen: the map to open with.
    """
    shown = found.run
    if shown is None:
        return {"version": VERSION, "runs": [], "missing": for_browser(nothing_recorded(found))}
    ordered = [shown, *(run for run in found.runs if run is not shown and run.trace.sparse)][:MOST_RUNS]
    data = {"version": VERSION, "matched": found.is_match, "runs": [_run(run, number) for number, run in enumerate(ordered)]}
    if chosen is not None:
        data["chosen"] = {"layer": chosen.layer, "step": chosen.step, "branch": chosen.branch, "head": chosen.head}
    while len(data["runs"]) > 1 and _size(data) > MOST_BYTES // 2:
        data["runs"].pop()
    for run, described in zip(ordered, data["runs"]):
        described["maps"], described["mapsLeftOut"] = _maps(run, chosen, MOST_BYTES - _size(data))
        described["mapsLeftOut"] += run.trace.maps_left_out
    return data


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
        "title": for_browser(_title(run, number)),
        "headline": for_browser(headline(run)),
        "warnings": [for_browser(text) for text in warnings(run)],
        "layers": trace.layers,
        "steps": steps,
        "reasons": [
            {"name": reason.name, "sentence": for_browser(reason.sentence), "remedy": for_browser(reason.remedy)} for reason in reasons
        ],
        "notFinite": sorted({(layer, step) for (_, layer, step), figures in trace.sparse.items() if not numpy.isfinite(figures).all()}),
        "dense": _packed(dense),
        "branches": {branch: _tables(run, branch, steps) for branch in trace.branches},
        "maps": [],
        "mapsLeftOut": 0,
    }


def _title(run: RunRecord, number: int) -> Joined:
    when = Text("earlier") if number else Text("this run")
    return Joined(", ", (when, counted(run.steps, "step"), duration(run.seconds)))


def _tables(run: RunRecord, branch: str, steps: int) -> dict:
    """Density and error ``[layers, steps, heads]`` in parts of their largest value."""
    heads = max(figures.shape[1] for (name, _, _), figures in run.trace.sparse.items() if name == branch)
    values = numpy.full((2, run.trace.layers, steps, heads), numpy.nan)
    for (name, layer, step), figures in run.trace.sparse.items():
        if name == branch:
            values[:, layer, step, : figures.shape[1]] = figures
    tables = {"heads": heads}
    for name, table in zip(("density", "error"), values):
        known = numpy.isfinite(table)
        top = max(float(table[known].max(initial=0)), 1e-9)
        codes = numpy.where(known, numpy.where(known, table, 0) / top * (NOTHING - 1), NOTHING).round()
        tables[name] = {"top": top} | _packed(codes.astype(numpy.uint8))
    return tables


def _maps(run: RunRecord, chosen: RoutingMap | None, room: int) -> tuple[list[dict], int]:
    """Maps that fit into ``room`` bytes, and how many did not."""

    def importance(recorded: RoutingMap) -> tuple:
        return recorded is not chosen, recorded.branch, recorded.step, recorded.head, recorded.layer

    waiting = sorted(run.trace.maps, key=importance)
    if not waiting:
        return [], 0
    first = Totals.of(waiting[0], *DETAILS[0][:2])
    detail = next((level for level in DETAILS if _size(_map(waiting[0], first, level)) * len(waiting) * 1.2 <= room), DETAILS[-1])
    found = []
    for recorded in waiting:
        own = max(detail, FINE) if recorded is chosen else detail
        described = _map(recorded, Totals.of(recorded, *own[:2]), own)
        room -= _size(described)
        if room < 0:
            break
        found.append(described)
    return found, len(waiting) - len(found)


def _map(recorded: RoutingMap, fine: Totals, detail: tuple[int, int, int]) -> dict:
    coarse = fine.merged(*detail[:2])
    stride = _stride(coarse, detail[2])
    return {
        "layer": recorded.layer,
        "step": recorded.step,
        "branch": recorded.branch,
        "head": recorded.head,
        "density": round(coarse.density, 5),
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


def _stride(coarse: Totals, tokens: int) -> tuple[int, int, int]:
    """Every how many rows and columns of tokens are sent; every frame is."""
    step = int(numpy.ceil(numpy.sqrt(len(coarse.key_labels) / tokens)))
    return 1, max(step, 1), max(step, 1)


def _strided(labels: numpy.ndarray, grid: tuple[int, int, int] | None, stride: tuple[int, int, int]) -> numpy.ndarray:
    return labels[:0] if grid is None else labels.reshape(grid)[tuple(slice(None, None, step) for step in stride)].ravel()


def _packed(values: numpy.ndarray) -> dict:
    """Unsigned integers of 8, 16 or 32 bits, little-endian, deflated, in base 64."""
    bits = next(size for size in (8, 16, 32) if int(values.max(initial=0)) < 2**size)
    raw = numpy.ascontiguousarray(values, dtype=f"<u{bits // 8}").tobytes()
    return {"bits": bits, "shape": list(values.shape), "data": base64.b64encode(zlib.compress(raw, 6)).decode()}
