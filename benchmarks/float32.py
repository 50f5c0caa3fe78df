"""What float32 inputs cost: computed as they are, in bfloat16 with the casts counted, and dense. Needs a GPU.

python -m benchmarks.float32
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from . import pack

SHAPES = ((12, 32_760), (40, 75_600))
CALLS = 2


def main() -> None:
    """Print milliseconds of a warm call, and how far its output is from dense float32."""
    pack.load()
    from svg_ear.kernels import ClusterState, sparse_attention

    for heads, tokens in SHAPES:
        generator = torch.Generator("cuda").manual_seed(0)
        topics = torch.randn(1, heads, 200, 128, generator=generator, device="cuda")
        choice = torch.randint(200, (1, heads, tokens), generator=generator, device="cuda")
        shared = topics.gather(2, choice[..., None].expand(-1, -1, -1, 128))
        q, k, v = (shared + 0.5 * torch.randn(shared.shape, generator=generator, device="cuda") for _ in range(3))
        del shared, choice
        states = [ClusterState(), ClusterState()]

        def narrowed():
            inputs = (tensor.bfloat16() for tensor in (q, k, v))
            return sparse_attention(*inputs, state=states[1]).output.float()

        dense = scaled_dot_product_attention(q, k, v)
        methods = {
            "dense float32": lambda: scaled_dot_product_attention(q, k, v),
            "dense bfloat16, casts counted": lambda: scaled_dot_product_attention(*(x.bfloat16() for x in (q, k, v))).float(),
            "sparse float32 (tf32)": lambda: sparse_attention(q, k, v, state=states[0]).output,
            "sparse bfloat16, casts counted": narrowed,
        }
        for name, call in methods.items():
            off = (call() - dense).norm() / dense.norm()
            call()
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            for _ in range(CALLS):
                call()
            ended.record()
            ended.synchronize()
            print(f"{heads} x {tokens:,} {name}: {began.elapsed_time(ended) / CALLS:.1f} ms, off by {off:.4f}", flush=True)


if __name__ == "__main__":
    main()
