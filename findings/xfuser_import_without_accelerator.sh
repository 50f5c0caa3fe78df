#!/usr/bin/env bash
# xFuser 0.7.0 cannot be imported on a machine without an accelerator, although it knows a device type "cpu".
#
# `import xfuser` asks for the version of the device while its modules load, and for none it raises NotImplementedError: "No
# Accelerators(AMD/NV/MTT GPU, AMD MI instinct accelerators) available"; so does what asks it for the backend of torch.distributed. Beside it
# `xfuser.envs` has a branch that calls the device "cpu". Whoever wants to test sequence parallelism with gloo processes on CPUs has to
# replace those two questions, or to load its modules without the packages around them. `importlib.util.find_spec("xfuser")` finds the
# package all the same, so that code which looks for it this way takes it for usable. Its modules import triton too, which its
# requirements do not name and a CPU build of torch does not bring: it is installed here, or the import ends there.
#
# Seen with xfuser 0.7.0, triton 3.9.0, torch 2.13.0 (CPU build), diffusers 0.42.1, transformers 5.24.0 on Linux, x86-64, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    xfuser==0.7.0 torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 yunchang==0.6.4 numpy==2.3.5 triton==3.9.0

cat > "$folder/try.py" <<'PYTHON'
import importlib.util

import torch

print("accelerator", torch.accelerator.is_available(), "found", importlib.util.find_spec("xfuser") is not None)
try:
    import xfuser

    print("imported", xfuser.__name__)
except NotImplementedError as error:
    print("NotImplementedError:", error)
PYTHON
found=$(cd "$folder" && venv/bin/python try.py 2> errors.txt) || { tail -n 3 "$folder/errors.txt"; exit 1; }
echo "$found"
expected="accelerator False found True
NotImplementedError: No Accelerators(AMD/NV/MTT GPU, AMD MI instinct accelerators) available"
[ "$found" = "$expected" ] || { echo "this has changed"; exit 1; }
