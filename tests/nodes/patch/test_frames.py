"""Wan-Animate-2's attention: a call for each frame, after one of the pose."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import HEADS, Harness, counts, dense, dense_reasons, qkv
from svg_ear import kernels
from svg_ear.kernels import SequenceLayout
from svg_ear.nodes.patch.frames import frames_layout, is_frame, length_of
from svg_ear.nodes.recording.reasons import UNKNOWN_TOKENS, StrictModeError

# Frames, rows and columns of the played video, and tokens of a frame.
GRID = (3, 4, 8)
FRAME = 32
POSE = tuple(tensor[:, : 2 * FRAME] for tensor in qkv(96, seed=1))
VIDEO = qkv(96)


def frames(attention, block=0, pose=True, video=VIDEO):
    """The calls of one block as the model makes them; the outputs of its frames in a row."""
    q, k, v = video
    if pose:
        attention(*POSE, HEADS, block=block)
    found = []
    for frame in range(GRID[0]):
        own = slice((frame - 1) * FRAME, frame * FRAME)
        keys, values = (torch.cat((tensor, poses[:, own]), dim=1) if frame else tensor for tensor, poses in ((k, POSE[1]), (v, POSE[2])))
        found.append(attention(q[:, frame * FRAME : (frame + 1) * FRAME], keys, values, HEADS, block=block))
    return torch.cat(found, dim=1)


@pytest.fixture
def calls(monkeypatch):
    """The keywords of every sparse call."""
    found, sparse = [], kernels.sparse_attention
    monkeypatch.setattr(kernels, "sparse_attention", lambda *args, **kwargs: found.append(kwargs) or sparse(*args, **kwargs))
    return found


def test_the_keys_of_the_video_are_routed_and_those_of_the_pose_exact():
    assert frames_layout(FRAME, 96, GRID) == SequenceLayout(range(96), (), range(FRAME))
    assert frames_layout(FRAME, 128, GRID) == SequenceLayout(range(96), (range(96, 128),), range(FRAME))
    assert frames_layout(96, 96, GRID) == SequenceLayout(range(96))
    assert frames_layout(64, 64, GRID) == SequenceLayout(range(64))


@pytest.mark.parametrize(("queries", "keys"), [(FRAME, 160), (FRAME, 64), (64, 96), (FRAME, FRAME), (128, 128)])
def test_other_calls_are_not_understood(queries, keys):
    assert frames_layout(queries, keys, GRID) == UNKNOWN_TOKENS and not is_frame(queries, keys, GRID)


def test_everything_exact_is_dense():
    played, found = Harness("animate2", density=1.0), []
    record = played.sample(lambda: played.evaluate(lambda attention: found.append(frames(attention))))
    assert record.sparse_calls == 4 and not record.dense_calls and record.architecture == "Wan-Animate-2"
    torch.testing.assert_close(found[0], frames(lambda *args, block: dense(*args)), rtol=1e-4, atol=1e-5)


def test_calls_of_a_block_share_their_keys_until_its_last_frame(calls):
    played = Harness("animate2")
    played.sample(lambda: played.evaluate(lambda attention: [frames(attention, block) for block in range(2)]))
    shared = [call["shared"] for call in calls]
    assert shared[0] is None and shared[4] is None
    assert shared[1] is shared[2] is shared[3] and shared[5] is shared[6] is shared[7] and shared[1] is not shared[5]
    kept = weakref.ref(shared[1])
    shared.clear()
    calls.clear()
    assert kept() is None


def test_frames_keep_their_states_whether_the_pose_is_computed_again_or_not(calls):
    """From the second step on a cache may have the pose."""
    played = Harness("animate2")

    def steps():
        for step in range(3):
            played.evaluate(lambda attention, pose=step == 0: [frames(attention, block, pose) for block in range(2)], step=step)
        assert len(played.patch.states) == 2 * (GRID[0] + 1)

    played.sample(steps)
    states = [[id(call["state"]) for call in calls if call["layouts"].queries is not None][step * 6 : step * 6 + 6] for step in range(3)]
    assert states[0] == states[1] == states[2] and len(set(states[0])) == 6


def test_without_a_pose_all_of_the_video_comes_at_once():
    played = Harness("animate2")
    assert played.sample(lambda: played.evaluate(lambda attention: attention(*VIDEO, HEADS))).sparse_calls == 1


def test_attention_to_the_text_is_no_frame():
    q, k, v = VIDEO
    for text in (4, 40):
        assert dense_reasons(Harness("animate2"), lambda attention: attention(q, k[:, :text], v[:, :text], HEADS)) == {"cross-attention": 1}


def test_a_frame_is_as_long_as_a_whole_call_that_gains_as_much():
    assert length_of(3600, 75_600) == 32_994 and length_of(1560, 32_760) == 14_296
    assert length_of(75_600, 75_600) == length_of(75_600, 75_600) == 75_600 and length_of(9, 10) == 10

    def reasons(least):
        return dense_reasons(Harness("animate2", min_tokens=least), lambda attention: frames(attention, pose=False))

    # The first frame has 96 keys, the others 128.
    assert (reasons(96), reasons(97), reasons(129)) == ({}, {"short-sequence": 1}, {"short-sequence": 3})


def test_no_maps_are_made_of_frames(calls):
    played = Harness("animate2", record_limit_mb=64)
    record = played.sample(lambda: played.evaluate(frames))
    assert [call["observe"] is None for call in calls] == [False, True, True, True]
    assert len({(branch, layer, step) for branch, layer, step in record.trace.sparse}) == 1


def test_a_failure_lets_go_of_the_keys(monkeypatch):
    sparse, shared = kernels.sparse_attention, []

    def limited(*args, **kwargs):
        shared.append(kwargs["shared"])
        if len(shared) == 2:
            raise torch.OutOfMemoryError("no memory")
        return sparse(*args, **kwargs)

    monkeypatch.setattr(kernels, "sparse_attention", limited)
    played = Harness("animate2")
    record = played.sample(lambda: played.evaluate(lambda attention: frames(attention, pose=False)))
    assert counts(record) == {"out-of-memory": 1} and record.sparse_calls == 2
    assert shared[0] is shared[1] and shared[2] is not shared[1]


def test_other_models_do_not_say_which_queries_they_ask_for():
    q, k, v = VIDEO
    assert dense_reasons(Harness("wan"), lambda attention: attention(q[:, :FRAME], k, v, HEADS)) == {"partial-queries": 1}
    with pytest.raises(StrictModeError, match="asks for its attention in parts"):
        played = Harness("wan", strict=True)
        played.sample(lambda: played.evaluate(lambda attention: attention(q[:, :FRAME], k, v, HEADS)))


def test_a_calibration_of_all_queries_is_refused():
    played = Harness("animate2")
    played.patch.profile = SimpleNamespace(differences=lambda **values: [], forget_devices=lambda: None, density=0.2)
    record = played.sample(lambda: played.evaluate(lambda attention: frames(attention, pose=False)))
    assert counts(record) == {"calibrated-part": 3}
