"""Runs and routing maps of any size without a model."""

import numpy as np
from svg_ear.nodes.recording.reasons import DENSE_BLOCK, WARM_UP_STEP
from svg_ear.nodes.recording.record import RunRecord
from svg_ear.nodes.recording.trace import RoutingMap, TraceRecord


def routing_map(layer=1, step=2, branch="cond", head=0, groups=12, clusters=30, grid=(3, 8, 10), seed=0):
    """Blocks along a diagonal, numbered at random."""
    random = np.random.default_rng(seed)
    tokens = int(np.prod(grid))
    distance = np.abs(np.linspace(0, 1, groups)[:, None] - np.linspace(0, 1, clusters))
    exact = distance < 0.1
    codes = (230 * (1 - distance)).astype(np.uint8)
    rows, columns = random.permutation(groups), random.permutation(clusters)
    labels = [np.sort(random.integers(0, count, tokens)).astype(np.int16) for count in (groups, clusters)]
    exact, codes = (np.ascontiguousarray(cells[rows][:, columns]) for cells in (exact, codes))
    return RoutingMap(layer, step, branch, head, exact, codes, *labels, grid)


def run_record(maps=None, layers=4, steps=6, heads=2, **changes):
    """A run whose first step and first layer stayed dense."""
    random = np.random.default_rng(1)
    sparse = {
        (branch, layer, step): np.stack((np.full(heads, 0.1), random.random(heads) / 10)).astype(np.float32)
        for branch in ("cond", "uncond")
        for layer in range(1, layers)
        for step in range(1, steps)
    }
    dense = {(layer, 0): WARM_UP_STEP for layer in range(layers)} | {(0, step): DENSE_BLOCK for step in range(1, steps)}
    maps = (
        tuple(routing_map(layer, step, branch) for branch in ("cond", "uncond") for layer in (1, 3) for step in (1, 5))
        if maps is None
        else maps
    )
    return RunRecord(
        **{
            "architecture": "Wan",
            "steps": steps,
            "seconds": 2.0,
            "sparse_calls": len(sparse),
            "dense_calls": {WARM_UP_STEP: layers, DENSE_BLOCK: steps - 1},
            "density": 0.1,
            "estimated_error": 0.05,
            "trace": TraceRecord(layers, sparse, dense, maps),
        }
        | changes
    )
