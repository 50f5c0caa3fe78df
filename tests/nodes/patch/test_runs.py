"""What a patch tells and records of a whole sampler run."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import HEADS, Harness, qkv
from svg_ear.nodes.recording.record import Found
from svg_ear.nodes.recording.summary import report as told
from svg_ear.nodes.showing.figure import figure
from svg_ear.nodes.showing.payload import payload


def test_a_failed_run_is_recorded_and_leaves_nothing():
    played = Harness()

    def failing():
        played.evaluate(lambda attention: attention(*qkv(), HEADS))
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        played.sample(failing)
    assert not played.patch.recorder.newest().completed
    assert len(played.patch.states) == 0
    record = played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(), HEADS)))
    assert record.completed and record.sparse_calls == 1 and 0 <= record.density <= 0.2


def test_reasons_are_logged_once_a_run(caplog):
    played = Harness("unknown")

    def twice():
        for _ in range(2):
            played.evaluate(lambda attention: attention(*qkv(), HEADS))

    for _ in range(2):
        played.sample(twice)
    warnings = [entry for entry in caplog.records if entry.levelname == "WARNING"]
    assert len(warnings) == 2 and "unknown-architecture" in warnings[0].getMessage()


def test_reasons_by_design_are_logged_for_those_who_look(caplog):
    caplog.set_level("DEBUG", "svg_ear")
    played = Harness(min_tokens=10**6)
    played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(), HEADS)))
    assert [entry.levelname for entry in caplog.records if "short-sequence" in entry.getMessage()][0] == "DEBUG"


def test_the_node_tells_what_a_run_did():
    told = []
    played = Harness()
    played.patch.tell = told.append
    played.sample(lambda: [played.evaluate(lambda attention: attention(*qkv(), HEADS), step=step) for step in (1, 2)])
    assert len(told) == 1 and "2 of 2 calls sparse" in told[0]


def test_a_result_of_any_kind_leaves_the_outer_run_in_place():
    played = Harness()
    outer = played.patch.run
    for result in ([torch.ones(1, 2), torch.ones(1, 3)], [1, 2], "latent"):
        record = played.sample(lambda: played.evaluate(lambda attention: attention(*qkv(), HEADS)), result=result)
        assert record.completed and record.sparse_calls == 1 and played.patch.run is outer


def test_a_run_that_cannot_be_closed_leaves_the_outer_run_in_place(monkeypatch):
    played = Harness()
    outer = played.patch.run
    monkeypatch.setattr("svg_ear.nodes.recording.record.Run.finish", lambda self, result: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        played.sample(lambda: None)
    assert played.patch.run is outer


def test_the_run_knows_its_tokens_settings_and_dense_steps():
    played = Harness(dense_first_steps=2, min_tokens=50)
    played.base_model.latent_format = SimpleNamespace(spacial_downscale_ratio=8, temporal_downscale_ratio=4)

    def body():
        for step in range(5):
            played.evaluate(lambda attention: attention(*qkv(), HEADS), step=step)

    record = played.sample(body)
    assert (record.tokens, record.min_tokens, record.size.in_words()) == (96, 50, "128 x 64, 9 frames")
    assert record.dense_steps == 2 and record.times.dense_steps > 0 and "dense_first_steps 2" in record.settings
    assert record.times.speed_up > 0 and record.times.saved is not None


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_said(part, value):
    played = Harness()

    def body():
        for seed in range(2):
            tensors = qkv(seed=seed)
            if seed:
                tensors[part][0, 5, 3] = value
            played.evaluate(lambda attention: attention(*tensors, HEADS), step=seed)

    # What is no number in a query alone, or an infinite value, spoils no estimate; it comes out in the latent.
    shows_in_latent = part == 0 or (part == 2 and math.isinf(value))
    record = played.sample(body, torch.full((1, 4), value) if shows_in_latent else None)
    json.dumps(payload(Found((record,), record, True, True), None), allow_nan=False)
    figure(record, None, 4, 700)
    assert all(math.isfinite(number) for number in (record.density, record.estimated_error))
    assert "nan" not in told(Found((record,), record, True, True)).replace("NaN", "").lower()
    assert any("not finite" in text for text in record.warnings)


def test_steps_that_a_cache_skips_are_said_and_clusters_survive_them():
    """EasyCache sits between the evaluation and the model, others before both: no attention is asked for either way."""
    played, calls = Harness(dense_last_steps=1), []

    def step(number):
        played.evaluate(lambda attention: attention(*qkv(), HEADS), step=number)
        calls.append([state.calls for state in played.patch.states._states.values()])

    def body():
        step(0)
        played.evaluate(lambda attention: None, step=1)
        step(3)
        step(4)

    record = played.sample(body)
    assert (record.sparse_calls, record.skipped_steps, record.dense_steps, record.steps) == (2, 2, 1, 5)
    assert calls == [[1], [2], [2]]
    assert "Skipped steps: 2 of 5" in told(Found(runs=(record,), run=record, is_match=True))
    whole = played.sample(lambda: [step(number) for number in range(5)])
    assert whole.skipped_steps == 0 and "Skipped" not in told(Found(runs=(whole,), run=whole, is_match=True))
