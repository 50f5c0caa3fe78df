"""Products of queries and keys in int8 on a CUDA GPU, beside what test_cuda.py asks of both precisions."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kernel_inputs import clustered, relative_error
from svg_ear.kernels import BlockRouting, ClusterState, SequenceLayout, Settings, SharedKeys, sparse_attention
from svg_ear.kernels.blocks import block_count
from triton_cases import arranged

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
DEVICE, TOKENS, BLOCK = torch.device("cuda", 0), 1511, 16
# Groups of more rows than the tallest tile has.
LARGE_GROUPS = {"query_clusters": 5, "key_clusters": 40}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
dims = pytest.mark.parametrize("dim", [64, 128])
# Settings, and what else a call is given, by name.
CASES = {
    "text": ({}, ("text",)),
    "no text": ({}, ()),
    "plain centroids": ({"weighted_centroids": False}, ("text",)),
    "large groups": (LARGE_GROUPS, ("text",)),
    "top-p": ({"budget": "top-p", "top_p": 0.7, "min_share": 0.1}, ("text",)),
    "biases": ({}, ("text", "biases")),
    "a part of the queries": ({}, ("text", "part")),
    "a part of the queries, biases": ({}, ("text", "part", "biases")),
    "svg2": ({"method": "svg2"}, ("text",)),
    "svg2, large groups": ({"method": "svg2"} | LARGE_GROUPS, ()),
    "blocks": ({"method": "calibrated"}, ("text", "blocks")),
    "blocks, dropped": ({"method": "calibrated", "compensate": False}, ("text", "blocks")),
    "tokens first": ({}, ("text", "tokens first")),
    "some heads at a time": ({}, ("text", "little memory")),
    "clusters of another item": ({}, ("text", "owners")),
}


def tensors(dtype, dim=128, heads=2, batch=2, **options):
    return [tensor.to(DEVICE) for tensor in clustered(TOKENS, batch=batch, heads=heads, dim=dim, dtype=dtype, **options)]


def arguments(traits):
    """Layout of the calls with these ``traits``, and what else they are given."""
    layout, options = SequenceLayout(range(TOKENS)), {}
    if "text" in traits:
        layout = SequenceLayout(range(7, TOKENS - 11), (range(5), range(TOKENS - 11, TOKENS)))
    if "part" in traits:
        layout = SequenceLayout(layout.video, layout.conditioning, range(2, TOKENS // 3))
    if "biases" in traits:
        biases = torch.zeros(2, 1, TOKENS, device=DEVICE)
        biases[:, :, :5] = torch.tensor([[1.5], [-2.0]], device=DEVICE)[:, None]
        biases[1, :, -11:-5] = -torch.inf
        options["biases"] = biases
    if "blocks" in traits:
        count = block_count(len(layout.video), BLOCK)
        exact = torch.rand(2, count, count, generator=torch.Generator().manual_seed(0)) < 0.2
        options["blocks"] = BlockRouting(exact.to(DEVICE), BLOCK, repeating=(1,))
    if "little memory" in traits:
        options["memory_limit"] = 1
    if "owners" in traits:
        options["owners"] = [0, 0]
    return {"layouts": layout} | options


def from_the_same_clusters(inputs, settings, given):
    """What the torch stages and the kernels make of the clusters that the torch stages found."""
    first = ClusterState()
    sparse_attention(*inputs, settings, implementation="torch", state=first, **given)
    settings = replace(settings, recluster_every=2)
    return [
        sparse_attention(*inputs, settings, implementation=name, state=ClusterState(calls=1, items=dict(first.items)), **given).output
        for name in ("torch", "triton")
    ]


@dims
@dtypes
@pytest.mark.parametrize("case", CASES)
def test_triton_gives_what_torch_gives(case, dtype, dim):
    settings, traits = CASES[case]
    settings, given = Settings(**{"density": 0.2} | settings, precision="int8"), arguments(traits)
    q, k, v = (arranged(tensor, "tokens first" if "tokens first" in traits else None) for tensor in tensors(dtype, dim))
    if "owners" in traits:
        # Near enough to the clusters of the other.
        for tensor in (q, k):
            tensor[1] = 1.05 * tensor[0]
    q = q[:, :, : TOKENS // 3 + 9] if "part" in traits else q
    # Multiplied in tf32, which has 10 bits; values of float16 become bfloat16.
    rounding = 1e-3
    if dtype != torch.float32:
        halves = [tensor.bfloat16() for tensor in (q, k, v)]
        exact = F.scaled_dot_product_attention(*(tensor.double() for tensor in halves))
        rounding = relative_error(F.scaled_dot_product_attention(*halves), exact)
    rows = given["layouts"].routed_queries
    plain, fused = (output[:, :, rows.start : rows.stop] for output in from_the_same_clusters((q, k, v), settings, given))
    assert relative_error(fused, plain) < 2 * rounding


@dtypes
def test_text_queries_are_what_they_are_in_full(dtype):
    inputs, given = tensors(dtype), arguments(("text", "biases"))
    full, int8 = (sparse_attention(*inputs, Settings(precision=precision), **given).output for precision in ("full", "int8"))
    text = [*range(5), *range(TOKENS - 11, TOKENS)]
    assert torch.equal(full[:, :, text], int8[:, :, text]) and not torch.equal(full, int8)


@dims
@dtypes
@pytest.mark.parametrize("outlier", [1, 40])
def test_little_is_lost_beside_what_skipped_blocks_lose(outlier, dtype, dim):
    """Also where one channel of the keys is ``outlier`` times as large as the others."""
    q, k, v = tensors(dtype, dim, topics=TOKENS // 20, spread=2)
    k[..., 7] *= outlier
    exact = F.scaled_dot_product_attention(*(tensor.double() for tensor in (q, k, v)))
    full, int8 = (relative_error(sparse_attention(q, k, v, Settings(precision=name)).output, exact) for name in ("full", "int8"))
    print(f"from dense: full {full:.4f}, int8 {int8:.4f}")
    assert 0.01 < full and int8 < 1.2 * full


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("factor", [30.0, 200.0])
def test_logits_of_hundreds_are_as_near_to_dense_as_by_torch(factor, dtype):
    """Far from what the probe expects of a group, so that its rows are computed again. Which blocks are exact is then often a tie."""
    q, k, v = tensors(dtype)
    outputs = from_the_same_clusters((factor * q, k, v), Settings(precision="int8"), {})
    exact = F.scaled_dot_product_attention(*(tensor.double() for tensor in (factor * q, k, v)))
    plain, fused = (relative_error(output, exact) for output in outputs)
    print(f"from dense: torch {plain:.4f}, triton {fused:.4f}")
    assert fused < 1.1 * plain + 0.005


def steps(precision, states, number, dtype=torch.bfloat16):
    """Outputs of a step with ``precision``, with text and in chunks of some heads."""
    inputs = tensors(dtype, seed=number)
    given = arguments(("text",)) | {"state": states.setdefault(precision, ClusterState()), "memory_limit": 2**22}
    return sparse_attention(*inputs, Settings(precision=precision), **given).output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_full_gives_the_same_bits_whether_or_not_int8_runs_beside_it(dtype):
    """In calls that repeat launches, too."""
    alone = {name: [steps(name, states, number, dtype) for number in range(4)] for name, states in (("full", {}), ("int8", {}))}
    states, beside = {}, {"full": [], "int8": []}
    for number in range(4):
        for name, outputs in beside.items():
            outputs.append(steps(name, states, number, dtype))
    for name, outputs in beside.items():
        assert all(torch.equal(*pair) for pair in zip(outputs, alone[name]))
    assert not any(torch.equal(*pair) for pair in zip(*beside.values()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_query_or_value_without_a_number_spoils_what_it_does_in_full(dtype, value):
    given = arguments(("text",))
    for place in (0, 2):
        inputs = tensors(dtype, dim=64)
        inputs[place][:, :, 30, 5] = value
        full, int8 = (sparse_attention(*inputs, Settings(precision=name), **given) for name in ("full", "int8"))
        for found in (full, int8):
            assert all(getattr(found.statistics, name).isfinite().all() for name in ("density", "group_shares", "estimated_error"))
        if place == 0:
            others = [token for token in range(TOKENS) if token != 30]
            assert full.output[:, :, others].isfinite().all() and int8.output[:, :, others].isfinite().all()
            assert not int8.output[:, :, 30].isfinite().any()
        else:
            assert int8.output[..., [*range(5), *range(6, 64)]].isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_key_without_a_number_is_no_error_and_leaves_the_next_call_right(dtype, value):
    """All keys of a head have one scale: its outputs are lost, and not those of the head behind it."""
    clean, broken = tensors(dtype), tensors(dtype)
    broken[1][:, 0, 30, 5] = value
    state, fresh = ClusterState(), ClusterState()
    settings = Settings(precision="int8", recluster_every=1)
    spoiled = sparse_attention(*broken, settings, state=state)
    assert spoiled.statistics.estimated_error.isfinite().all() and spoiled.output[:, 1].isfinite().all()
    exact = F.scaled_dot_product_attention(*(tensor.double() for tensor in clean))
    for _ in range(2):
        found, expected = (sparse_attention(*clean, settings, state=kept).output for kept in (state, fresh))
    assert relative_error(found, exact) < 2 * relative_error(expected, exact)


def test_calls_that_share_their_keys_give_what_each_gives_alone():
    q, k, v = tensors(torch.bfloat16)
    shared, settings = SharedKeys(), Settings(precision="int8")
    for first in (0, TOKENS // 3):
        queries, given = q[:, :, first : first + TOKENS // 3], arguments(("text",))
        given["layouts"] = SequenceLayout(given["layouts"].video, given["layouts"].conditioning, range(TOKENS // 3))
        own = sparse_attention(queries, k, v, settings, **given).output
        assert torch.equal(sparse_attention(queries, k, v, settings, **given, shared=shared).output, own)


@pytest.mark.parametrize(("tokens", "heads"), [(32_760, 40), (27_280, 24), (32_760, 12)])
def test_it_takes_the_memory_of_full_and_a_scale_for_each_query(tokens, heads):
    inputs = [torch.randn(1, heads, tokens, 128, dtype=torch.bfloat16, device=DEVICE) for _ in range(3)]
    peaks = {}
    for precision in ("full", "int8"):
        state = ClusterState()
        for _ in range(3):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            output = sparse_attention(*inputs, Settings(precision=precision), state=state).output
            torch.cuda.synchronize()
            peaks[precision] = torch.cuda.max_memory_allocated() - before
            del output
    print({name: f"{peak / sum(tensor.nbytes for tensor in inputs):.3f} of q, k, v" for name, peak in peaks.items()})
    # Four bytes beside the 512 that a token's query, key and value take.
    assert peaks["int8"] < (1 + 4 / 512) * peaks["full"]
