"""Calls that repeat the launches of an earlier one give what they would have given without."""

import ctypes
import inspect
import sys
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from kernel_inputs import clustered
from svg_ear.kernels import ClusterState, SequenceLayout, Settings, StageTimer, replay, sparse_attention
from svg_ear.kernels.hollow import HollowCall
from triton_cases import GPU, arranged

pytest.importorskip("triton")
from svg_ear.kernels import triton_stages
from svg_ear.kernels.triton_stages.launches import Kernel, taken_over
from triton._C.libtriton import native_specialize_impl
from triton.backends.amd.compiler import HIPBackend
from triton.backends.nvidia.compiler import CUDABackend

pytestmark = pytest.mark.skipif(GPU, reason="test_cuda.py compares calls that repeat launches on a GPU")
TOKENS, TEXT, HEADS = 34, 5, 2
COUNTS = {"query_clusters": 3, "key_clusters": 17, "kmeans_first": 1, "kmeans_candidates": 16, "density": 0.3}
LAYOUT = SequenceLayout(range(TEXT, TOKENS + TEXT), (range(TEXT),))

CALLS = {
    "plain": {"arrangement": "tokens first"},
    "text": {"layouts": LAYOUT, "memory_limit": None},
    "shared clusters": {"batch": 2, "owners": [0, 0], "layouts": LAYOUT},
    "not always anew": {"settings": Settings(**COUNTS, recluster_every=2)},
    "no candidates": {"settings": Settings(**COUNTS | {"kmeans_candidates": 0}, key_metric=False, min_share=0.1)},
}


@pytest.fixture(autouse=True)
def no_recordings():
    replay._RECORDINGS.clear()
    yield
    replay._RECORDINGS.clear()


def call_of(name):
    """Options of a call, inputs for four of them, and how to make one."""
    options = {"settings": Settings(**COUNTS), "layouts": None, "memory_limit": 1, "implementation": "triton"} | CALLS[name]
    batch, arrangement = options.pop("batch", 1), options.pop("arrangement", "heads first")
    tokens = TOKENS + TEXT * (options["layouts"] is not None)
    steps = [clustered(tokens, batch, HEADS, dtype=torch.float16, seed=seed) for seed in range(5)]
    return options, [[arranged(tensor, arrangement) for tensor in step] for step in steps]


def tensor_at(address, like):
    """The tensor of the shape and dtype of ``like`` at an address."""
    if not address:
        return torch.empty_like(like)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride()))
    memory = (ctypes.c_char * (reach * like.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, like.stride())


@contextmanager
def relaunching():
    """Interpreted kernels are launched again by addresses, as compiled ones are; gives the names of those that were."""
    again = []

    def launch(kernel, grid, arguments, options):
        kernel.jitted[grid](*arguments, **options)
        likes = [value if isinstance(value, torch.Tensor) else None for value in arguments]

        def launch_again(*values):
            again.append(kernel.jitted.fn.__name__)
            kernel.jitted[grid](*(value if like is None else tensor_at(value, like) for value, like in zip(values, likes)), **options)

        return launch_again

    with patch.object(Kernel, "launch", launch):
        yield again


def started(options, inputs):
    """The state after a first call: what the torch stages leave is what a first call leaves, and takes the interpreter no time."""
    state = ClusterState()
    sparse_attention(*inputs, **options | {"implementation": "torch"}, state=state)
    return ClusterState(calls=1, items=state.items)


def results_of(result, state):
    """All tensors that a call gives or keeps."""
    statistics = result.statistics
    return [result.output, statistics.density, statistics.group_shares, statistics.estimated_error, *state.tensors()]


@pytest.mark.parametrize("name", CALLS)
def test_repeated_calls_give_the_same_bits(name):
    options, steps = call_of(name)
    state, kinds = started(options, steps[0]), options["settings"].recluster_every
    with relaunching() as again:
        for step in steps[1 : 1 + kinds]:
            sparse_attention(*step, **options, state=state)
        assert again == []
        plain = ClusterState(state.calls, state.signature, dict(state.items))
        for step in steps[1 + kinds : 1 + 2 * kinds]:
            found = results_of(sparse_attention(*step, **options, state=state), state)
        assert again
    with patch.object(triton_stages, "LAUNCHES", False):
        for step in steps[1 + kinds : 1 + 2 * kinds]:
            expected = results_of(sparse_attention(*step, **options, state=plain), plain)
    assert all(torch.equal(*pair) if pair[0] is not None else pair[1] is None for pair in zip(found, expected))


def test_stages_end_in_the_same_order():
    options, steps = call_of("text")
    state, ends = started(options, steps[0]), []
    with relaunching():
        for step in steps[1:3]:
            stages = []
            with patch.object(StageTimer, "start", lambda timer, device: stages.append):
                sparse_attention(*step, **options, state=state, timer=StageTimer())
            ends.append(stages)
    assert ends[1] == ends[0] and "conditioning" in ends[0]


def variant(backend, kernel, arguments, options):
    """What Triton asks of a launch to find out what to compile, in the words of Triton itself."""
    names = list(inspect.signature(kernel.fn).parameters)
    flags = [[name not in (kernel.kwargs[key] or ()) for name in names] for key in ("do_not_specialize", "do_not_specialize_on_alignment")]
    return [native_specialize_impl(backend, value, False, *how) for value, *how in zip(arguments, *flags)], options


def launches_of(tensors, options, state):
    """Kernel, grid, what is compiled on NVIDIA and on AMD, and arguments but for addresses of every launch of a call; none is made."""
    found = []

    def note(kernel, grid, arguments, given):
        compiled = [variant(backend, kernel.jitted, arguments, given) for backend in (CUDABackend, HIPBackend)]
        found.append((kernel, grid, compiled, [None if isinstance(value, torch.Tensor) else value for value in arguments]))

    with patch.object(triton_stages, "LAUNCHES", False), taken_over(note):
        sparse_attention(*tensors, **options, state=ClusterState(1, None, dict(state.items)))
    return found


def test_constants_follow_the_other_parameters_of_every_kernel():
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{triton_stages.__name__}.")]
    kernels = [value for module in modules for value in vars(module).values() if isinstance(value, Kernel)]
    assert len(kernels) >= 20
    for kernel in kernels:
        are_constants = ["constexpr" in str(given.annotation) for given in inspect.signature(kernel.jitted.fn).parameters.values()]
        assert are_constants == sorted(are_constants), kernel.jitted.fn


def aside(tensor, elements):
    """A copy that begins so many elements behind the start of its memory."""
    return torch.cat((tensor.new_zeros(elements), tensor.flatten()))[elements:].view(tensor.shape)


def packed(tensors, gap=0):
    """Copies that lie in one piece of memory, ``gap`` elements apart."""
    whole = torch.cat([torch.cat((tensor.flatten(), tensor.new_zeros(gap))) for tensor in tensors])
    size = tensors[0].numel()
    return [whole[place * (size + gap) :][:size].view(tensors[0].shape) for place in range(3)]


MEMORY = {
    "new": lambda tensors: [tensor.clone() for tensor in tensors],
    "3 elements aside": lambda tensors: [aside(tensor, 3) for tensor in tensors],
    "8 elements aside": lambda tensors: [aside(tensor, 8) for tensor in tensors],
    "packed": packed,
    "packed, apart": lambda tensors: packed(tensors, 8),
    "tokens first": lambda tensors: [arranged(tensor, "tokens first") for tensor in tensors],
    "one kept aside": lambda tensors: [tensors[0], aside(tensors[1], 1), tensors[2]],
}


@pytest.mark.parametrize("name", ["text", "shared clusters"])
def test_calls_of_one_kind_launch_the_same(name):
    """Kernels, grids, numbers, and whatever Triton compiles for, at whatever place of whatever memory the tensors are."""
    options, steps = call_of(name)
    state, by_kind, kinds = started(options, steps[0]), {}, []
    for place in MEMORY.values():
        for step in steps[1:3]:
            tensors = place(step)
            kind = str(replay._kinds(tensors))
            assert by_kind.setdefault(kind, (launched := launches_of(tensors, options, state))) == launched
            kinds.append(kind)
    assert len(by_kind) == len(MEMORY) and all(kinds.count(kind) == 2 for kind in by_kind)


def test_a_compiled_kernel_takes_arguments_then_constants_in_their_order():
    launched = []

    class Compiled:
        def __getitem__(self, grid):
            return lambda *values: launched.append((grid, values))

    class Jitted:
        arg_names = ["x", "scale", "count", "SIZE", "STAGES"]

        def __getitem__(self, grid):
            return lambda *arguments, **options: Compiled()

    again = Kernel(Jitted()).launch((3, 2), (torch.zeros(1), 0.5, 7), {"num_warps": 4, "STAGES": 2, "SIZE": 16})
    again(512, 0.5, 7)
    assert launched == [((3, 2, 1), (512, 0.5, 7, 16, 2))]


def test_what_is_no_launch_is_not_repeated():
    """Text on both sides of the video is joined by torch."""
    options, steps = call_of("text")
    options["layouts"] = SequenceLayout(range(2, TOKENS), (range(2), range(TOKENS, TOKENS + TEXT)))
    state = started(options, steps[0])
    with relaunching() as again:
        for step in steps[1:3]:
            found = sparse_attention(*step, **options, state=state).output
    assert again == [] and list(replay._RECORDINGS.values()) == [None]
    assert found.isfinite().all()


def test_tensors_without_data_leave_no_recording():
    options, steps = call_of("plain")
    HollowCall.like(*steps[0], options["settings"], None, None, 1).launches()
    assert not replay._RECORDINGS


def test_a_call_that_fails_leaves_no_recording():
    options, steps = call_of("plain")
    state = started(options, steps[0])

    def fail(*_):
        raise RuntimeError("out of registers")

    with patch.object(Kernel, "launch", fail), pytest.raises(RuntimeError, match="registers"):
        sparse_attention(*steps[1], **options, state=state)
    assert not replay._RECORDINGS


def test_inputs_that_share_memory_are_not_like_others():
    one, other = torch.arange(8), torch.arange(8, 16)
    for tensors in ([one[:4], one[4:]], [one[:4], other[4:]], [other[:4], one[4:]]):
        (found,) = replay.replayed(lambda done, first, second: [second[1:]], (), tensors, None)
        assert torch.equal(found, tensors[1][1:])
    assert len(replay._RECORDINGS) == 2


def test_the_oldest_recording_is_forgotten():
    tensor = torch.zeros(4)
    with patch.object(replay, "MOST_RECORDINGS", 2):
        for key in (1, 2, 1, 3):
            replay.replayed(lambda done, tensor: [tensor[1:]], (key,), [tensor], None)
    assert [key[0] for key in replay._RECORDINGS] == [1, 3]


def test_temporary_memory_is_used_again():
    """What is needed at one time lies apart, in hardly more than the most that is needed at any time."""
    options, steps = call_of("plain")
    state = started(options, steps[0])
    with relaunching(), patch.object(replay, "_arranged", side_effect=replay._arranged) as arranged:
        sparse_attention(*steps[1], **options, state=state)
    (recording,) = replay._RECORDINGS.values()
    (pieces,) = arranged.call_args.args
    most = 0
    for action in range(len(recording.actions)):
        held = [number for number, piece in pieces.items() if piece.uses[0] <= action <= piece.uses[1]]
        places = sorted((recording.temporary[number], pieces[number].nbytes) for number in held)
        assert all(start + size <= following for (start, size), (following, _) in zip(places, places[1:]))
        most = max(most, sum(size for _, size in places))
    assert most <= recording.nbytes <= 1.1 * most < sum(piece.nbytes for piece in pieces.values()) / 2
