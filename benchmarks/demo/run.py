"""Generate the clips within a budget of time, compare them, and write what was found."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from ..demo_model import sample
from ..quality.metrics import psnr
from .budget import Budget, TooSlow
from .clips import PUBLISHED, SCALES, SVG2, SVG_EAR, KeyShareMap, Scale, generate
from .figures import save_figures, table
from .pictures import contact_sheet, difference, painted, save_preview

DENSE, OURS = "dense", "SVG-EAR"
METHODS = {DENSE: None, OURS: SVG_EAR, "SVG-EAR as published": PUBLISHED, "SVG2": SVG2}
FIGURES = "figures.csv"
SECONDS = 180
GAIN = 4
SLOWER = """Sparse takes longer than dense here, as is to be expected: a clip of so few tokens has little to save, and on a CPU what finds
the blocks (clusters, probe, routing) is plain torch, without kernels. It gains on a GPU, from about 25,000 tokens on."""


class Demo:
    """The clips of one seed with every method, as far as they are done.

    Attributes:
        scale: of the clips.
        clips: by method.
        shares: how many queries saw each token of SVG-EAR's clip exactly.
    """

    def __init__(self, device: str, seed: int, folder: Path):
        self.device, self.seed, self.folder = device, seed, folder
        self._begin(SCALES[device][0])

    def _begin(self, scale: Scale) -> None:
        self.scale, self.clips, self.shares = scale, {}, KeyShareMap()

    def generate(self, seconds: float) -> None:
        """Generate the clips, of the largest scale that fits into the time; the table is written after each."""
        transformer = sample.load_demo_transformer(self.device, torch.bfloat16 if self.device == "cuda" else torch.float32)
        budget = Budget(seconds, SCALES[self.device])
        print(f"{self.scale} on {self.device}, in at most about {_words(seconds)}")
        while len(self.clips) < len(METHODS):
            budget.begin(self.scale, [settings is not None for settings in METHODS.values()], len(self.clips))
            try:
                self._remaining(transformer, budget)
            except TooSlow as slow:
                self._hurry(slow)

    def _hurry(self, slow: TooSlow) -> None:
        """Go on with one thread, since threads that have to share a core wait for each other; after that with smaller clips."""
        told = f"this machine is slow or busy, what is left would take {_words(slow.seconds)}:"
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            print(f"{told} this clip once more with one thread, which on a busy machine is faster")
            if OURS not in self.clips:
                self.shares = KeyShareMap()
        else:
            print(f"{told} smaller clips instead, {slow.smaller}")
            print(f"(to have the larger ones: make demo DEMO_ARGS='--seconds {2 * slow.seconds:.0f}')")
            self._begin(slow.smaller)

    def _remaining(self, transformer, budget: Budget) -> None:
        for label, settings in list(METHODS.items())[len(self.clips) :]:
            observe = self.shares if label == OURS else None
            self.clips[label] = generate(transformer, self.scale, self.seed, label, settings, observe, budget.step)
            save_figures(self.clips, self.device, self.folder / FIGURES)

    def psnr(self, label: str) -> float:
        """Of the clip of a method against the dense one, in dB."""
        return psnr(self.clips[label].frames, self.clips[DENSE].frames)

    def save_pictures(self) -> None:
        """Dense and SVG-EAR, their difference, and what was exact, as a sheet and as an animation."""
        dense, ours = self.clips[DENSE], self.clips[OURS]
        rows = {
            "dense attention": dense.frames,
            f"SVG-EAR, {ours.density:.0%} of the pairs exact": ours.frames,
            f"their difference, {GAIN} times": difference(ours.frames, dense.frames, GAIN),
            "share of queries that see a token exactly (yellow: most)": painted(ours.frames, self.shares.on_grid(self.scale.grid)),
        }
        contact_sheet(rows).save(self.folder / "contact_sheet.png")
        save_preview(rows, self.folder / "preview.webp")


def main() -> int:
    """Run the demo; 1 when SVG-EAR is not closer to dense than SVG2, 130 when it is interrupted."""
    options = _parse()
    demo = Demo(options.device, options.seed, options.output)
    try:
        demo.generate(options.seconds)
        demo.save_pictures()
    except KeyboardInterrupt:
        done = f"the figures of {', '.join(demo.clips)} are in {demo.folder / FIGURES}" if demo.clips else "no clip was done"
        print(*([table(demo.clips)] if demo.clips else []), f"stopped: {done}", sep="\n")
        return 130

    print(table(demo.clips))
    if demo.clips[OURS].attention_seconds > demo.clips[DENSE].attention_seconds:
        print(SLOWER)
    print(f"written: contact_sheet.png, preview.webp and {FIGURES} in {demo.folder}")
    print(f"demo: svg-ear density={demo.clips[OURS].density:.3f} psnr={demo.psnr(OURS):.2f} dB svg2 psnr={demo.psnr('SVG2'):.2f} dB")
    return 0 if demo.psnr(OURS) > demo.psnr("SVG2") else 1


def _parse() -> argparse.Namespace:
    """What was asked for; exits where the output folder cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description="A clip with dense attention and with SVG-EAR.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=tuple(SCALES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the clips: a slow machine makes smaller ones (%(default)s)")
    options = parser.parse_args()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.output).close()
    except OSError as error:
        remedy = "make it writable, or choose another: make demo DEMO_ARGS='--output FOLDER'"
        parser.exit(2, f"cannot write to the folder {options.output.absolute()} ({error.strerror}): {remedy}\n")
    return options


def _words(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
