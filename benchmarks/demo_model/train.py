"""Train the demo model: ``python -m benchmarks.demo_model.train --minutes 8 --out build/demo_model``.

Flow matching on procedural video made on the same device. Writes ``weights_bf16.safetensors`` and
``weights_fp32.safetensors`` (averaged weights), ``checkpoint.pt`` (to resume from) and ``training_log.csv``.
"""

import argparse
import copy
import csv
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .model import WanTransformer
from .optimizer import Muon
from .video import CELL, UNIFORMS, codebook, conditioning, encode, object_count, render

BATCH = {
    (5, 14, 24): 32,
    (9, 15, 26): 16,
    (9, 22, 40): 8,
    (21, 15, 26): 8,
    (21, 22, 40): 3,
    (21, 30, 52): 2,
}
PHASES = (
    (0.40, {(5, 14, 24): 55, (9, 15, 26): 35, (9, 22, 40): 10}),
    (0.65, {(5, 14, 24): 20, (9, 15, 26): 20, (9, 22, 40): 40, (21, 15, 26): 20}),
    (1.00, {(5, 14, 24): 15, (9, 15, 26): 10, (9, 22, 40): 20, (21, 15, 26): 10, (21, 22, 40): 15, (21, 30, 52): 30}),
)
TINY_BATCH = {(2, 4, 6): 4, (3, 4, 6): 2}
TINY_PHASES = ((1.0, {(2, 4, 6): 1, (3, 4, 6): 1}),)

PEAK_RATE = 1e-3
MUON_FACTOR = 4.0
WARMUP_STEPS = 300
DECAY_FROM = 0.5
FINAL_RATE = 0.02
EMA_DECAY = 0.998
NULL_SHARE = 0.12
LOG_EVERY = 50


def training_shift(grid):
    """Sigma shift for a token grid: larger clips keep more structure at a given noise level, so they see more noise."""
    return 2.5 * (math.prod(grid) / 1680) ** 0.25


def draw_sigmas(count, shift, device):
    """Noise levels in (0, 1), stratified over the batch and shifted as in Wan's sampler; fp32 ``[count]``."""
    u = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    return shift * u / (1 + (shift - 1) * u)


def draw_clips(grid, count, book):
    """Latents ``[count, 16, t, 2h, 2w]`` and conditioning ``[count, TOKENS, 4096]`` of random clips at a token grid."""
    rows = torch.rand(count, UNIFORMS, device=book.device)
    frames, height, width = grid[0], 2 * grid[1], 2 * grid[2]
    objects = object_count(height)
    latents = encode(render(rows, frames, CELL[0] * height, CELL[1] * width, objects))
    return latents, conditioning(rows, objects, book)


def flow_loss(model, latents, context, sigmas):
    """Mean squared error of the predicted ``noise - data`` at ``sigmas [B]``, averaged over everything."""
    noise = torch.randn_like(latents)
    level = sigmas[:, None, None, None, None]
    prediction = model((1 - level) * latents + level * noise, sigmas * 1000, context)
    return (prediction.float() - (noise - latents)).square().mean()


def learning_rate(step, progress):
    """Share of the peak rate: linear warm-up by step, flat, then cosine decay by progress in [0, 1]."""
    decay = max(0.0, (progress - DECAY_FROM) / (1 - DECAY_FROM))
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, decay)))
    return min(1.0, (step + 1) / WARMUP_STEPS) * cosine


def make_optimizers(model, rate, device):
    """Muon for the matrices of the blocks; AdamW for the rest, a quarter of the rate for the 4096-wide text projection."""
    wide = model.text_embedding[0].weight
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    special = {id(p) for p in (wide, *matrices)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in special], "lr": rate},
        {"params": [wide], "lr": rate / 4},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda")
    optimizers = (Muon(matrices, MUON_FACTOR * rate), adam)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


class Trainer:
    """Model, average, optimisers and the book of conditioning on one device."""

    def __init__(self, device, tiny, peak_rate):
        torch.manual_seed(0)
        self.device = device
        self.batch, self.phases = (TINY_BATCH, TINY_PHASES) if tiny else (BATCH, PHASES)
        self.model = WanTransformer(layers=1, ffn_dim=64) if tiny else WanTransformer()
        self.model.to(device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizers = make_optimizers(self.model, peak_rate, device)
        self.book = codebook().to(device)
        self.step = 0
        self.clips = 0
        self.elapsed = 0.0
        if device.type == "cuda":
            for block in self.model.blocks:
                block.compile()

    def update(self, grid, progress):
        """One optimiser step on clips of ``grid``; returns the loss as a tensor, without waiting for the device."""
        count = self.batch[grid]
        with torch.no_grad():
            latents, context = draw_clips(grid, count, self.book)
            context = context * (torch.rand(count, 1, 1, device=self.device) >= NULL_SHARE)
        sigmas = draw_sigmas(count, training_shift(grid), self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = flow_loss(self.model, latents, context, sigmas)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = learning_rate(self.step, progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"]
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        self.clips += count
        return loss.detach()

    def warm_up(self):
        """Compile for every grid and print the time of a step; the steps count as training at the warm-up's low rate."""
        for grid, count in self.batch.items():
            self.update(grid, 0.0)
            self.update(grid, 0.0).item()
            start = time.monotonic()
            losses = [self.update(grid, 0.0) for _ in range(3)]
            loss = torch.stack(losses).mean().item()
            if not math.isfinite(loss):
                raise RuntimeError(f"loss {loss} at grid {grid}: training would be wasted")
            print(f"{grid} x {count}: {(time.monotonic() - start) / 3 * 1000:.0f} ms a step, loss {loss:.3f}", flush=True)

    def train(self, minutes, log):
        """Train until ``minutes`` of training in all (earlier runs included) and write one log row per grid and interval."""
        start = time.monotonic() - self.elapsed * 60
        losses = {}
        while True:
            self.elapsed = (time.monotonic() - start) / 60
            progress = self.elapsed / minutes
            if progress >= 1:
                return
            mixture = next(weights for end, weights in self.phases if progress < end)
            grid = random.Random(self.step).choices(list(mixture), list(mixture.values()))[0]
            losses.setdefault(grid, []).append(self.update(grid, progress))
            if self.step % LOG_EVERY == 0:
                for grid, values in losses.items():
                    mean = torch.stack(values).mean().item()
                    row = [f"{self.elapsed:.3f}", self.step, self.clips, "x".join(map(str, grid)), len(values), f"{mean:.5f}"]
                    log.writerow([*row, f"{self.optimizers[1].param_groups[0]['lr']:.2e}"])
                    if self.step % (10 * LOG_EVERY) == 0:
                        print(*row, flush=True)
                losses = {}

    def save(self, folder):
        """Write both precisions of the averaged weights and the checkpoint."""
        weights = {name: value.contiguous() for name, value in self.ema.state_dict().items()}
        save_file(weights, folder / "weights_fp32.safetensors")
        save_file({name: value.bfloat16() for name, value in weights.items()}, folder / "weights_bf16.safetensors")
        torch.save(
            {
                "model": self.model.state_dict(),
                "ema": weights,
                "optimizers": [one.state_dict() for one in self.optimizers],
                "step": self.step,
                "clips": self.clips,
                "elapsed": self.elapsed,
            },
            folder / "checkpoint.pt",
        )

    def resume(self, path):
        """Continue from a checkpoint, or start from averaged weights where ``path`` is a safetensors file."""
        if path.suffix == ".safetensors":
            for model in (self.model, self.ema):
                model.load_state_dict(load_file(path))
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, values in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(values)
        self.step, self.clips, self.elapsed = state["step"], state["clips"], state["elapsed"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="training time in all, without compilation")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, checkpoint and log")
    parser.add_argument("--resume", type=Path, help="checkpoint.pt of an earlier run, or weights to start from")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="peak learning rate")
    parser.add_argument("--attention", choices=("cudnn", "flash"), default="cudnn", help="PyTorch's attention kernel on a GPU")
    parser.add_argument("--tiny", action="store_true", help="a minuscule model and grids, to check the script on a CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(options.attention == "cudnn")
        torch.backends.cuda.enable_flash_sdp(options.attention == "flash")
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(False)
    trainer = Trainer(device, options.tiny, options.rate)
    if options.resume:
        trainer.resume(options.resume)
    trainer.warm_up()
    path = options.out / "training_log.csv"
    with open(path, "a", newline="", buffering=1) as file:
        log = csv.writer(file)
        if path.stat().st_size == 0:
            log.writerow(["minutes", "step", "clips", "token_grid", "steps_in_mean", "loss", "learning_rate"])
        trainer.train(options.minutes, log)
    trainer.save(options.out)
    print(f"{trainer.step} steps, {trainer.clips} clips, {trainer.elapsed:.2f} minutes", flush=True)


if __name__ == "__main__":
    main()
