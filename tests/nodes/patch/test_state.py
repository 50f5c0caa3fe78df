import torch
from svg_ear.kernels import SequenceLayout, sparse_attention
from svg_ear.nodes.patch.state import StateKey, StateStore

TENSORS = torch.randn(3, 1, 2, 96, 64, generator=torch.Generator().manual_seed(0))


def key(**changes):
    values = {
        "device": torch.device("cpu"),
        "block_type": "double",
        "block_index": 0,
        "ordinal": 0,
        "branch": ((0,), ("a",)),
        "context_window": (),
        "shape": (1, 2, 96, 64),
        "dtype": torch.float32,
        "layouts": (SequenceLayout(range(96)),),
    }
    return StateKey(**values | changes)


def test_each_difference_has_a_state_of_its_own():
    changes = [
        {},
        {"device": torch.device("cuda", 1)},
        {"block_type": "single"},
        {"block_index": 1},
        {"ordinal": 1},
        {"branch": ((1,), ("b",))},
        {"branch": ((1, 0), ("b", "a"))},
        {"context_window": (0, 1, 2)},
        {"shape": (1, 2, 48, 64)},
        {"dtype": torch.bfloat16},
        {"layouts": (SequenceLayout(range(6, 96), (range(6),)),)},
    ]
    store = StateStore()
    states = [store.get(key(**change), 0) for change in changes]
    assert len({id(state) for state in states}) == len(changes) == len(store)
    assert store.get(key(), 0) is states[0]


def call(store, step, **changes):
    """One attention call; its state."""
    state = store.get(key(**changes), step)
    sparse_attention(*TENSORS, state=state)
    return state


def test_windows_that_moved_on_make_room():
    single = StateStore()
    call(single, 0)
    store = StateStore(limit=2 * single.nbytes())
    first = call(store, 0, context_window=(0,))
    for step in range(1, 5):
        call(store, step, context_window=(step, step + 1))
        assert call(store, step, context_window=(0,)) is first and store.nbytes() <= 3 * single.nbytes()
    assert store.get(key(context_window=(4, 5)), 4).calls == 1


def test_of_more_windows_than_there_is_room_for_some_are_found_again():
    """The one used longest ago is the one used next: letting it go would keep 4 GiB of clusters that no call ever finds."""
    single = StateStore()
    call(single, 0)
    store = StateStore(limit=5 * single.nbytes())
    found = [[call(store, step, context_window=(window,)).calls for window in range(9)] for step in range(3)]
    assert found[0] == [1] * 9
    assert sum(calls == 3 for calls in found[2]) == 6 and store.nbytes() <= 6 * single.nbytes()


def test_one_device_out_of_memory_leaves_the_others_alone():
    store = StateStore()
    here, there = (store.get(key(device=torch.device("cuda", number)), 0) for number in range(2))
    store.clear(torch.device("cuda", 0))
    assert store.get(key(device=torch.device("cuda", 1)), 0) is there
    assert store.get(key(device=torch.device("cuda", 0)), 0) is not here


def test_cleared_states_are_new_again():
    store = StateStore()
    first = store.get(key(), 0)
    store.clear()
    assert store.get(key(), 0) is not first
    store.clear()
    assert len(store) == 0 and store.nbytes() == 0
