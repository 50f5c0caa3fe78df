#!/usr/bin/env bash
# Triton 3.9.0's interpreter refuses a mask of a load that joins a block with a scalar comparison; the same as two blocks works.
#
# A scalar load compared with a scalar argument is one bool. Joined with a block of bools by `&` it should give a block of bools, but the
# masked load ends in `InterpreterError: ValueError('mask has unsupported dtype')`. Whoever tests kernels without a GPU can load the scalar
# as a block (`x + 0 * offsets`) first. What the compiler makes of it was not looked at.
#
# Seen with triton 3.9.0, numpy 2.3.5, torch 2.13.0 on Linux, x86-64, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check triton==3.9.0 numpy==2.3.5 torch==2.13.0

cat > "$folder/scalar_mask.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def load_some(x, y, limit, SIZE: tl.constexpr, AS_BLOCK: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    first = tl.load(x + 0 * offsets) if AS_BLOCK else tl.load(x)
    tl.store(y + offsets, tl.load(x + offsets, (offsets < 3) & (first > limit), other=0))


for as_block in (True, False):
    x, y = torch.arange(5, 13), torch.zeros(8, dtype=torch.long)
    try:
        load_some[(1,)](x, y, 3, SIZE=8, AS_BLOCK=as_block)
        print("block " if as_block else "scalar", y.tolist())
    except Exception as error:
        print("block " if as_block else "scalar", type(error).__name__, error)
PYTHON
found=$(TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/scalar_mask.py")
echo "$found"
expected="block  [5, 6, 7, 0, 0, 0, 0, 0]
scalar InterpreterError ValueError('mask has unsupported dtype')"
[ "$found" = "$expected" ] || { echo "this has changed"; exit 1; }
