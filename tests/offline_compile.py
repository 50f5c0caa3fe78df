"""What a kernel needs of a GPU, found by compiling it without one.

Compilation runs in a process of its own, because this one may have been told to interpret kernels.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

# What is said at a launch beside the sizes of the kernel.
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """One compilation.

    Attributes:
        module: where the kernel lies, such as ``svg_ear.kernels.triton_stages.cluster``.
        kernel: its name there.
        signature: types of the arguments that are not constexpr, such as ``*bf16`` or ``i32``. Pointers, and integers that the
            kernel does not list under ``do_not_specialize``, are taken as multiples of 16.
        constexprs: values of the others, among them ``num_warps``, ``num_stages`` and ``maxnreg`` for the launch.
        capability: compute capability of the GPU as in ``sm_90``, without the letters; the name of an AMD GPU such as ``gfx942``.
    """

    module: str
    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, object]
    capability: int | str


def compile_offline(cases: list[Case]) -> list[dict[str, int]]:
    """For every case ``registers`` a thread, ``stack`` in bytes (not 0: registers were spilled), ``shared`` memory in bytes.

    Raises RuntimeError with the compiler's output when a case does not compile.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    if found.returncode:
        raise RuntimeError(found.stdout + found.stderr)
    return json.loads(found.stdout.splitlines()[-1])


def _compile(case: Case) -> dict[str, int]:
    import triton
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(case.module), case.kernel).jitted
    options = {name: case.constexprs[name] for name in OPTIONS if name in case.constexprs}
    constants = {name: value for name, value in case.constexprs.items() if name not in options}
    signature, aligned = {}, {}
    for place, parameter in enumerate(kernel.params):
        kind = "constexpr" if parameter.name in constants else case.signature[parameter.name]
        signature[parameter.name] = kind
        if kind.startswith("*") or (kind.startswith("i") and not parameter.do_not_specialize):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    target = _target(case.capability)
    compiled = triton.compile(source, target=target, options=options)
    usage = _usage_of_amd(compiled.asm["amdgcn"]) if target.backend == "hip" else _usage(compiled.asm["cubin"])
    return usage | {"shared": compiled.metadata.shared}


def _target(capability: int | str):
    from triton.backends.compiler import GPUTarget

    if isinstance(capability, int):
        return GPUTarget("cuda", capability, 32)
    return GPUTarget("hip", capability, 64 if capability.startswith("gfx9") else 32)


def _usage_of_amd(assembly: str) -> dict[str, int]:
    keys = {"registers": "vgpr_count", "stack": "private_segment_fixed_size", "spilled": "vgpr_spill_count"}
    return {name: int(re.search(rf"\.{key}:\s+(\d+)", assembly)[1]) for name, key in keys.items()}


def _usage(binary: bytes) -> dict[str, int]:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        report = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(re.search(rf"{key}:(\d+)", report)[1]) for name, key in (("registers", "REG"), ("stack", "STACK"))}


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    from benchmarks import pack

    pack.load()
    print(json.dumps([_compile(Case(**case)) for case in json.load(sys.stdin)]))
