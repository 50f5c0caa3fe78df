"""Time of an attention call and of its stages, side by side with dense attention and with other sparse attention.

python -m benchmarks.speed                   everything, some minutes on an H200
python -m benchmarks.speed --quick           one shape, one density
python -m benchmarks.speed --compile-time    first call with an empty Triton cache, then other lengths
python -m benchmarks.speed --host-time       milliseconds of the host for a warm call, and its kernels; --against another checkout
python -m benchmarks.speed --plot-only       the picture again, from the CSV

Needs a CUDA GPU and requirements-bench.txt. Peers that are not installed are said and left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from .. import pack, results
from .bars import DRAWN, REFERENCE, Bar, bars, break_even, overtaking
from .compilation import compilation_bars, measure_compilation
from .enqueue import enqueueing_bars, measure_enqueueing
from .inputs import KINDS, MODELS, SHAPES, SWEEP
from .rows import BRIEF_DENSITIES, DENSITIES, SKIPPABLE, Plan, Table, measure

pack.load()
from svg_ear.kernels import Settings  # noqa: E402
from svg_ear.kernels.settings import PRECISIONS  # noqa: E402
from svg_ear.nodes.patch.lengths import cautious_tokens  # noqa: E402
from svg_ear.nodes.patch.options import PRESETS, Options  # noqa: E402

DOCS = pack.ROOT / "docs"
QUICK = {"shapes": ["wan-480p"], "densities": [0.1], "rounds": 1, "milliseconds": 50.0}


def say(text: str) -> None:
    """Print at once, so that a run cut short shows how far it came."""
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 2 when it cannot run here, 1 when a bar is missed, 0 otherwise."""
    options = parse(arguments)
    device = torch.device("cuda")
    if options.plot_only:
        plot(results.read(options.plot_only), options.docs)
        return 0
    if not torch.cuda.is_available():
        say(f"benchmarks.speed needs a CUDA GPU, and torch {torch.__version__} finds none here: nothing was measured")
        return 2
    origin = results.provenance(device, options.commit)
    settings = Settings(**dict(options.set))
    say(f"{origin} {settings}")
    with torch.inference_mode():
        if options.compile_time:
            rows = measure_compilation(SHAPES[options.shapes[0]], settings, options.data[0], device, say)
            results.write(options.results / results.file_name("speed_compile", device), [{**row, **origin} for row in rows])
            return report(compilation_bars(rows))
        if options.host_time:
            packages = {origin["commit"]: pack.load()}
            if options.against:
                packages[options.against.resolve().name] = pack.load(options.against.resolve(), "svg_ear_against")
            kernels = {name: import_module(".kernels", package.__name__) for name, package in packages.items()}
            rows = measure_enqueueing(kernels, dict(options.set), options.data[0], device, say)
            results.write(
                options.results / results.file_name("speed_host", device), [{**row, **origin, "commit": row["commit"]} for row in rows]
            )
            return report(enqueueing_bars(rows))
        precisions = (settings.precision,) if "precision" in dict(options.set) else PRECISIONS
        plan = Plan(settings, tuple(options.densities), precisions, options.rounds, options.milliseconds, tuple(options.skip), say)
        table = Table(options.results / results.file_name("speed", device), origin)
        began = time.perf_counter()
        for name in options.shapes:
            for kind in options.data if name == REFERENCE[0] else options.data[:1]:
                measure(SHAPES[name], kind, SHAPES[name] in SWEEP or kind != options.data[0], plan, table, device)
                say(f"{time.perf_counter() - began:.0f} s so far; {table.path} has {len(table.rows)} rows")
    for density in BRIEF_DENSITIES:
        tokens = break_even(table.rows, density)
        say(f"break-even at density {density}: {'not measured' if tokens is None else f'{tokens:.0f} tokens'}")
        tokens = overtaking(table.rows, density)
        say(f"int8 overtakes full at density {density}: {'not measured' if tokens is None else f'{tokens:.0f} tokens'}")
    if options.data[0] == DRAWN:
        plot(table.saved(), options.docs)
    presets = [Options(preset=name) for name in PRESETS]
    least, most = min(preset.settings().density for preset in presets), max(preset.first_density() for preset in presets)
    return report(bars(table.rows, cautious_tokens(device), [density for density in DENSITIES if least <= density <= most]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = {"models": MODELS, "sweep": SWEEP}
    known = (*groups, *SHAPES)
    add = parser.add_argument
    add("--shapes", nargs="+", default=list(groups), choices=known, metavar="SHAPE", help=f"of {', '.join(known)} (default: all)")
    add("--densities", nargs="+", type=float, default=list(DENSITIES), help="shares of exact pairs (default: %(default)s)")
    add("--data", nargs="+", choices=KINDS, default=list(KINDS), help="how inputs are made; the second kind at one shape only")
    add("--skip", nargs="+", default=[], choices=SKIPPABLE, help="what not to run: comfy_kitchen, ours, calibrated calls, k-means alone")
    add(
        "--set",
        nargs="+",
        type=setting,
        default=[],
        metavar="NAME=VALUE",
        help="of the settings of ours, such as recluster_every=2 or precision=int8; both precisions where none is named",
    )
    add("--rounds", type=int, default=3, help="interleaved rounds at the first shape (default: %(default)s)")
    add("--milliseconds", type=float, default=200.0, help="repetition time of a method in a round (default: %(default)s)")
    add("--quick", action="store_true", help="one round at one shape and density, where nothing else is asked for")
    add("--compile-time", action="store_true", help="measure the first call and new lengths instead, at the first shape")
    add("--host-time", action="store_true", help="measure what warm calls ask of the host instead, at the shapes of the models")
    add("--against", type=Path, metavar="FOLDER", help="with --host-time, another checkout of the pack to measure in turn")
    add("--plot-only", type=Path, metavar="CSV", help="draw the picture from a CSV and stop")
    add("--results", type=Path, default=results.FOLDER, metavar="FOLDER", help="where the CSV goes")
    add("--docs", type=Path, default=DOCS, metavar="FOLDER", help="where the picture goes")
    add("--commit", help="what the rows say was measured, for a copy without its git history")
    options = parser.parse_args(arguments)
    if options.quick:
        for name, value in QUICK.items():
            if getattr(options, name) == parser.get_default(name):
                setattr(options, name, value)
    names = [name for group in options.shapes for name in ([shape.name for shape in groups[group]] if group in groups else [group])]
    options.shapes = list(dict.fromkeys(names))
    return options


def setting(text: str) -> tuple[str, object]:
    """``name=value`` with the value in the type of the setting's default.

    Raises argparse.ArgumentTypeError for a name or value that :class:`Settings` does not have.
    """
    name, _, value = text.partition("=")
    default = getattr(Settings(), name, None)
    if not isinstance(default, (bool, int, float, str)):
        raise argparse.ArgumentTypeError(f"{name!r} is no setting; see kernels/settings.py")
    return name, value == "True" if isinstance(default, bool) else type(default)(value)


def plot(rows: Sequence[dict], folder: Path) -> None:
    """Draw the picture; say so when matplotlib is missing."""
    try:
        from .plot import draw
    except ImportError as error:
        say(f"THE PICTURE IS LEFT OUT: {error}; pip install -r requirements-bench.txt")
        return
    say(f"written: {', '.join(str(path) for path in draw(rows, folder / 'speed'))}")


def report(verdicts: Sequence[Bar]) -> int:
    """Print every bar; 1 when one is missed."""
    for bar in verdicts:
        say(str(bar))
    return 1 if any(bar.passed is False for bar in verdicts) else 0
