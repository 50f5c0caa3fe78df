import torch
from svg_ear.kernels import SequenceLayout, sparse_attention
from svg_ear.nodes.patch.state import StateKey, StateStore


def key(**changes):
    values = {
        "device": torch.device("cpu"),
        "block_type": "double",
        "block_index": 0,
        "ordinal": 0,
        "branch": ((0,), ("a",)),
        "context_window": (),
        "shape": (1, 2, 96, 64),
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
        {"layouts": (SequenceLayout(range(6, 96), (range(6),)),)},
    ]
    store = StateStore()
    states = [store.get(key(**change)) for change in changes]
    assert len({id(state) for state in states}) == len(changes) == len(store)
    assert store.get(key()) is states[0]


def test_the_states_used_longest_ago_make_room():
    tensors = [torch.randn(1, 2, 96, 64) for _ in range(3)]
    single = StateStore()
    sparse_attention(*tensors, state=single.get(key()))
    store = StateStore(limit=2 * single.nbytes())
    states = []
    for window in range(4):
        states.append(store.get(key(context_window=(window,))))
        sparse_attention(*tensors, state=states[-1])
        store.get(key(context_window=(0,)))
    assert len(store) == 3
    assert store.get(key(context_window=(0,))) is states[0]
    assert store.get(key(context_window=(1,))) is not states[1]


def test_cleared_states_are_new_again():
    store = StateStore()
    first = store.get(key())
    store.clear()
    assert store.get(key()) is not first
    store.clear()
    assert len(store) == 0 and store.nbytes() == 0
