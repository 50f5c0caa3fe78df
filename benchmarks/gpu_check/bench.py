"""What SVG-EAR GPU Check measures, without ComfyUI: times of attention by length, break-even lengths, and tiles that suit the GPU.

python -m benchmarks.gpu_check               about 2 minutes, and compiling
python -m benchmarks.gpu_check --quick       about 20 seconds
python -m benchmarks.gpu_check --verify      then measure again whether what was found holds

Writes a CSV, the findings as the node keeps them, a picture and the text, and prints the text: owners of GPUs that nobody has measured
are asked to paste it into an issue.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import pack, results
from .attentions import BACKENDS, SDPA, attentions
from .verify import verify

pack.load()
from svg_ear.kernels import unavailable_reason  # noqa: E402
from svg_ear.nodes.checking.check import Check  # noqa: E402
from svg_ear.nodes.checking.measure import Measure  # noqa: E402
from svg_ear.nodes.checking.plan import FULL, QUICK  # noqa: E402
from svg_ear.nodes.checking.report import report, status  # noqa: E402
from svg_ear.nodes.patch.findings import Card, Findings  # noqa: E402
from svg_ear.nodes.patch.findings_file import write  # noqa: E402
from svg_ear.nodes.showing.gpu_check import gpu_check_figure  # noqa: E402

PICTURE_WIDTH = 1400


def say(text: str) -> None:
    """Print at once, so that a run cut short shows how far it came."""
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; 2 when there is nothing to check here, 1 when what was found does not hold, 0 otherwise."""
    options = parse(arguments)
    reason = "torch finds no GPU" if not torch.cuda.is_available() else unavailable_reason(torch.device("cuda"))
    if reason is not None:
        say(f"Nothing to check: {reason}.")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    origin = results.provenance(device, options.commit)
    with torch.inference_mode():
        measure = Measure(device, attentions([options.dense], device, say))
        plan = QUICK if options.quick else FULL
        checked = Check(Card.of(device, options.dense), measure, plan, lambda share, text: say(f"{share:4.0%} {text}")).run()
        stem = options.results / results.file_name("gpu_check", device).removesuffix(".csv")
        results.write(stem.with_suffix(".csv"), [{**row, **origin} for row in rows(checked.findings)])
        write(stem.with_suffix(".json"), checked.findings)
        gpu_check_figure(checked.findings, status(checked.findings), PICTURE_WIDTH).save(stem.with_suffix(".png"))
        text = report(checked, origin["commit"])
        stem.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        say(f"\n{text}\n")
        return verify(measure, checked.findings, options.dense, say) if options.verify else 0


def rows(findings: Findings) -> list[dict[str, object]]:
    """A row for each method at each size, then one for each break-even; an empty length says that dense was faster everywhere."""
    found = []
    for timing in findings.timings:
        dense = {findings.card.dense: timing.dense} | timing.others
        for method, milliseconds in (*dense.items(), *timing.sparse.items()):
            is_ours = isinstance(method, float)
            found.append(
                {
                    "what": "call",
                    "heads": timing.heads,
                    "tokens": timing.tokens,
                    "method": "svg-ear" if is_ours else method,
                    "density": method if is_ours else "",
                    "ms": f"{milliseconds:.4g}",
                    "speedup": f"{timing.dense / milliseconds:.4g}",
                }
            )
    for heads in findings.heads:
        for density in findings.densities:
            tokens = findings.measured(heads, density)
            length = "" if tokens == float("inf") else round(tokens)
            found.append({"what": "break-even", "heads": heads, "tokens": length, "method": "svg-ear", "density": density})
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="lengths up to 32,768 tokens, and no tiles are tried")
    add("--dense", choices=list(BACKENDS), default=SDPA, help="what break-evens are about (default: %(default)s)")
    add("--verify", action="store_true", help="measure tiles and break-evens again, and compare")
    add("--results", type=Path, default=results.FOLDER, metavar="FOLDER", help="where the files go")
    add("--commit", help="what the rows say was measured, for a copy without its git history")
    return parser.parse_args(arguments)
