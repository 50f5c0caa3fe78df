"""What a whole clip takes in a real ComfyUI: full-size models with random weights, dense and sparse, side by side.

python -m benchmarks.runs                                      every model, 6 to 8 minutes a 720p clip on an H100
python -m benchmarks.runs --clips wan-14b/720p --methods dense sol balanced fast:density=0.03
python -m benchmarks.runs --methods dense balanced:precision=full balanced:precision=int8
python -m benchmarks.runs --clips wan-14b/480p/cfg5 --layers 10   a quarter of the blocks, reckoned up to the whole model
python -m benchmarks.runs --against ../older                   "balanced" of another checkout of this pack beside ours
python -m benchmarks.runs --tiny                               small models on a CPU, to try it
python -m benchmarks.runs --plot-only CSV                      table and picture again, from the CSV

Needs a CUDA GPU, a ComfyUI (in COMFYUI_PATH, around the pack, or in ~/comfy/ComfyUI) with its requirements, and
requirements-bench.txt. Methods that cannot run are said and left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import checkout as checkouts
from .. import pack
from . import comfyui
from .models import CLIPS, Clip
from .rows import CLIP_STEPS
from .spec import AGAINST, DEFAULT, NAMES, Spec

DOCS, RESULTS = pack.ROOT / "docs", Path(__file__).resolve().parent.parent / "results"
STEPS, DENSE_STEPS = 10, 3
TINY = {"steps": 3, "dense_steps": 2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 2 when it cannot run here, 1 when a method failed, 0 otherwise."""
    options = parse(arguments)
    if options.plot_only:
        return report(options.plot_only, options.docs)
    checkout = checkouts.find_checkout()
    if checkout is None:
        print(f"benchmarks.runs needs a ComfyUI, and there is none: {checkouts.HOW_TO_GET_ONE}")
        return 2
    try:
        comfyui.start(checkout, [f"--{argument}" for argument in options.comfyui], cpu=options.tiny)
    except RuntimeError as error:
        print(f"benchmarks.runs cannot run: {error}")
        return 2
    from .session import Session  # imports torch, which ComfyUI must do first

    print(f"{checkout}: {', '.join(map(str, options.clips))}; {', '.join(spec.text for spec in options.methods)}", flush=True)
    session = Session(options, checkout)
    session.run()
    if not session.rows:
        print("nothing was measured")
        return 1
    return report([session.path], options.docs)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    clips = ", ".join(map(str, CLIPS))
    add(
        "--clips",
        nargs="+",
        type=kind(Clip.parse),
        default=list(CLIPS),
        metavar="CLIP",
        help=f"MODEL/SIZE or MODEL/SIZE/cfgSCALE (all: {clips})",
    )
    add(
        "--methods",
        nargs="+",
        type=kind(Spec.parse),
        default=[Spec.parse(name) for name in DEFAULT],
        metavar="METHOD",
        help=f"of {', '.join(NAMES)}; with inputs of the node as balanced:density=0.15,min_tokens=0, and of sol as sol:tau=1.0",
    )
    add("--against", type=Path, metavar="FOLDER", help=f"another checkout of this pack: {AGAINST}PRESET (default: {AGAINST}balanced)")
    add(
        "--steps",
        type=int,
        default=STEPS,
        help=f"of sparse methods; a clip of {CLIP_STEPS} is reckoned from fewer (default: %(default)s)",
    )
    add("--dense-steps", type=int, default=DENSE_STEPS, help="of methods that are dense throughout (default: %(default)s)")
    add("--layers", type=int, help="about so many blocks of the model; the rest is reckoned")
    add("--seconds", type=float, help="sampling stops after so long, with the rows that there are")
    add("--tiny", action="store_true", help="small models and clips on the CPU, where nothing else is asked for of the steps")
    add("--comfyui", nargs="+", default=[], metavar="ARGUMENT", help="more arguments of ComfyUI, without dashes: disable-cuda-malloc")
    add("--append", action="store_true", help="keep the other rows of the CSV")
    add("--plot-only", nargs="+", type=Path, metavar="CSV", help="make table and picture from these CSVs and stop")
    add("--name", default="runs", help="how the name of the CSV begins (default: %(default)s)")
    add("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the CSV goes")
    add("--docs", type=Path, default=DOCS, metavar="FOLDER", help="where the picture and the table go")
    add("--commit", help="what the rows say was measured, for a copy without its git history")
    add("--against-commit", metavar="COMMIT", help="the same for --against")
    options = parser.parse_args(arguments)
    if options.tiny:
        for name, value in TINY.items():
            if getattr(options, name) == parser.get_default(name):
                setattr(options, name, value)
    is_asked = any(spec.against for spec in options.methods)
    if is_asked and not options.against:
        parser.error(f"methods that begin with {AGAINST} need --against")
    if options.against and not is_asked:
        options.methods = [*options.methods, Spec.parse(f"{AGAINST}balanced")]
    return options


def kind(parse_one: Callable[[str], object]) -> Callable[[str], object]:
    """``parse_one`` with its message kept by argparse."""

    def parsed(text: str) -> object:
        try:
            return parse_one(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def report(paths: Sequence[Path], folder: Path) -> int:
    """Print the table, write it and the picture to ``folder``; 1 when a method failed."""
    from .. import results  # imports torch
    from .table import markdown

    rows = [row for path in paths for row in results.read(path)]
    print(markdown(rows))
    folder.mkdir(parents=True, exist_ok=True)
    written = [*paths, folder / "runs_results.md"]
    written[-1].write_text(markdown(rows), encoding="utf-8")
    try:
        from .plot import draw
    except ImportError as error:
        print(f"THE PICTURE IS LEFT OUT: {error}; pip install -r requirements-bench.txt")
    else:
        written += draw(rows, folder / "runs")
    print(f"written: {', '.join(map(str, written))}")
    return 1 if any(row.get("error") for row in rows) else 0
