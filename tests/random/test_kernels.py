"""Any call of ``sparse_attention``, in plain torch, against float64."""

import copy
from dataclasses import replace

import pytest
import torch
from exact import Arithmetic, check
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Call, calls
from svg_ear.kernels import ClusterState, SequenceLayout, Settings, sparse_attention

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FEW = settings().derandomize


def examples(count, **options):
    """So many examples where the profile has no number of its own."""
    return settings(**options, **({"max_examples": count} if FEW else {}))


def run(call: Call, number: int, state, implementation="torch"):
    """Call number ``number``, and what was observed of it."""
    seen = []
    found = sparse_attention(
        *call.tensors(number),
        call.settings,
        layouts=call.layouts,
        blocks=call.blocks,
        state=state,
        scale=call.scale,
        memory_limit=call.memory_limit,
        observe=seen.append,
        implementation=implementation,
    )
    return found, seen


def check_calls(call: Call, implementation="torch"):
    """Every call keeps to float64, and gives the same again."""
    arithmetic = Arithmetic(call.dtype, narrow=implementation == "triton")
    state = ClusterState()
    for number in range(len(call.kinds)):
        before = ClusterState(state.calls, state.signature, dict(state.items))
        found, seen = run(call, number, state, implementation)
        scale = call.shape[-1] ** -0.5 if call.scale is None else call.scale
        repeating = call.blocks.repeating if call.blocks else ()
        check(*call.tensors(number), call.settings, call.layouts, scale, arithmetic, found, seen, repeating)
        again, _ = run(call, number, before, implementation)
        assert torch.equal(found.output, again.output)
        for name in ("density", "group_shares", "estimated_error"):
            assert torch.equal(getattr(found.statistics, name), getattr(again.statistics, name))


@examples(150)
@given(calls(DTYPES, dims=(1, 8, 64)))
def test_calls_keep_to_float64(call):
    check_calls(call)


CHANGES = {
    "another length of k": lambda q, k, v, call: ((q, k[:, :, :-1], v), {}),
    "another dtype of v": lambda q, k, v, call: ((q, k, v.double() if v.dtype != torch.float64 else v.float()), {}),
    "integers": lambda q, k, v, call: ((q.long(), k.long(), v.long()), {}),
    "three dimensions": lambda q, k, v, call: ((q[0], k[0], v[0]), {}),
    "a layout too few": lambda q, k, v, call: ((q, k, v), {"layouts": call.layouts * 2}),
    "a layout that is too long": lambda q, k, v, call: ((q, k, v), {"layouts": SequenceLayout(range(q.shape[2] + 1))}),
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
    object.__setattr__(broken, "tensors", lambda number: tensors)
    for statistics in (run(broken, 0, state)[0].statistics, run(replace(call), len(call.kinds) - 1, state)[0].statistics):
        for name in ("density", "group_shares", "estimated_error"):
            assert getattr(statistics, name).isfinite().all()
