"""What a dense call is said to run on, with ComfyUI's own functions. In a process of its own: ComfyUI must be imported before torch."""

import os
import subprocess
import sys

from benchmarks import pack

SCRIPT = """
from benchmarks.checkout import find_checkout
from benchmarks.runs import comfyui

comfyui.start(find_checkout(), [], cpu=True)

import torch
from comfy.cli_args import args
from comfy.ldm.modules import attention
from comfy.model_patcher import ModelPatcher

from benchmarks import pack

pack.load()
from svg_ear.nodes.patch.dense import is_default, name_of, name_of_override

given = []

def override(func, *args, **kwargs):
    given.append(func)
    return func(*args, **kwargs)

q = torch.randn(1, 8, 64)
for function in (attention.optimized_attention, attention.attention_split):
    function(q, q, q, 2, transformer_options={"optimized_attention_override": override})
own, other = given
assert is_default(own) and not is_default(other)
args.deterministic = True
assert not is_default(own), "asked for on the command line"
assert (name_of(own), name_of(other)) == ("ComfyUI's PyTorch attention", "ComfyUI's split attention")

patcher = ModelPatcher(torch.nn.Module(), torch.device("cpu"), torch.device("cpu"))
patcher.set_model_optimized_attention(attention.attention_sub_quad)
chosen = patcher.model_options["transformer_options"]["optimized_attention_override"]
assert name_of_override(chosen) == "ComfyUI's sub-quadratic attention, chosen for the MODEL", name_of_override(chosen)
print("done")
"""


def test_comfyuis_default_is_known_from_what_was_chosen():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    finished = subprocess.run(command, cwd=pack.ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert finished.stdout.endswith("done\n"), finished.stdout + finished.stderr[-4000:]
