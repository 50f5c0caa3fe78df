import numpy as np
import pytest
import torch
from fake_comfyui import HEADS, Harness, counts, qkv
from svg_ear.nodes.recording.routed import CODES, error_of_code
from svg_ear.nodes.recording.selection import Selection
from svg_ear.nodes.recording.trace import MapChoice, Place

BLOCKS = 4
STEPS = 5


def choice(layers=None, steps=None, heads=None, dense="0"):
    return MapChoice(*(text and Selection.parse(text, "record") for text in (layers, steps, heads)), Selection.parse(dense, "dense"), 2**20)


def recorded_at(chosen, heads=8):
    found = set()
    for layer in range(10):
        for step in range(10):
            place = Place(layer, 10, step, (3, 4, 5, 6, 7, 8, 9), ("cond",), None)
            found |= {(layer, step, head) for head in chosen.heads_at(place, heads)}
    return found


def test_automatic_choice_is_spread_over_what_runs_sparse():
    found = recorded_at(choice())
    assert found == {(layer, step, head) for layer in (1, 5, 9) for step in (3, 6, 9) for head in (0, 7)}


def test_what_is_chosen_is_recorded():
    assert recorded_at(choice("2, -1", "4", "0-1")) == {(layer, 4, head) for layer in (2, 9) for head in (0, 1)}
    assert recorded_at(MapChoice(Selection(()), None, None, Selection(()), 2**20)) == set()


def played_run(batch=1, **widgets):
    """Every block of every step, and the record."""
    played = Harness(**({"dense_first_steps": 1, "dense_blocks": "0", "density": 0.3} | widgets))
    kinds = {"cond_or_uncond": [1, 0][2 - batch :], "uuids": ["u", "c"][2 - batch :]}

    def blocks(attention):
        for block in range(BLOCKS):
            attention(*qkv(batch=batch, seed=block), HEADS, block=block)

    def body():
        for step in range(STEPS):
            played.evaluate(blocks, step=step, **kinds)

    return played.sample(body)


def test_every_call_is_located():
    trace = played_run(batch=2).trace
    sparse = {(layer, step) for layer in range(1, BLOCKS) for step in range(1, STEPS)}
    assert set(trace.sparse) == {(branch, *cell) for branch in ("cond", "uncond") for cell in sparse}
    assert {cell: reason.name for cell, reason in trace.dense.items()} == (
        {(layer, 0): "warm-up-step" for layer in range(BLOCKS)} | {(0, step): "dense-block" for step in range(1, STEPS)}
    )
    assert trace.layers == BLOCKS and trace.branches == ["cond", "uncond"]
    figures = np.stack(list(trace.sparse.values()))
    assert figures.shape == (len(trace.sparse), 2, HEADS) and np.all(figures[:, 1] > 0)
    # Clusters of so few tokens that were found for cond meet the share for cond only.
    own = np.stack([found for (branch, *_), found in trace.sparse.items() if branch == "cond"])
    assert own[:, 0].mean() == pytest.approx(0.3, abs=0.05)


def test_steps_are_shown_with_their_own_density():
    record = played_run(dense_first_steps=0, warm_up_density=0.8, density=0.2)
    found = [np.mean([figures[0].mean() for (*_, at), figures in record.trace.sparse.items() if at == step]) for step in range(STEPS)]
    assert found == pytest.approx([0.8 * 0.25 ** (step / 4) for step in range(STEPS)], abs=0.05)
    assert counts(record) == {"dense-block": STEPS} and record.dense_steps == 0
    assert "density 0.2, warm_up_density 0.8, dense_first_steps 0" in record.settings and record.times.speed_up > 0


def test_maps_agree_with_the_figures_of_their_call():
    trace = played_run(batch=2).trace
    assert {(m.branch, m.layer, m.step, m.head) for m in trace.maps} == {
        (branch, layer, step, head) for branch in ("cond", "uncond") for layer in (1, 2, 3) for step in (1, 3, 4) for head in (0, 1)
    }
    for recorded in trace.maps:
        density, error = trace.sparse[recorded.branch, recorded.layer, recorded.step][:, recorded.head]
        assert recorded.density == pytest.approx(density, abs=1e-5)
        assert recorded.grid == (3, 4, 8) and len(recorded.key_labels) == 96
        assert recorded.group_sizes.sum() == recorded.cluster_sizes.sum() == 96
        # one group's errors are relative to its own output: over all groups they enclose the error of the head
        left = np.sqrt((np.where(recorded.exact, 0, recorded.errors) ** 2).sum(1))
        assert left.min() * 0.9 <= error <= left.max() * 1.1


def test_nothing_is_recorded_where_nothing_may_be_kept():
    assert played_run(record_limit_mb=0).trace.maps == ()
    assert played_run(record_layers="").trace.maps == ()


def test_the_limit_leaves_maps_out(monkeypatch):
    monkeypatch.setattr(
        "svg_ear.nodes.patch.options.Options.recorded", lambda options: MapChoice(None, None, None, options.dense_layers(), 1000)
    )
    trace = played_run().trace
    assert 0 < trace.nbytes() <= 1000 and trace.maps_left_out + len(trace.maps) == 3 * 3 * HEADS


def test_codes_of_errors_are_close():
    assert error_of_code(np.array([0], dtype=np.uint8)) == 0
    steps = error_of_code(np.arange(1, CODES + 1, dtype=np.uint8))
    assert np.all(np.diff(np.log10(steps)) < 0.03) and steps[-1] == pytest.approx(10.0)


def test_dense_and_sparse_calls_give_a_speed_up():
    record = played_run()
    assert record.times.speed_up > 0 and not torch.isnan(torch.tensor(record.times.speed_up))
    assert played_run(dense_first_steps=0, dense_blocks="").times.speed_up is None


@pytest.mark.parametrize(("tokens", "grid"), [(96, (3, 4, 8)), (112, None)])
def test_the_grid_is_known_only_without_other_tokens(tokens, grid):
    played = Harness(record_layers="0")
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(tokens), HEADS, block=0)))
    assert [recorded.grid for recorded in record.trace.maps] == [grid] * HEADS
