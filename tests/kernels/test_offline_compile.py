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
NAMES = (
    "attend",
    "attend_int8",
    "cluster",
    "dense",
    "metric",
    "nearest",
    "permute",
    "probe",
    "quantize",
    "route",
    "sort",
    "split",
    "summarize",
    "tables",
    "tail",
    "tiles",
)
attend, attend_int8, cluster, dense, metric, nearest, permute, probe, quantize, route, sort, split, summarize, tables, tail, tiles = (
    import_module(STAGES + name) for name in NAMES
)

CAPABILITIES = (80, 89, 90)
ALL_CAPABILITIES = (*CAPABILITIES, 100, 120)
# Shared memory of one block: 99 KiB on the smaller of these chips.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
ROWS = {"batch": "i32", "head": "i32", "row": "i32"}


def strided(name, kind):
    return {name: kind} | {f"{name}_{stride}": size for stride, size in ROWS.items()}


def ints(*names):
    return dict.fromkeys(names, "i32")


def kernels(kind, dim, capability):
    """Module, kernel, signature and constexprs of every kernel of these stages for inputs of one dtype."""
    narrow = nearest.NEAREST_FLOAT32 if kind == "*fp32" else nearest.NEAREST
    nearest_tiles = nearest.NEAREST_WIDE if capability == 90 and kind != "*fp32" else narrow
    x, sorting, points = strided("x", kind), {"order": "*i32", "offsets": "*i32"}, {"relative": kind, "bias": "*fp32"}
    return [
        (
            sort, "_count",
            {"labels": "*i16", "counts": "*i32"} | ints("tokens", "tiles", "clusters"),
            {"LOG_C": 10, "TOKENS": sort.TOKENS, "num_warps": 4},
        ),
        (
            sort, "_place",
            {"labels": "*i16", "counts": "*i32", "sizes": "*i32"} | sorting | ints("tokens", "tiles", "clusters"),
            {"LOG_C": 10, "TOKENS": sort.TOKENS, "AT_ONCE": sort.TILES_AT_ONCE, "num_warps": 8},
        ),
        (
            metric, "_key_metric",
            {"centroids": "*fp32", "sizes": "*i32", "metric": "*fp32", "clusters": "i32", "key_weight": "fp32"},
            {"D": dim, "PRECISION": tuning.PRECISE} | metric.METRIC,
        ),
        (
            nearest, "_points",
            {"centroids": kind, "metric": "*fp32"} | points | ints("clusters", "padded"),
            {"D": dim, "DIMS": nearest.DIMS, "PRECISION": tuning.PRECISE} | nearest.POINTS,
        ),
        (
            nearest, "_nearest",
            x | points | {"labels": "*i16"} | ints("heads", "tokens", "clusters", "padded"),
            {"D": dim} | nearest_tiles,
        ),
        (
            nearest, "_scores",
            {"last": kind, "scores": "*fp32"} | points | ints("clusters", "padded"),
            {"D": dim, "DIMS": nearest.DIMS, "PRECISION": tuning.PRECISE} | nearest.SCORES,
        ),
        (
            nearest, "_choose_candidates",
            {"scores": "*fp32", "candidates": "*i32", "clusters": "i32"},
            {"LOG_C": 10, "COUNT": 32, "num_warps": 2},
        ),
        (
            tiles, "_cut",
            {"offsets": "*i32"} | ints("clusters", "tiles", "fewest") | dict.fromkeys(("table", "bounds", "rest_table"), "*i32"),
            {"HEIGHT": 128, "REST": 64, "AT_ONCE": tiles.TILES_AT_ONCE, "num_warps": 4},
        ),
        (
            nearest, "_nearest_candidate",
            x | points | {"labels": "*i16"} | dict.fromkeys(("order", "tiles", "candidates"), "*i32")
            | ints("heads", "tokens", "clusters", "padded"),
            {"D": dim, "CANDIDATES": 32} | (nearest.NEAR_FLOAT32 if kind == "*fp32" else nearest.NEAR),
        ),
        (
            cluster, "_means",
            x | sorting | {"previous": "*fp32", "means": "*fp32", "rounded": kind} | ints("heads", "tokens", "clusters"),
            {"D": dim} | cluster.MEANS,
        ),
        (
            split, "_split",
            x | sorting | {"centroids": "*fp32", "means": "*fp32", "rounded": kind}
            | dict.fromkeys(("new_offsets", "sizes"), "*i32") | {"labels": "*i16"}
            | ints("heads", "tokens", "clusters", "count", "largest"),
            {"D": dim} | split.SPLIT,
        ),
        (
            permute, "_permute",
            strided("k", kind) | strided("v", kind) | {"order": "*i32", "sorted_k": kind, "sorted_v": kind} | ints("heads", "tokens"),
            {"D": dim} | permute.PERMUTE,
        ),
        (
            summarize, "_summarize",
            {"v": kind, "offsets": "*i32", "means": "*fp32", "log_sizes": "*fp32", "norms": "*fp32", "dots": "*fp32"}
            | ints("tokens", "clusters"),
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


def tiled_attend(shape):
    return tiled(shape) | {"COPIES": tail.copies(shape.keys, shape.warps)}


def without_cap(constexprs):
    return {name: value for name, value in constexprs.items() if name != "maxnreg"}


def conditioning(keys, values):
    return rows("extra_k", keys) | rows("extra_v", values)


def biases_of(biased):
    """Arguments for biases of the exact keys, and constants in the place of those."""
    return ({"biases": "*fp32", "biases_head": "i32"}, {}) if biased else ({}, dict.fromkeys(("biases", "biases_head")))


def attention_kernels(kind, dim, attend_shapes, probe_tiles, biased=False):
    """The kernels of the other stages, for one dtype, with or without biases of the exact keys."""
    biases, without_biases = biases_of(biased)
    return [
        (
            attend, "_attend",
            rows("q", kind) | {"k": kind, "v": kind} | conditioning(kind, kind)
            | {"key_means": kind, "values": kind, "tail": "*fp32"}
            | dict.fromkeys(("entries", "counts", "order", "tiles"), "*i32") | rows("out", kind) | {"scale": "fp32"}
            | ints("own_row", "tail_row", "queries", "keys", "clusters", "groups", "extra", "capacity") | biases,
            {"D": dim, "GRANULE": route.GRANULE, "COMPENSATE": True} | tiled_attend(attend_shapes[0]) | without_biases,
        ),
        (
            dense, "_dense",
            rows("q", kind) | rows("k", kind) | rows("v", kind)
            | dict.fromkeys(("part_outputs", "part_peaks", "part_sums"), "*fp32") | {"scale": "fp32"} | ints("queries", "keys", "parts")
            | biases,
            {"D": dim, "AT_ONCE": dense.KEYS_AT_ONCE} | tiled(attend_shapes[-1]) | without_biases,
        ),
        (
            dense, "_join",
            dict.fromkeys(("part_outputs", "part_peaks", "part_sums"), "*fp32") | rows("out", kind) | ints("queries", "parts"),
            {"D": dim} | dense.JOIN,
        ),
        *probe_kernels(kind, dim, probe_tiles, False, biased),
        (
            route, "_select",
            {"errors": "*fp32", "offsets": "*i32", "exact": "*u8", "shares": "*fp32", "skipped": "*fp32"}
            | dict.fromkeys(("entries", "counts"), "*i32") | ints("clusters", "groups", "capacity", "budget", "floor", "tokens"),
            {"priorities": None, "budgets": None, "LOG_C": 10, "GRANULE": route.GRANULE, "PADDING": route.PADDING, "SLOTS": route.SLOTS}
            | {"num_warps": tables.table_warps(10)},
        ),
    ]  # fmt: skip


def probe_kernels(kind, dim, tiles, int8, biased=False):
    """Those of the probe."""
    biases, without_biases = biases_of(biased)

    def scales(*names):
        """Pointers where keys are int8, constants where they are not."""
        return (dict.fromkeys(names, "*fp32"), {}) if int8 else ({}, dict.fromkeys(names))

    keys = "*i8" if int8 else kind
    weighed = "*bf16" if int8 and kind == "*fp16" else kind
    known = dict.fromkeys(("centroids", "key_means"), "*i8" if int8 else "*fp32") | {"value_means": "*fp32", "sizes": "*i32"}
    (two, no_two), (three, no_three) = scales("query_scales", "key_scales"), scales("query_scales", "key_scales", "extra_scales")
    return [
        (
            probe, "_probe",
            known | two | {"k": keys, "v": weighed, "own_values": weighed} | dict.fromkeys(("norms", "dots", "seen"), "*fp32")
            | dict.fromkeys(("tiles", "tile_bounds"), "*i32") | {"scale": "fp32"}
            | ints("groups", "clusters", "keys", "tile_count", "clusters_at_once"),
            {"D": dim, "OWN": True, "INT8": int8} | no_two | tiled(tiles),
        ),
        (
            probe, "_denominators",
            known | three | conditioning(keys, kind) | dict.fromkeys(("seen", "log_denominators", "output_norms"), "*fp32")
            | {"scale": "fp32"} | ints("groups", "clusters", "extra") | biases,
            {"D": dim, "WEIGHTED": True, "INT8": int8} | no_three | probe.DENOMINATORS | without_biases,
        ),
        (
            probe, "_relate",
            known | two | dict.fromkeys(("seen", "log_denominators", "errors", "masses", "log_weights"), "*fp32")
            | {"keys": keys, "scale": "fp32"} | ints("groups", "clusters"),
            {"D": dim, "WEIGHTED": True, "INT8": int8} | no_two | probe.RELATE,
        ),
    ]  # fmt: skip


def int8_kernels(kind, dim, attend_shapes, probe_tiles, capability, biased=False):
    """The kernels that take the places of others where keys are int8; ``_attend_int8`` in every shape."""
    for_ranges, for_quantize = quantize.tiles_of(capability, kind == "*fp32")
    weighed = "*bf16" if kind == "*fp16" else kind
    biases, without_biases = biases_of(biased)
    attending = (
        dict.fromkeys(("q", "k", "extra_k", "key_means"), "*i8") | {"v": weighed, "values": weighed} | rows("extra_v", kind)
        | dict.fromkeys(("references", "tail", "query_scales", "key_scales", "extra_scales"), "*fp32") | rows("out", kind)
        | dict.fromkeys(("entries", "counts", "order", "tiles", "offsets"), "*i32") | {"scale": "fp32"}
        | ints("own_row", "tail_row", "queries", "keys", "clusters", "groups", "extra", "capacity", "all_groups") | biases
    )  # fmt: skip
    common = {"D": dim, "GRANULE": route.GRANULE, "COMPENSATE": True} | without_biases
    return [
        (
            quantize, "_ranges",
            rows("k", kind) | {"ranges": "*fp32", "tokens": "i32"},
            {"D": dim, "PARTS": quantize.PARTS} | for_ranges,
        ),
        (
            quantize, "_quantize",
            rows("q", kind) | rows("k", kind) | rows("v", kind) | rows("extra_k", kind)
            | dict.fromkeys(("key_means", "mean_queries"), kind) | {"sorted_v": weighed}
            | dict.fromkeys(("sorted_k", "means_8", "extra_8", "mean_queries_8", "q_8"), "*i8")
            | dict.fromkeys(("ranges", "key_scales", "extra_scales", "mean_query_scales", "query_scales"), "*fp32") | {"order": "*i32"}
            | ints("all_queries", "keys", "clusters", "groups", "extra", "first_group", "first_extra", "first_token"),
            {"D": dim, "PARTS": quantize.PARTS} | for_quantize,
        ),
        *probe_kernels(kind, dim, probe_tiles, True, biased),
        *(
            (attend_int8, "_attend_int8", attending, common | {"REFER": True, "WAIT": attend_int8.waits(tiles)} | tiled_attend(tiles))
            for tiles in attend_shapes
        ),
        (attend_int8, "_attend_again", attending, common | attend_int8.SEARCH | tiled(tuning.AGAIN)),
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
                cases += [replace(cases[-1], constexprs={**without_cap(constexprs), **tiled_attend(shape)}) for shape in shapes[0][1:]]
    for case, usage in zip(cases, compile_offline(cases)):
        print(case.kernel, case.capability, usage)
        assert usage["stack"] <= (SPILLED if "maxnreg" in case.constexprs else 0), case
        assert usage["shared"] <= SHARED[case.capability] * 1024, case


@pytest.mark.skipif(sys.platform != "linux", reason="the assembler comes with triton on Linux")
@pytest.mark.parametrize(("kind", "dim"), [("*bf16", 128), ("*fp16", 64), ("*fp32", 128)])
def test_int8_kernels_spill_nothing(kind, dim):
    cases = []
    for capability in (*ALL_CAPABILITIES, 86) if kind == "*bf16" else CAPABILITIES:
        full = (tuning.FLOAT32,), tuning.FLOAT32
        shapes = full if kind == "*fp32" else (tuning.ATTEND_INT8[capability], tuning.PROBE_INT8[capability])
        cases += [Case(module.__name__, *kernel, capability) for module, *kernel in int8_kernels(kind, dim, *shapes, capability)]
    for case, usage in zip(cases, compile_offline(cases)):
        print(case.kernel, case.capability, usage)
        # All registers that four warps can have, and a few bytes that are needed before and behind the loops only.
        assert usage["stack"] <= (SPILLED if case.constexprs.get("WAIT") else 0), case
        assert usage["shared"] <= SHARED[case.capability] * 1024, case


def other_choices(number):
    """The kernels in the tiles beside those of the tables, in which they are compiled above."""
    chosen = [(tiles, ("_attend", "_dense")) for shapes in tuning.ATTEND_CHOICES[number] for tiles in shapes]
    chosen += [(tiles, ("_probe",)) for tiles in tuning.PROBE_CHOICES[number]]
    found = {}
    for tiles, used in chosen:
        for module, kernel, signature, constexprs in attention_kernels("*bf16", 128, (tiles,), tiles):
            if kernel in used:
                found[kernel, tiles] = module, kernel, signature, constexprs
    return found.values()


@pytest.mark.skipif(sys.platform != "linux", reason="the assembler comes with triton on Linux")
@pytest.mark.parametrize("capability", ALL_CAPABILITIES)
def test_every_choice_of_tiles_spills_nothing(capability):
    cases = [Case(module.__name__, *kernel, capability) for module, *kernel in other_choices(capability)]
    for case, usage in zip(cases, compile_offline(cases)):
        print(case.kernel, case.capability, usage)
        assert usage["stack"] == 0, case
        assert usage["shared"] <= SHARED[case.capability] * 1024, case


# AMD: CDNA 3, RDNA 3, RDNA 3.5 and RDNA 4. All have 64 KiB of local memory a block.
AMD = ("gfx942", "gfx1100", "gfx1151", "gfx1201")


def compiled_for_amd(monkeypatch, kernels):
    """Cases and what they need, with what is launched under ROCm: constants of this process are those of the torch that is installed."""
    monkeypatch.setattr(tuning.torch.version, "hip", "7.0")
    precise = {"PRECISION": "ieee"}
    cases = [
        Case(module.__name__, kernel, signature, tuning.launched(**constexprs | (precise if "PRECISION" in constexprs else {})), gpu)
        for gpu in AMD
        for module, kernel, signature, constexprs in kernels
    ]
    return zip(cases, compile_offline(cases))


@pytest.mark.skipif(sys.platform != "linux", reason="the linker comes with triton on Linux")
@pytest.mark.parametrize("kind", ["*bf16", "*fp16", "*fp32"])
def test_every_kernel_compiles_for_amd(monkeypatch, kind):
    tiles_of = ((tuning.FLOAT32,), tuning.FLOAT32) if kind == "*fp32" else (tuning.ATTEND[0], tuning.PROBE[0])
    for case, usage in compiled_for_amd(monkeypatch, kernels(kind, 128, 0) + attention_kernels(kind, 128, *tiles_of)):
        print(case.kernel, case.capability, usage)
        assert case.constexprs["num_stages"] == 1 and usage["shared"] <= 64 * 1024, case
        # On RDNA 3 registers spill, here less than in any other tile that was tried.
        assert kind == "*fp32" or case.kernel not in ("_attend", "_dense", "_probe") or usage["spilled"] <= 64, case


@pytest.mark.skipif(sys.platform != "linux", reason="the linker comes with triton on Linux")
def test_every_choice_of_tiles_compiles_for_amd(monkeypatch):
    for case, usage in compiled_for_amd(monkeypatch, other_choices(0)):
        print(case.kernel, case.capability, usage)
        assert usage["shared"] <= 64 * 1024, case


def test_nothing_is_pipelined_under_rocm(monkeypatch):
    monkeypatch.setattr(tuning.torch.version, "hip", "7.0")
    assert tuning.launched(ROWS=16, STAGES=3, num_warps=2) == {
        "ROWS": 16, "STAGES": 1, "num_warps": 2, "num_stages": 1, "enable_fp_fusion": True
    }  # fmt: skip
    assert tuning.AMD.stages == tuning.FLOAT32.stages == 1 and tuning.AMD.launch["num_stages"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the assembler comes with triton on Linux")
def test_biases_spill_nothing():
    """The kernels that add biases to the logits of exact keys."""
    cases = []
    for capability in CAPABILITIES:
        shapes = tuning.ATTEND[capability]
        for module, kernel, signature, constexprs in attention_kernels("*bf16", 128, shapes, tuning.PROBE[capability], biased=True):
            if "biases" in signature:
                cases.append(Case(module.__name__, kernel, signature, constexprs, capability))
            if kernel == "_attend":
                cases += [replace(cases[-1], constexprs={**without_cap(constexprs), **tiled_attend(shape)}) for shape in shapes[1:]]
    for case, usage in zip(cases, compile_offline(cases)):
        print(case.kernel, case.capability, usage)
        assert usage["stack"] <= (SPILLED if "maxnreg" in case.constexprs else 0), case
        assert usage["shared"] <= SHARED[case.capability] * 1024, case
