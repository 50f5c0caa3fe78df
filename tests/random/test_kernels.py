"""Any call of ``sparse_attention``, in plain torch, against float64."""

import copy
from dataclasses import replace

import pytest
import torch
from exact import Arithmetic, check
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Call, calls
from svg_ear.kernels import ClusterState, SequenceLayout, Settings, SharedKeys, sparse_attention

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FEW = settings().derandomize


def examples(count, **options):
    """So many examples where the profile has no number of its own."""
    return settings(**options, **({"max_examples": count} if FEW else {}))


def run(call: Call, number: int, state, implementation="torch", sharing=0, shared=None):
    """Call number ``number``, and what was observed of it."""
    seen = []
    found = sparse_attention(
        *call.tensors(number, sharing),
        call.settings,
        layouts=call.layouts,
        biases=call.biases(number),
        blocks=call.blocks,
        state=state,
        shared=shared,
        scale=call.scale,
        memory_limit=call.memory_limit,
        observe=seen.append,
        implementation=implementation,
    )
    return found, seen


def check_calls(call: Call, implementation="torch"):
    """Every call keeps to float64, and gives the same again."""
    arithmetic = Arithmetic(call.dtype, narrow=implementation == "triton")
    states = [ClusterState() for _ in range(1 + call.shares)]
    for number in range(len(call.kinds)):
        shared = SharedKeys() if call.shares else None
        for sharing, state in enumerate(states):
            before = ClusterState(state.calls, state.signature, dict(state.items))
            known = SharedKeys(shared.signature, dict(shared.clusters), dict(shared.sorted)) if shared else None
            found, seen = run(call, number, state, implementation, sharing, shared)
            scale = call.shape[-1] ** -0.5 if call.scale is None else call.scale
            repeating = call.blocks.repeating if call.blocks else ()
            tensors = call.tensors(number, sharing)
            check(*tensors, call.settings, call.layouts, scale, arithmetic, found, seen, repeating, call.biases(number))
            again, _ = run(call, number, before, implementation, sharing, known)
            assert torch.equal(found.output, again.output)
            for name in ("density", "group_shares", "estimated_error"):
                assert torch.equal(getattr(found.statistics, name), getattr(again.statistics, name))


@examples(150)
@given(calls(DTYPES, dims=(1, 8, 64)))
def test_calls_keep_to_float64(call):
    check_calls(call)


CHANGES = {
    "another length of k": lambda q, k, v, call: ((q, k[:, :, :-1], v), {}),
    "queries that no layout names": lambda q, k, v, call: ((torch.cat((q, k), dim=2), k, v), {"layouts": None}),
    "a query too few": lambda q, k, v, call: ((q[:, :, : max(layout.routed_queries.stop for layout in call.layouts) - 1], k, v), {}),
    "biases of another length": lambda q, k, v, call: ((q, k, v), {"biases": torch.zeros(1, 1, 1 + k.shape[2])}),
    "integer biases": lambda q, k, v, call: ((q, k, v), {"biases": torch.zeros(1, 1, k.shape[2], dtype=torch.int64)}),
    "shared keys of another call": lambda q, k, v, call: ((q, k, v), {"shared": SharedKeys(("another",))}),
    "another dtype of v": lambda q, k, v, call: ((q, k, v.double() if v.dtype != torch.float64 else v.float()), {}),
    "integers": lambda q, k, v, call: ((q.long(), k.long(), v.long()), {}),
    "three dimensions": lambda q, k, v, call: ((q[0], k[0], v[0]), {}),
    "a layout too few": lambda q, k, v, call: ((q, k, v), {"layouts": call.layouts * 2}),
    "a layout that is too long": lambda q, k, v, call: ((q, k, v), {"layouts": SequenceLayout(range(k.shape[2] + 1))}),
    "blocks or none": lambda q, k, v, call: ((q, k, v), {"blocks": None if call.blocks else "blocks"}),
    "no such stages": lambda q, k, v, call: ((q, k, v), {"implementation": "cuda"}),
    "a state of another shape": lambda q, k, v, call: ((q, k, v), {"state": ClusterState(1, ("another",))}),
}


@examples(30)
@given(calls(DTYPES, dims=(8,), most_tokens=40, most_calls=1), st.sampled_from(sorted(CHANGES)))
def test_calls_that_do_not_fit_are_refused(call, change):
    given_tensors, changed = CHANGES[change](*call.tensors(0), call)
    options = {"layouts": call.layouts, "blocks": call.blocks} | changed
    with pytest.raises(ValueError):
        sparse_attention(*given_tensors, call.settings, **options)


@examples(30)
@given(
    st.sampled_from([name for name, kind in Settings.__annotations__.items() if kind in ("float", "int", "str")]),
    st.sampled_from((-1, -0.5, 1.5, 3, "what", 17)),
)
def test_settings_are_valid_or_refused(name, value):
    if isinstance(value, str) != isinstance(getattr(Settings(), name), str):
        return
    try:
        Settings(**{name: value})
    except ValueError as error:
        assert name in str(error)


@examples(30)
@given(calls((torch.float16, torch.float32), dims=(8, 64), most_calls=2), st.integers(0, 2), st.sampled_from((float("nan"), float("inf"))))
def test_what_is_no_number_leaves_the_statistics_finite(call, place, value):
    state = ClusterState()
    tensors = [tensor.clone() for tensor in call.tensors(0)]
    tensors[place][:, :, :: 1 + call.seed % 7] = value
    broken = copy.copy(call)
    object.__setattr__(broken, "tensors", lambda number, sharing: tensors)
    for statistics in (run(broken, 0, state)[0].statistics, run(replace(call), len(call.kinds) - 1, state)[0].statistics):
        for name in ("density", "group_shares", "estimated_error"):
            assert getattr(statistics, name).isfinite().all()
