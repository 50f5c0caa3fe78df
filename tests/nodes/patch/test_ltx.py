"""LTX: the video's attention told from its text and audio by where it comes, and guides behind the video."""

import pytest
import torch
from fake_comfyui import HEADS, Harness, counts, dense, qkv
from svg_ear.nodes.recording.reasons import StrictModeError

# Two frames of video and one of guides, 32 tokens each.
LATENT = (1, 128, 3, 4, 8)
VIDEO, GUIDES = 64, 32
CONDITIONS = {"keyframe_idxs": torch.zeros(1, 3, GUIDES, 2)}


def run(body, conditions=CONDITIONS, evaluation=None, **widgets):
    """One evaluation of ``body(attention)`` in a run of its own; its record."""
    played = Harness("ltx", **widgets)
    return played.sample(lambda: played.evaluate(body, shape=LATENT, conditions=conditions, **(evaluation or {})))


def weights(*strengths):
    """What ComfyUI adds to the logits of the guides' keys."""
    mask = torch.zeros(1, 1, 1, VIDEO + GUIDES)
    logs = torch.tensor(strengths).repeat_interleave(GUIDES // len(strengths)).log()
    mask[..., VIDEO:] = logs.clamp(min=torch.finfo(torch.float32).min)
    return mask


def in_parts(q, k, v, mask):
    """The two calls of a block whose guides have weights."""

    def body(attention, found):
        found.append(attention(q[:, :VIDEO], k, v, HEADS, mask=mask, low_precision_attention=False))
        of_guides = torch.cat((mask[..., VIDEO:].transpose(2, 3).expand(-1, -1, -1, VIDEO), torch.zeros(1, 1, GUIDES, GUIDES)), -1)
        found.append(attention(q[:, VIDEO:], k, v, HEADS, mask=of_guides, low_precision_attention=False))

    return body


@pytest.mark.parametrize("tokens", [VIDEO + GUIDES, VIDEO + GUIDES // 4])
def test_guides_at_full_strength_are_routed_as_further_frames(tokens):
    """Also those of a coarser grid, which the latent has room for that the sequence does not have."""
    tensors, found = qkv(tokens), []
    record = run(lambda attention: found.append(attention(*tensors, HEADS)), density=1.0, strict=True)
    assert record.sparse_calls == 1 and not record.dense_calls
    torch.testing.assert_close(found[0], dense(*tensors, HEADS), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("tokens", "conditions"), [(VIDEO, CONDITIONS), (97, CONDITIONS), (VIDEO + 8, {})])
def test_other_lengths_are_not_understood(tokens, conditions):
    with pytest.raises(StrictModeError, match="unknown-tokens"):
        run(lambda attention: attention(*qkv(tokens), HEADS), conditions, strict=True)


@pytest.mark.parametrize("strengths", [(0.5,), (2.0, 0.3), (0.7, 0.0)])
def test_the_keys_of_weak_guides_are_exact_and_their_queries_dense(strengths):
    tensors, mask, found = qkv(VIDEO + GUIDES), weights(*strengths), []
    body = in_parts(*tensors, mask)
    record = run(lambda attention: body(attention, found), density=1.0, strict=True, min_tokens=GUIDES + 1)
    assert record.sparse_calls == 1 and counts(record) == {"guide-queries": 1}
    expected = dense(tensors[0][:, :VIDEO], *tensors[1:], HEADS, mask=mask)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)


def test_what_is_shown_of_a_run_with_weak_guides_is_the_video():
    body = in_parts(*qkv(VIDEO + GUIDES), weights(0.5))
    record = run(lambda attention: body(attention, []))
    assert {recorded.grid for recorded in record.trace.maps} == {(2, 4, 8)} and not record.trace.dense


def test_parts_of_what_has_no_guides_are_refused():
    q, k, v = qkv(96)
    assert counts(run(lambda attention: attention(q[:, :VIDEO], k, v, HEADS), {})) == {"partial-queries": 1}


def test_text_as_long_as_the_video_is_told_by_its_place_in_the_block():
    def blocks(attention):
        for block in range(2):
            for _ in range(2):
                attention(*qkv(96), HEADS, block=block)

    record = run(blocks, strict=True)
    assert record.sparse_calls == 2 and counts(record) == {"cross-attention": 2}


@pytest.mark.parametrize("left_out", [{"stg_skip_self_attn": True}, {"run_vx": False}])
def test_a_block_that_leaves_the_video_out_has_no_call_of_it(left_out):
    record = run(lambda attention: attention(*qkv(96), HEADS), evaluation=left_out)
    assert record.sparse_calls == 0 and counts(record) == {"cross-attention": 1}
