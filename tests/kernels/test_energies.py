"""Block energies against all pairs."""

import sys
from importlib import import_module

import pytest
import torch
from kernel_inputs import clustered, relative_error
from live_memory import LiveMemory
from offline_compile import Case, compile_offline
from svg_ear.kernels.torch_stages import block_energies, log_denominators
from svg_ear.kernels.types import Conditioning
from triton_cases import DEVICE


def all_pairs(q, k, extra, size, scale):
    tokens = q.shape[2]
    weights = (scale * q.double() @ torch.cat((k, extra), dim=2).double().mT).softmax(-1)[..., :tokens]
    rows = [part.mean(2) for part in weights.split(size, dim=2)]
    return torch.stack([torch.stack([part.sum(-1) for part in row.split(size, dim=-1)], dim=-1) for row in rows], dim=2)


def energies(q, k, extra, size, scale, stages=sys.modules["svg_ear.kernels.torch_stages"]):
    """Both stages, one after the other."""
    return stages.block_energies(q, k, stages.log_denominators(q, k, Conditioning(extra, extra), scale), size, scale)


@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (16, 16), (150, 16), (200, 128), (256, 64)])
@pytest.mark.parametrize("text", [0, 9])
def test_every_pair_is_counted_once(tokens, size, text):
    q, k, _ = clustered(tokens + text, batch=2, heads=3)
    q, k, extra = q[:, :, :tokens], k[:, :, :tokens], k[:, :, tokens:]
    found = energies(q, k, extra, size, 0.2)
    assert relative_error(found, all_pairs(q, k, extra, size, 0.2)) < 1e-12
    assert (found.sum(-1) <= 1 + 1e-12).all() and (text or torch.allclose(found.sum(-1), torch.ones_like(found[..., 0])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "size", "text"), [(1, 64, 0), (150, 64, 9), (300, 128, 0), (256, 128, 70)])
def test_the_kernel_gives_what_torch_gives(tokens, size, text, dtype):
    pytest.importorskip("triton")
    from svg_ear.kernels import triton_stages

    q, k, _ = (x.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2) for x in clustered(tokens + text, batch=2, dtype=dtype))
    q, k, extra = q[:, :, :tokens], k[:, :, :tokens], k[:, :, tokens:]
    expected = energies(q, k, extra, size, 0.2)
    found = energies(q, k, extra, size, 0.2, triton_stages)
    assert relative_error(found, expected) < (2e-6 if dtype == torch.float32 and not q.is_cuda else 2e-3)


def test_logits_of_60_stay_finite():
    q, k, _ = clustered(200)
    scale = 60 / (q @ k.mT).abs().max().item()
    found = energies(q, k, k[:, :, :0], 64, scale)
    assert found.isfinite().all()


def test_there_is_never_a_matrix_of_all_pairs():
    q, k, _ = clustered(8192, heads=1, dtype=torch.float32)
    with LiveMemory(q, k) as memory:
        energies(q, k, k[:, :, :0], 128, 0.1)
    assert memory.largest < 8192 * 8192 / 100 and memory.peak < 2 * (q.nbytes + k.nbytes)


def test_queries_in_another_order_have_the_energies_of_their_blocks():
    """Denominators go with their queries, whatever the order of either side."""
    q, k, _ = clustered(150, heads=2)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    denominators = log_denominators(q, k, Conditioning(k[:, :, :0], k[:, :, :0]), 0.2)
    found = block_energies(q[:, :, order], k[:, :, order], denominators[..., order], 16, 0.2)
    assert relative_error(found, all_pairs(q[:, :, order], k[:, :, order], k[:, :, :0], 16, 0.2)) < 1e-12


@pytest.mark.skipif(sys.platform != "linux", reason="the assembler comes with triton on Linux")
@pytest.mark.parametrize(("kind", "dim"), [("*bf16", 128), ("*fp16", 64), ("*fp32", 128)])
def test_the_kernels_spill_nothing(kind, dim):
    pytest.importorskip("triton")
    module = import_module("svg_ear.kernels.triton_stages.energies")

    def signature(tensors, results, numbers):
        strides = (f"{tensor}_{stride}" for tensor in tensors for stride in ("batch", "head", "row"))
        kinds = dict.fromkeys(tensors, kind) | dict.fromkeys(results, "*fp32") | {"scale": "fp32"}
        return kinds | dict.fromkeys((*strides, "heads", "tokens", *numbers), "i32")

    tiles = {"D": dim} | (module.TILES_FLOAT32 if kind == "*fp32" else module.TILES)
    denominators = signature(("q", "k", "extra_k"), ("denominators",), ("extra",))
    kernels = {
        "_denominators": (denominators, tiles | {"ROWS": module.ROWS}),
        "_energies": (signature(("q", "k"), ("denominators", "energies"), ("blocks",)), tiles | {"SIZE": 128}),
    }
    shared = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
    cases = [Case(module.__name__, name, *of_kernel, capability) for name, of_kernel in kernels.items() for capability in shared]
    for case, usage in zip(cases, compile_offline(cases)):
        assert usage["stack"] == 0, (case, usage)
        assert usage["shared"] <= shared[case.capability] * 1024, (case, usage)
