"""What the attention of Wan-Animate-2 takes on this GPU: a call for each frame, beside dense ones and beside calls that share nothing.

python -m benchmarks.speed.frames

For each size one layer: a call for each of 21 frames and the reference, whose queries see the keys of all frames and of one pose.
Milliseconds are of a whole layer, of the host as well: where it takes longer than the GPU, the GPU waits. Needs a CUDA GPU, about half a
minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .. import pack
from .inputs import Shape, make_inputs

pack.load()
from svg_ear.kernels import ClusterState, SequenceLayout, Settings, SharedKeys, prepare, sparse_attention  # noqa: E402
from svg_ear.kernels.hollow import HollowCall  # noqa: E402

# Frames, rows and columns of tokens, the reference among the frames, from 832 x 480 to 1280 x 720.
SIZES = ((22, 30, 52), (22, 38, 66), (22, 45, 80))
HEADS = 40
DENSITIES = (0.05, 0.1, 0.2)
# Queries of a group: the pack's own choice, half of it and twice as many.
GROUPS = (0, 63, 252)
BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)


def main() -> int:
    """Print a table; 2 without a GPU."""
    if not torch.cuda.is_available():
        print("no CUDA GPU")
        return 2
    print(torch.cuda.get_device_name())
    print(f"{'frame':>6} {'keys':>7} {'calls':<28} {'ms a layer':>11} {'host ms':>8} {'of dense':>9} {'error':>8}")
    for grid in SIZES:
        _measure(grid)
    return 0


def _measure(grid: tuple[int, int, int]) -> None:
    shape = Shape("frames", HEADS, grid)
    q, k, v = make_inputs(shape, "structured", torch.device("cuda"), steps=1).step(0)
    frame = grid[1] * grid[2]
    # In the memory layout of the model, tokens first.
    joined = (torch.cat([part.transpose(1, 2) for part in (tensor, tensor[:, :, :frame])], dim=1) for tensor in (k, v))
    keys, values = (tensor.transpose(1, 2) for tensor in joined)
    queries = q.split(frame, dim=2)
    dense_times = []
    for backend in BACKENDS:
        with sdpa_kernel(backend):
            took, _ = _timed(lambda: [scaled_dot_product_attention(some, keys, values) for some in queries])
        dense_times.append(took)
        print(f"{frame:>6} {shape.tokens:>7} {backend.name.lower():<28} {took:>11.1f}")
    least = min(dense_times)
    expected = scaled_dot_product_attention(queries[-1], keys, values)
    layout = SequenceLayout(range(shape.tokens), (range(shape.tokens, shape.tokens + frame),), range(frame))
    whole = SequenceLayout(range(shape.tokens), (range(shape.tokens, shape.tokens + frame),), range(shape.tokens))
    cases = [(f"sparse {density:.0%}", Settings(density=density), True) for density in DENSITIES]
    cases += [(f"sparse 10%, {size} in a group", Settings(density=0.1, query_clusters=-(-frame // size)), True) for size in GROUPS[1:]]
    cases.append(("sparse 10%, nothing shared", Settings(density=0.1), False))
    prepare(HollowCall.like(queries[0], keys, values, cases[0][1], layout, None, None)).wait()
    for name, settings, sharing in cases:
        states = [ClusterState() for _ in queries]

        def layer() -> list[Tensor]:
            shared = SharedKeys() if sharing else None
            return [
                sparse_attention(some, keys, values, settings, layouts=layout, state=state, shared=shared).output
                for some, state in zip(queries, states)
            ]

        took, host = _timed(layer)
        error = ((layer()[-1] - expected).float().norm() / expected.float().norm()).item()
        print(f"{frame:>6} {shape.tokens:>7} {name:<28} {took:>11.1f} {host:>8.1f} {took / least:>9.2f} {error:>8.4f}")
    # The same pairs in one call, as other models ask for them.
    state = ClusterState()
    took, host = _timed(lambda: sparse_attention(q, keys, values, Settings(density=0.1), layouts=whole, state=state).output)
    print(f"{frame:>6} {shape.tokens:>7} {'sparse 10%, in one call':<28} {took:>11.1f} {host:>8.1f} {took / least:>9.2f}")


def _timed(run: Callable[[], object], repeats: int = 2) -> tuple[float, float]:
    """Milliseconds of ``run`` in a row, and of the host in it; twice before, where things are compiled and found out."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    host = 0.0
    for _ in range(repeats):
        before = time.perf_counter()
        run()
        host += time.perf_counter() - before
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / repeats, 1000 * host / repeats


if __name__ == "__main__":
    raise SystemExit(main())
