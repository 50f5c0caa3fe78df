"""Quality of sparse attention against dense attention on the trained model, side by side with other methods.

python -m benchmarks.quality                       everything that fits the device
python -m benchmarks.quality --quick               a small clip, for a test
python -m benchmarks.quality --name quality_held_out --seeds 11 12 13 14    other clips, in files of their own
python -m benchmarks.quality --parts schedules     shares by step, against the time of a clip
python -m benchmarks.quality --parts standard few-step --methods "preset "    presets alone, in int8 beside full precision
python -m benchmarks.quality --bound               how tight the bound of the error is, layer by layer
python -m benchmarks.quality --plot-only CSV       tables and picture again, from the CSV

Every method gets the same noise, conditioning and schedule. Rows are written after each clip, so that a run cut short keeps what it has.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from .. import pack, results
from ..demo_model import sample
from . import front
from .bound import BoundedPack
from .calibrated import calibrated_methods
from .methods import (
    CORE_AUG,
    CORE_TAU,
    IN_INT8,
    OURS,
    PUBLISHED,
    REFERENCE_TARGET,
    SOL,
    Method,
    Scale,
    few_step_methods,
    scheduled_methods,
    sol_setting,
    standard_methods,
    warm_up_methods,
)
from .rows import KEY, bars, markdown, origin_of, summarize, table
from .run import Clip, errors_by_layer, figures, generate
from .schedules import CUDNN, FEW, FLASH, clip_time

DOCS = pack.ROOT / "docs"
SCALES = {"cpu": Scale(sample.SMALL_GRID, 6, 1.0, 2), "cuda": Scale(sample.LARGE_GRID, 20, 1.0, 4)}
QUICK_SCALE = Scale((5, 10, 16), 3, 1.0, 1)
SEEDS = {"cpu": [1], "cuda": [1, 2, 3, 4]}
USUAL_PARTS = ("standard", "few-step", "warm-up")
NO_PICTURE = "THE PICTURE IS LEFT OUT: {}; pip install -r requirements-bench.txt"
TIMES = {"clip_time": CUDNN, "clip_time_flash": FLASH}
PARTS = (*USUAL_PARTS, front.PART)
# What a second guidance scale repeats: it takes twice the time.
REPEATED = f"^({OURS}, |{PUBLISHED}, .*{REFERENCE_TARGET}$|{SOL}, {sol_setting(CORE_TAU, CORE_AUG)}$)"
BOUND_METHODS = f"^({OURS}|{PUBLISHED}), .*(density|share) {REFERENCE_TARGET}$"


def say(text: str) -> None:
    """Print above the progress bar."""
    tqdm.write(text)


class Bench:
    """Runs clips and keeps their rows.

    Args:
        options: the command line.
        scale: clip size and schedule.
    """

    def __init__(self, options: argparse.Namespace, scale: Scale):
        self.options, self.scale = options, scale
        self.device = torch.device(options.device)
        self.origin = results.provenance(self.device, options.commit)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.transformer = sample.load_demo_transformer(self.device, dtype)
        self.path = options.results / results.file_name(options.name, self.device)
        self.layers_path = options.results / results.file_name(f"{options.name}_layers", self.device)
        self.rows = results.read(self.path) if options.append and self.path.exists() else []
        self.layer_rows = results.read(self.layers_path) if options.append and self.layers_path.exists() else []

    def plans(self) -> Iterator[tuple[str, Scale, list[Method]]]:
        """Parts, and the methods of each, dense first."""
        scale, options = self.scale, self.options
        for part in options.parts:
            for guidance in options.guidance if part in ("standard", front.PART) else options.guidance[:1]:
                planned = replace(scale, guidance=guidance)
                if part == "standard":
                    methods = list(standard_methods(planned, self.device, say))
                    if options.calibration:
                        methods += calibrated_methods(options.calibration, planned)
                elif part == "few-step":
                    planned = replace(planned, steps=min(scale.steps, FEW), dense_steps=0)
                    methods = few_step_methods(planned)
                elif part == front.PART:
                    methods = scheduled_methods(planned)
                else:
                    methods = warm_up_methods(planned)
                patterns = (options.methods, "" if guidance == options.guidance[0] else REPEATED)
                yield part, planned, [method for method in methods if wanted(method, patterns)]
            if part == front.PART and scale.steps > FEW:
                few = replace(scale, steps=FEW)
                yield part, few, [method for method in scheduled_methods(few) if wanted(method, (options.methods,))]

    def run(self) -> None:
        """Every clip of every method, or as many as can begin within the seconds asked for; saves after each."""
        plans, end = list(self.plans()), time.monotonic() + self.options.seconds
        clips = sum(len(methods) * scale.steps for _, scale, methods in plans) * len(self.options.seeds)
        with tqdm(total=clips, unit="step", smoothing=0.05) as bar:
            for seed in self.options.seeds:
                for part, scale, methods in plans:
                    reference = None
                    for method in methods:
                        if time.monotonic() > end:
                            say(f"TIME IS UP: {bar.total - bar.n} steps were not run")
                            return
                        bar.set_description(f"clip {seed}, {label(method)}"[:60])
                        clip = generate(self.transformer, method, scale, seed, bar.update, compares=part != front.PART)
                        reference = reference or clip
                        self.keep(part, scale, method, seed, clip, reference)

    def keep(self, part: str, scale: Scale, method: Method, seed: int, clip: Clip, reference: Clip) -> None:
        """Put a clip's rows in the place of earlier ones of the same clip, and save."""
        grid = "x".join(map(str, scale.grid))
        key = dict(zip(KEY, (part, grid, scale.steps, scale.guidance, method.name, method.setting))) | {"seed": seed}
        row = {**key, "tokens": scale.tokens, "dense_steps": clip.host.dense_steps, **figures(clip, reference)}
        # The rates that clips are reckoned with are of full precision.
        if method.plan is not None and not method.setting.endswith(IN_INT8):
            times = {name: clip_time(method.plan, dense, 0.5 * method.shares_clusters) for name, dense in TIMES.items()}
            row |= {name: f"{value:.4f}" for name, value in times.items()}
        row |= self.origin
        self.rows = [other for other in self.rows if not same(other, key)] + [row]
        layers = [{**key, **self.origin, **found} for found in errors_by_layer(clip)]
        self.layer_rows = [other for other in self.layer_rows if not same(other, key)] + layers
        results.write(self.path, self.rows)
        results.write(self.layers_path, self.layer_rows)

    def bound(self) -> None:
        """Both sides of the error's bound on one clip; prints means per layer and writes every call and head."""
        methods = [method for method in standard_methods(self.scale, self.device, say) if re.search(BOUND_METHODS, label(method))]
        rows = []
        for method in methods:
            settings = method.start.args[0]
            bounded = BoundedPack(settings)
            with tqdm(total=self.scale.steps, desc=label(method)[:60], unit="step") as bar:
                generate(self.transformer, replace(method, start=lambda: bounded), self.scale, self.options.seeds[0], bar.update)
            rows += [{"method": method.name, "setting": method.setting, **row, **self.origin} for row in bounded.rows]
        results.write(self.options.results / results.file_name(f"{self.options.name}_bound", self.device), rows)
        print(bound_table(rows))


def wanted(method: Method, patterns: Sequence[str]) -> bool:
    """Whether all ``patterns`` are found in the method's label. Dense attention is always wanted."""
    return method.start is None or all(re.search(pattern, label(method)) for pattern in patterns)


def same(row: dict, key: dict) -> bool:
    """Whether ``row``, perhaps read from a file, is of the clip that ``key`` names."""
    return all(str(row[name]) == str(value) for name, value in key.items())


def label(method: Method) -> str:
    """Name and setting of a method, what ``--methods`` is searched in."""
    return f"{method.name}, {method.setting}" if method.setting else method.name


def bound_table(rows: Sequence[dict]) -> str:
    """Means over steps and heads for each method and layer."""
    columns = ("map_error", "routed_residual", "grouping_error", "bound", "bound_centred_keys")
    lines = [f"{'method':<84}{'layer':>6}" + "".join(f"{name.replace('_', ' '):>20}" for name in columns)]
    for method, setting, layer in dict.fromkeys((row["method"], row["setting"], row["layer"]) for row in rows):
        here = [row for row in rows if (row["method"], row["setting"], row["layer"]) == (method, setting, layer)]
        means = [sum(row[name] for row in here) / len(here) for name in columns]
        lines.append(f"{f'{method}, {setting}':<84}{layer:>6}" + "".join(f"{value:>20.3g}" for value in means))
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=tuple(SCALES))
    add("--seeds", nargs="+", type=int, metavar="SEED", help="clips (default: 1 on a CPU, 1 to 4 on a GPU)")
    add(
        "--guidance",
        nargs="+",
        type=float,
        metavar="SCALE",
        help="1 is without CFG; later ones get the main methods only (default: 1; 1 and 3 on a GPU)",
    )
    add(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(USUAL_PARTS),
        help="methods side by side; few steps; fewer dense first steps; schedules",
    )
    add("--methods", default="", metavar="REGEX", help="only methods whose name and setting match; dense always runs")
    add("--quick", action="store_true", help="a small clip of few steps")
    add("--calibration", type=Path, metavar="FILE", help="also follow this profile of benchmarks.calibrate")
    add("--bound", action="store_true", help="check the bound of the error instead")
    add("--seconds", type=float, default=float("inf"), help="begin no clip after so long (default: run them all)")
    add("--append", action="store_true", help="keep the other rows of the CSV")
    add("--plot-only", nargs="+", type=Path, metavar="CSV", help="make tables and picture from these CSVs and stop")
    add("--name", default="quality", help="how the names of the files begin (default: %(default)s)")
    add("--results", type=Path, default=results.FOLDER, metavar="FOLDER", help="where the CSVs go")
    add("--docs", type=Path, default=DOCS, metavar="FOLDER", help="where the picture and the tables go")
    add("--commit", help="what the rows say was measured, for a copy without its git history")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or SEEDS[options.device]
    options.guidance = options.guidance or ([1.0, 3.0] if options.device == "cuda" and not options.quick else [1.0])
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 1 when a bar is missed."""
    options = parse(arguments)
    if options.plot_only:
        return report([row for path in options.plot_only for row in results.read(path)], options.docs / options.name)
    bench = Bench(options, QUICK_SCALE if options.quick else SCALES[options.device])
    if options.bound:
        bench.bound()
        return 0
    bench.run()
    if not bench.rows:
        print("nothing was measured")
        return 1
    print(f"written: {bench.path} and {bench.layers_path}")
    return report(bench.rows, options.docs / options.name)


def report_schedules(rows: Sequence[dict], points: Sequence[front.Point], stem: Path) -> int:
    """Print the table of the schedules, and write it and the picture to files that begin with ``stem``."""
    text = front.table(points)
    print(text)
    stem.parent.mkdir(parents=True, exist_ok=True)
    tables = stem.with_name(f"{stem.name}_results.md")
    tables.write_text(f"{origin_of(rows)}\n{text}", encoding="utf-8")
    written = [tables]
    try:
        written += front.draw(points, stem)
    except ImportError as error:
        print(NO_PICTURE.format(error))
    print(f"written: {', '.join(map(str, written))}")
    return 0


def report(rows: Sequence[dict], stem: Path) -> int:
    """Print table and bars, write both and the picture to files that begin with ``stem``; 1 when a bar is missed.

    What was measured of schedules is about clip time, and has a table and a picture of its own.
    """
    schedules = front.points(rows)
    if schedules:
        return report_schedules(rows, schedules, stem)
    summaries = summarize(rows)
    verdicts = bars(summaries)
    print(table(summaries), *verdicts, sep="\n")
    stem.parent.mkdir(parents=True, exist_ok=True)
    tables = stem.with_name(f"{stem.name}_results.md")
    tables.write_text(markdown(rows, summaries, verdicts), encoding="utf-8")
    written = [tables]
    try:
        from .plot import draw
    except ImportError as error:
        print(NO_PICTURE.format(error))
    else:
        written += draw(summaries, stem)
    print(f"written: {', '.join(map(str, written))}")
    return 1 if any(bar.passed is False for bar in verdicts) else 0
