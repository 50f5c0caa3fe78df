"""The rows of the speed bench: what one shape costs with every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import torch

from .. import results
from .bars import REFERENCE
from .calibrated import CALIBRATED, calibrated_methods
from .inputs import SWEEP, Inputs, Shape, make_inputs
from .measure import extra_memory, host_synchronisation, interleaved, relative_error
from .methods import (
    BASELINE,
    FLASH,
    OURS,
    SOL_TAUS,
    Method,
    Settings,
    SparseCalls,
    cluster_methods,
    dense_methods,
    kitchen_methods,
    our_method,
)
from .pairs import FLOP_PER_PAIR

DENSITIES = (0.1, 0.05, 0.2, 0.03, 0.3)
# Those of the presets that most people run.
BRIEF_DENSITIES = (0.1, 0.2)
STAGE_RUNS = 3
SKIPPABLE = ("peers", "ours", CALIBRATED, "cluster")


@dataclass(frozen=True)
class Plan:
    """What to run and how long.

    Attributes:
        settings: of ours, and of calibrated calls but for their method; each of ``densities`` replaces its density.
        precisions: of ours, each of which replaces that of ``settings``.
        rounds: interleaved rounds of the shape that most bars are about; other models take one less, the sweep one.
        milliseconds: time that one method repeats for in a round.
        skip: of ``SKIPPABLE``, what not to run.
        say: prints a line at once.
    """

    settings: Settings
    densities: tuple[float, ...]
    precisions: tuple[str, ...]
    rounds: int
    milliseconds: float
    skip: tuple[str, ...]
    say: Callable[[str], None]


class Table:
    """The rows measured so far; every change is on disk at once."""

    def __init__(self, path: Path, origin: dict[str, str]):
        self.path, self.origin, self.rows = path, origin, []

    def saved(self) -> list[dict]:
        """The rows that have a time, all with the same columns, what they were measured on last."""
        columns = dict.fromkeys(name for row in self.rows for name in row)
        return [{**dict.fromkeys(columns, ""), **row, **self.origin} for row in self.rows if row.get("ms")]

    def save(self) -> None:
        """Write them."""
        results.write(self.path, self.saved())


def measure(shape: Shape, kind: str, brief: bool, plan: Plan, table: Table, device: torch.device) -> None:
    """All rows of one shape on one kind of data; ``brief`` for no more than the baseline and the closest rivals."""
    inputs = make_inputs(shape, kind, device)
    methods = chosen_methods(inputs, shape, brief, plan)
    common = {"shape": shape.name, "heads": shape.heads, "tokens": shape.tokens, "conditioning": shape.conditioning, "data": kind}
    rows = [{**common, "part": method.part, "method": method.name, **facts_of(method, inputs, shape, device)} for method in methods]
    add_errors(methods, rows)
    table.rows += rows
    rounds = 1 if shape in SWEEP else plan.rounds if shape.name == REFERENCE[0] else max(1, plan.rounds - 1)
    for samples in interleaved([method.run for method in methods], rounds, plan.milliseconds):
        for method, row, times in zip(methods, rows, samples):
            row["ms"], row["samples"] = f"{median(times) / method.calls:.4g}", len(times)
        add_ratios(rows)
        table.save()
    for row in rows:
        density, precision, speedup = (row.get(column, "") for column in ("density", "precision", "speedup"))
        plan.say(f"{shape.name:>14} {kind:<10} {row['method']:<42} {density:>5} {precision:>5} {row['ms']:>8} ms  {speedup:>6}")


def chosen_methods(inputs: Inputs, shape: Shape, brief: bool, plan: Plan) -> list[Method]:
    """What runs side by side at ``shape``."""
    densities = [density for density in plan.densities if not brief or density in BRIEF_DENSITIES]
    methods = dense_methods(inputs, (BASELINE,) if brief else (BASELINE, FLASH), plan.say)
    if "peers" in plan.skip:
        plan.say("comfy_kitchen is left out, as asked")
    else:
        methods += kitchen_methods(inputs, shape, SOL_TAUS[:1] if brief else SOL_TAUS, not brief, plan.say)
    if "ours" in plan.skip:
        plan.say(f"{OURS} is left out, as asked")
    else:
        kinds = product(densities, plan.precisions)
        methods += [our_method(inputs, shape, replace(plan.settings, density=density, precision=kind)) for density, kind in kinds]
    if CALIBRATED in plan.skip:
        plan.say("calibrated calls are left out, as asked")
    elif not brief:
        methods += calibrated_methods(inputs, shape, plan.settings, densities)
    if "cluster" in plan.skip:
        plan.say("k-means alone is left out, as asked")
    elif not brief:
        methods += cluster_methods(inputs, shape, plan.settings, plan.say)
    return methods


def facts_of(method: Method, inputs: Inputs, shape: Shape, device: torch.device) -> dict[str, object]:
    """What a row says beyond times; also warms the method up."""
    facts = dict(method.facts)
    method.run()
    if method.part == "cluster":
        return facts
    method.run()
    facts["extra_mib"] = extra_memory(method.run, device) / 2**20
    facts["extra_over_inputs"] = facts["extra_mib"] * 2**20 / inputs.nbytes
    if isinstance(method.run, SparseCalls):
        facts |= facts_of_ours(method.run, shape)
    elif facts["exact_share"] == 1:
        facts["pairs"] = shape.heads * shape.length**2
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in facts.items()}


def facts_of_ours(calls: SparseCalls, shape: Shape) -> dict[str, object]:
    """Synchronisations, arithmetic, state and stages of ours, or of calibrated calls."""
    facts: dict[str, object] = {"host_synchronisation": host_synchronisation(calls) or "none"}
    pairs = calls.pairs()
    facts["exact_share"] = (pairs.exact / shape.heads / shape.tokens - shape.conditioning) / shape.tokens
    facts["pairs"], facts["processed_pairs"] = pairs.useful, pairs.processed
    facts["state_mib"] = calls.state.nbytes() / 2**20
    return facts | {f"{name}_ms": milliseconds for name, milliseconds in calls.stage_milliseconds(STAGE_RUNS).items()}


def add_errors(methods: list[Method], rows: list[dict]) -> None:
    """How far each output is from the baseline's, which is dense attention in the same precision."""
    reference = next((method.run() for method in methods if method.name == BASELINE), None)
    if reference is None:
        return
    for method, row in zip(methods, rows):
        if method.part == "attention" and method.name != BASELINE:
            output = method.run.on_first_step() if isinstance(method.run, SparseCalls) else method.run()
            row["relative_error"] = f"{relative_error(output, reference):.4g}"


def add_ratios(rows: list[dict]) -> None:
    """Speed-up over the baseline, and FLOP rates: of attend where it is known, of the whole call for dense methods."""
    baseline = next((float(row["ms"]) for row in rows if row["method"] == BASELINE), None)
    for row in rows:
        if row["part"] == "attention" and baseline:
            row["speedup"] = f"{baseline / float(row['ms']):.4g}"
        seconds = float(row.get("attend_ms", row["ms"])) / 1000
        for pairs, column in (("pairs", "attend_useful_tflops"), ("processed_pairs", "attend_processed_tflops")):
            if pairs in row:
                row[column] = f"{row[pairs] * FLOP_PER_PAIR / seconds / 1e12:.4g}"
