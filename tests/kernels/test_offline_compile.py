"""Kernels compile for GPUs that are not here, without spilling registers."""

import sys

import pytest
from offline_compile import Case, compile_offline

pytest.importorskip("triton")
from svg_ear.kernels.triton_stages import cluster, permute, summarize  # noqa: E402

CAPABILITIES = (80, 89, 90)
# Shared memory of one block: 99 KiB on the smaller of these chips.
SHARED = {80: 163, 89: 99, 90: 227}
ROWS = {"batch": "i32", "head": "i32", "row": "i32"}


def strided(name, kind):
    return {name: kind} | {f"{name}_{stride}": size for stride, size in ROWS.items()}


def ints(*names):
    return dict.fromkeys(names, "i32")


def kernels(kind, dim, capability):
    """Module, kernel, signature and constexprs of every kernel of these stages for inputs of one dtype."""
    narrow = cluster.NEAREST_FLOAT32 if kind == "*fp32" else cluster.NEAREST
    nearest = cluster.NEAREST_WIDE if capability == 90 and kind != "*fp32" else narrow
    x, sorting = strided("x", kind), {"order": "*i64", "offsets": "*i64"}
    return [
        (
            cluster, "_centre",
            {"centroids": "*fp32", "mean": "*fp32", "relative": kind, "bias": "*fp32"} | ints("clusters", "padded"),
            {"D": dim} | cluster.CENTRE,
        ),
        (
            cluster, "_nearest",
            x | {"relative": kind, "bias": "*fp32", "labels": "*i32"} | ints("heads", "tokens", "clusters", "padded"),
            {"D": dim} | nearest,
        ),
        (
            cluster, "_means",
            x | sorting | {"previous": "*fp32", "means": "*fp32"} | ints("heads", "tokens", "clusters"),
            {"D": dim} | cluster.MEANS,
        ),
        (
            permute, "_permute",
            strided("k", kind) | strided("v", kind) | {"order": "*i64", "sorted_k": kind, "sorted_v": kind} | ints("heads", "tokens"),
            {"D": dim} | permute.PERMUTE,
        ),
        (
            summarize, "_summarize",
            {"v": kind, "offsets": "*i64", "means": "*fp32", "norms": "*fp32", "dots": "*fp32"} | ints("tokens", "clusters"),
            {"D": dim} | summarize.SUMMARIZE,
        ),
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the assembler comes with triton on Linux")
@pytest.mark.parametrize(("kind", "dim"), [("*bf16", 128), ("*fp16", 64), ("*fp32", 128)])
def test_clustering_permuting_and_summarizing_spill_nothing(kind, dim):
    cases = [
        Case(module.__name__, kernel, signature, constexprs, capability)
        for capability in CAPABILITIES
        for module, kernel, signature, constexprs in kernels(kind, dim, capability)
    ]
    for case, usage in zip(cases, compile_offline(cases)):
        print(case.kernel, case.capability, usage)
        assert usage["stack"] == 0, case
        assert usage["shared"] <= SHARED[case.capability] * 1024, case
