"""Kernels compile for GPUs that are not here, without spilling registers."""

import sys
from dataclasses import replace
from importlib import import_module

import pytest
from offline_compile import Case, compile_offline
from svg_ear.kernels import tuning

pytest.importorskip("triton")
# The package exports functions under the names of these modules.
STAGES = "svg_ear.kernels.triton_stages."
NAMES = ("attend", "cluster", "dense", "permute", "probe", "route", "summarize", "tiles")
attend, cluster, dense, permute, probe, route, summarize, tiles = (import_module(STAGES + name) for name in NAMES)

CAPABILITIES = (80, 89, 90)
ALL_CAPABILITIES = (*CAPABILITIES, 100, 120)
# Shared memory of one block: 99 KiB on the smaller of these chips.
SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
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
            cluster, "_nearest",
            x | {"relative": kind, "bias": "*fp32", "labels": "*i32"} | ints("heads", "tokens", "clusters", "padded"),
            {"D": dim} | nearest,
        ),
        (
            cluster, "_choose_candidates",
            {"scores": "*fp32", "candidates": "*i32", "clusters": "i32"},
            {"LOG_C": 10, "COUNT": 32, "num_warps": 2},
        ),
        (
            tiles, "_cut",
            {"offsets": "*i64"} | ints("clusters", "tiles", "fewest")
            | dict.fromkeys(("owners", "starts", "stops", "bounds", "rest_owners", "rest_starts", "rest_stops"), "*i32"),
            {"HEIGHT": 128, "REST": 64, "AT_ONCE": tiles.TILES_AT_ONCE, "num_warps": 4},
        ),
        (
            cluster, "_nearest_candidate",
            x | {"order": "*i64", "candidates": "*i32", "relative": kind, "bias": "*fp32", "labels": "*i32"}
            | dict.fromkeys(("tile_owners", "tile_starts", "tile_stops"), "*i32") | ints("heads", "tokens", "clusters", "tiles"),
            {"D": dim, "CANDIDATES": 32} | cluster.NEAR,
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


# Bytes that a kernel whose registers are capped may spill: on an H200 the second block of a multiprocessor is worth them.
SPILLED = 160


def rows(name, kind):
    return {name: kind, f"{name}_head": "i32", f"{name}_row": "i32"}


def tiled(shape):
    return {"ROWS": shape.rows, "KEYS": shape.keys, "STAGES": shape.stages} | shape.launch


def without_cap(constexprs):
    return {name: value for name, value in constexprs.items() if name != "maxnreg"}


def attention_kernels(kind, dim, attend_shapes, probe_tiles):
    """The kernels of the other stages, for one dtype."""
    extra = {
        name: size for name in ("extra_k", "extra_v") for name, size in ((name, kind), (f"{name}_head", "i32"), (f"{name}_row", "i32"))
    }
    q = rows("q", kind)
    cuts = dict.fromkeys(("tile_owners", "tile_starts", "tile_stops", "tile_bounds"), "*i32")
    tables = dict.fromkeys(("peaks", "sums", "squares", "crosses"), "*fp32")
    return [
        (
            attend, "_attend",
            q | {"k": kind, "v": kind} | extra | {"key_means": kind, "values": kind, "weights": "*fp32", "exact": "*u8", "entries": "*i32"}
            | {"counts": "*i32", "order": "*i64", "tile_groups": "*i32", "tile_starts": "*i32", "tile_stops": "*i32"}
            | rows("out", kind) | {"scale": "fp32"}
            | ints("own_row", "tokens", "clusters", "groups", "extra", "capacity", "tiles"),
            {"D": dim, "GRANULE": route.GRANULE, "COMPENSATE": True} | tiled(attend_shapes[0]),
        ),
        (
            dense, "_dense",
            q | rows("k", kind) | rows("v", kind)
            | dict.fromkeys(("part_outputs", "part_peaks", "part_sums"), "*fp32") | {"scale": "fp32"} | ints("queries", "keys", "parts"),
            {"D": dim, "AT_ONCE": dense.KEYS_AT_ONCE} | tiled(attend_shapes[-1]),
        ),
        (
            probe, "_probe",
            dict.fromkeys(("centroids", "k", "v", "own_values"), kind) | dict.fromkeys(("norms", "dots"), "*fp32")
            | cuts | tables | {"scale": "fp32"} | ints("groups", "clusters", "keys", "tiles", "clusters_at_once"),
            {"D": dim, "OWN": True} | tiled(probe_tiles),
        ),
        (
            probe, "_denominators",
            dict.fromkeys(("peaks", "sums", "extra_log_sums", "log_denominators"), "*fp32") | ints("groups", "clusters"),
            probe.DENOMINATORS,
        ),
        (
            probe, "_relate",
            tables
            | dict.fromkeys(("at_means", "log_sizes", "mean_norms", "log_denominators", "errors", "masses", "log_weights"), "*fp32")
            | ints("groups", "clusters"),
            {"WEIGHTED": True} | probe.RELATE,
        ),
        (
            route, "_select",
            {"priorities": "*fp32", "offsets": "*i64", "exact": "*u8"}
            | dict.fromkeys(("budgets", "floors", "entries", "counts", "rows"), "*i32") | ints("clusters", "groups", "capacity"),
            {"LOG_C": 10, "GRANULE": route.GRANULE, "PADDING": route.PADDING, "SLOTS": route.SLOTS, "num_warps": route.select_warps(10)},
        ),
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the assembler comes with triton on Linux")
@pytest.mark.parametrize(("kind", "dim"), [("*bf16", 128), ("*fp16", 64), ("*fp32", 128)])
def test_probing_routing_and_attending_spill_nothing(kind, dim):
    cases = []
    for capability in ALL_CAPABILITIES if kind == "*bf16" else CAPABILITIES:
        shapes = ((tuning.FLOAT32,), tuning.FLOAT32) if kind == "*fp32" else (tuning.ATTEND[capability], tuning.PROBE[capability])
        for module, kernel, signature, constexprs in attention_kernels(kind, dim, *shapes):
            cases.append(Case(module.__name__, kernel, signature, constexprs, capability))
            if kernel == "_attend":
                cases += [replace(cases[-1], constexprs={**without_cap(constexprs), **tiled(shape)}) for shape in shapes[0][1:]]
    for case, usage in zip(cases, compile_offline(cases)):
        print(case.kernel, case.capability, usage)
        assert usage["stack"] <= (SPILLED if "maxnreg" in case.constexprs else 0), case
        assert usage["shared"] <= SHARED[case.capability] * 1024, case
