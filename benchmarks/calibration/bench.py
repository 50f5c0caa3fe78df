"""Calibrate the demo model, and compare what comes of it with blocks chosen online, on clips that were not calibrated on.

python -m benchmarks.calibrate                         calibrate, write the profile, compare
python -m benchmarks.calibrate --clips 2 --seeds 1     less of both, for a test

Every clip is sampled twice, densely and while calibrating, so that the cost is known. Rows go to a CSV after each clip.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from .. import pack, results
from ..demo_model import sample
from ..quality.calibrated import CALIBRATED, COMPENSATED, PLAIN_MEANS, CalibratedAttention
from ..quality.methods import OURS, CountedPack, Method, Scale, Settings
from ..quality.run import figures, generate
from .methods import (
    SHAPES,
    CalibratingHost,
    Calibration,
    MatchedRaster,
    OnlineBlocks,
    Profile,
    identity,
    start_run,
    write_profile,
)

SCALES = {"cpu": Scale(sample.SMALL_GRID, 6, 1.0, 2), "cuda": Scale(sample.LARGE_GRID, 20, 1.0, 4)}
# Calibration clips; the benches of quality use the seeds from 1 on.
FIRST_CLIP = 1001
CLIPS = 16
SEEDS = (1, 2, 3, 4)
PROFILE = pack.ROOT / "build" / "svg_ear_demo_calibration.safetensors"


def sample_clip(transformer, seed: int, scale: Scale, calibration: Calibration | None) -> float:
    """Seconds that one dense clip takes, learned from or not."""
    run = None if calibration is None else start_run(calibration, scale)
    host = CalibratingHost(transformer, run)

    def stepped(step: int, steps: int) -> None:
        host.step = step

    began = perf_counter()
    latents = sample.sample(transformer, seed, scale.grid, steps=scale.steps, guidance=scale.guidance, progress=stepped)
    if run is not None:
        run.finish()
    # Waits for the device.
    latents.sum().item()
    return perf_counter() - began


def calibrate(transformer, seeds: Sequence[int], scale: Scale, options: dict[str, object]) -> tuple[Profile, dict[str, float]]:
    """A profile of the clips of ``seeds``, and the seconds that sampling them took without and with calibrating."""
    calibration, seconds = Calibration(**options), {"dense_seconds": 0.0, "calibrating_seconds": 0.0}
    # Kernels are compiled in a clip that does not count.
    sample_clip(transformer, seeds[0], Scale(scale.grid, 1, scale.guidance, 0), Calibration(**options))
    with tqdm(seeds, desc="calibrating", unit="clip") as bar:
        for seed in bar:
            seconds["dense_seconds"] += sample_clip(transformer, seed, scale, None)
            seconds["calibrating_seconds"] += sample_clip(transformer, seed, scale, calibration)
            bar.set_postfix_str(f"{seconds['calibrating_seconds'] / seconds['dense_seconds']:.2f}x the time of dense sampling")
    return calibration.profile(identity(transformer), next(transformer.parameters()).device), seconds


def methods(profile: Profile, steps: int) -> Iterator[Method]:
    """Dense first, then all at the density of ``profile``."""

    def method(name: str, setting: str, kind: type, settings: Settings) -> Method:
        return Method(name, setting, partial(kind, profile, settings, steps))

    yield Method("dense", "", None)
    yield method("calibrated", "", CalibratedAttention, CALIBRATED)
    yield method("calibrated, compensated", "", CalibratedAttention, COMPENSATED)
    yield method("calibrated, compensated", "plain means", CalibratedAttention, PLAIN_MEANS)
    yield method("position blocks, raster", "blocks of 128, dropped", OnlineBlocks, CALIBRATED)
    yield method("position blocks, raster", "blocks of 128, pooled", OnlineBlocks, PLAIN_MEANS)
    yield method("position blocks, raster", "blocks of 64, pooled", MatchedRaster, CALIBRATED)
    yield Method(OURS, "the same exact share", partial(CountedPack, Settings(density=profile.density)))


def compare(transformer, profile: Profile, scale: Scale, seeds: Sequence[int], keep) -> None:
    """Every method on every held-out clip; ``keep`` takes a row after each."""
    every = list(methods(profile, scale.steps))
    with tqdm(total=len(every) * len(seeds), unit="clip") as bar:
        for seed in seeds:
            reference = None
            for method in every:
                bar.set_description(f"{method.name} {method.setting}".strip()[:50])
                clip = generate(transformer, method, scale, seed, lambda: None)
                reference = reference or clip
                keep({"method": method.name, "setting": method.setting, "seed": seed} | figures(clip, reference))
                bar.update()


def table(rows: Sequence[dict]) -> str:
    """Means over the clips of each method."""
    lines = [f"{'method':<56}{'pairs':>8}{'PSNR dB':>9}{'SSIM':>8}{'error':>8}"]
    for method in dict.fromkeys((row["method"], row["setting"]) for row in rows):
        own = [row for row in rows if (row["method"], row["setting"]) == method]
        if own[0]["psnr_db"] == "":
            continue
        names = ("exact_share", "psnr_db", "ssim", "attention_error")
        share, psnr, ssim, error = (sum(float(row[name]) for row in own) / len(own) for name in names)
        lines.append(f"{', '.join(filter(None, method)):<56}{share:>8.1%}{psnr:>9.2f}{ssim:>8.4f}{error:>8.4f}")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=tuple(SCALES))
    add("--clips", type=int, default=CLIPS, help="clips to calibrate on (default: %(default)s)")
    add("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED", help="held-out clips (default: 1 to 4)")
    add("--steps", type=int, help="denoising steps (default: 6 on a CPU, 20 on a GPU); a fifth and more of them stay dense")
    add("--density", type=float, default=0.2, help="share of the blocks of every row (default: %(default)s); 0 keeps what --energy says")
    add("--energy", type=float, default=0.0, help="with --density 0: attention that the blocks of the last steps hold; 0 is as published")
    add("--shapes", nargs="+", default=list(SHAPES), choices=tuple(SHAPES), metavar="SHAPE", help=f"of blocks: some of {', '.join(SHAPES)}")
    add("--repeating", action="store_true", help="compute a quarter of the heads whose output repeats, as published")
    add("--profile", type=Path, default=PROFILE, metavar="FILE", help="where the profile goes (default: %(default)s)")
    add("--name", default="calibration", help="how the name of the CSV begins (default: %(default)s)")
    add("--results", type=Path, default=results.FOLDER, metavar="FOLDER", help="where the CSV goes")
    add("--commit", help="what the rows say was measured, for a copy without its git history")
    options = parser.parse_args(arguments)
    if options.clips < 1:
        parser.error(f"--clips is {options.clips}; calibrate on at least one clip")
    calibrated_on = range(FIRST_CLIP, FIRST_CLIP + options.clips)
    if same := sorted(set(options.seeds) & set(calibrated_on)):
        parser.error(f"--seeds {same} are calibrated on; take others than {FIRST_CLIP} to {calibrated_on[-1]}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrate, write the profile, and compare."""
    options = parse(arguments)
    scale, device = SCALES[options.device], torch.device(options.device)
    if options.steps:
        scale = Scale(scale.grid, options.steps, scale.guidance, max(1, -(-options.steps // 5)))
    transformer = sample.load_demo_transformer(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    seeds = range(FIRST_CLIP, FIRST_CLIP + options.clips)
    chosen = {"density": options.density, "energy": options.energy, "shapes": options.shapes, "repeating": options.repeating}
    profile, seconds = calibrate(transformer, seeds, scale, chosen)
    profile = write_profile(options.profile, profile, made_by="benchmarks.calibrate", overwrite=True)
    ratio = seconds["calibrating_seconds"] / seconds["dense_seconds"]
    print(
        f"{options.clips} clips: {seconds['dense_seconds']:.1f} s dense, {seconds['calibrating_seconds']:.1f} s calibrating, {ratio:.2f}x"
    )
    print(f"{options.profile}: {options.profile.stat().st_size / 1e3:.0f} kB, {profile.density:.1%} of the pairs, ", end="")
    shares = {name: f"{share:.3f}" for name, share in profile.shape_shares().items()}
    print(f"{len(profile.masks)} masks, shapes {shares}, {profile.repeats.mean():.1%} of the heads repeat")

    path = options.results / results.file_name(options.name, device)
    origin = results.provenance(device, options.commit)
    about = {"grid": "x".join(map(str, scale.grid)), "tokens": scale.tokens, "steps": scale.steps, "dense_steps": scale.dense_steps}
    about |= {"clips": options.clips, "budget": str(profile.budget)}
    about |= {"shapes": " ".join(f"{name} {share}" for name, share in shares.items())}
    about |= {"repeating_heads": f"{profile.repeats.mean():.3f}", "profile_density": f"{profile.density:.4f}"}
    about |= {name: f"{value:.2f}" for name, value in seconds.items()} | {"calibrating_over_dense": f"{ratio:.3f}"}
    rows = []

    def keep(row: dict) -> None:
        rows.append(row | about | origin)
        results.write(path, rows)

    compare(transformer, profile, scale, options.seeds, keep)
    print(table(rows), f"written: {path}", sep="\n")
    return 0
