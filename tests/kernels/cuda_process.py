"""Three steps of a patched model on the GPU, in a process whose environment the CUDA tests choose; prints why calls stayed dense."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run():
    from fake_comfyui import HEADS, Harness, counts, qkv

    played = Harness()
    tensors = [tensor.cuda().half() for tensor in qkv()]
    record = played.sample(lambda: [played.evaluate(lambda attention: attention(*tensors, HEADS), step=step) for step in range(3)])
    print(counts(record))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "nodes")]
    from benchmarks import pack

    pack.load()
    run()
