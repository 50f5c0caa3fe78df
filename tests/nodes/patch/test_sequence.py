from types import SimpleNamespace

import pytest
import torch
from fake_comfyui import MODELS, HunyuanVideo, WanModel
from svg_ear.kernels import SequenceLayout
from svg_ear.nodes.patch.sequence import Routed, apply_mask, find_architecture, packed_segments, video_grid
from svg_ear.nodes.recording.reasons import MASK_HIDES_VIDEO, MASK_VARIES, MASK_WEIGHTS, UNKNOWN_TOKENS

TEXT_FIRST = SequenceLayout(range(6, 10), (range(6),))


def architecture(name):
    return find_architecture(MODELS[name]())


def test_subclasses_are_recognised():
    class VaceWanModel(WanModel):
        pass

    assert find_architecture(VaceWanModel()).name == "Wan"
    assert find_architecture(object()) is None


def test_patches_are_counted_after_padding():
    assert video_grid((2, 16, 3, 7, 10), WanModel()) == (3, 4, 5)
    assert video_grid((1, 128, 3, 7, 10), MODELS["ltx"]()) == (3, 7, 10)
    assert video_grid((1, 16, 64, 64), WanModel()) is None


def test_wan_routes_everything():
    assert architecture("wan").layout(12, 10) == SequenceLayout(range(12))
    assert architecture("wan").layout(9, 10) == UNKNOWN_TOKENS


def test_hunyuan_puts_text_first():
    assert architecture("hunyuan").layout(10, 4) == TEXT_FIRST
    assert architecture("hunyuan").layout(4, 4) == SequenceLayout(range(4))


@pytest.mark.parametrize("name", ["wan", "hunyuan", "ltx", "minimax"])
@pytest.mark.parametrize(("tokens", "video"), [(10, 0), (0, 0), (0, 4)])
def test_no_video_is_a_reason_and_no_error(name, tokens, video):
    assert architecture(name).layout(tokens, video) == UNKNOWN_TOKENS


def test_ltx_is_nothing_but_video():
    assert architecture("ltx").layout(10, 10) == SequenceLayout(range(10))
    assert architecture("ltx").layout(11, 10) == UNKNOWN_TOKENS


SEGMENTS = ((0, 3, "text"), (3, 4, "cond"), (4, 6, "audio"), (6, 10, "video"))


@pytest.mark.parametrize(
    "said", [{"minimax_h3_layout": SimpleNamespace(segments=list(SEGMENTS))}, {"minimax_payload": {"layout": None}}, {}]
)
def test_minimax_routes_the_video_whether_its_packing_is_told_or_not(said):
    segments = packed_segments(said)
    assert segments == (SEGMENTS if "minimax_h3_layout" in said else ())
    assert architecture("minimax").layout(10, 4, segments) == TEXT_FIRST


def test_what_is_packed_behind_the_video_is_exact_too():
    segments = packed_segments(
        {"minimax_payload": {"layout": SimpleNamespace(segments=[(0, 3, "text"), (3, 7, "video"), (7, 10, "audio")])}}
    )
    assert architecture("minimax").layout(10, 4, segments) == SequenceLayout(range(3, 7), (range(3), range(7, 10)))


@pytest.mark.parametrize(
    "segments", [((0, 5, "text"), (5, 10, "video")), ((0, 10, "text"),), ((0, 4, "video"), (4, 6, "audio"), (6, 10, "video"))]
)
def test_a_packing_that_does_not_fit_the_video_is_a_reason(segments):
    assert architecture("minimax").layout(10, 4, segments) == UNKNOWN_TOKENS
    assert architecture("minimax").layout(14, 4, segments) == SequenceLayout(range(10, 14), (range(10),)), "that of another sequence"


def test_single_blocks_are_numbered_after_double_blocks():
    known = architecture("hunyuan")
    assert known.layer("double", 1, HunyuanVideo()) == (1, 5)
    assert known.layer("single", 1, HunyuanVideo()) == (3, 5)


def additive(hidden, low=-3.4e38):
    mask = torch.zeros(10)
    mask[hidden] = low
    return mask


@pytest.mark.parametrize("low", [-3.4e38, -65504.0, float("-inf")])
@pytest.mark.parametrize("shape", [(1, 1, 10), (1, 1, 1, 10), (1, 10)])
def test_masks_become_ranges(low, shape):
    routed = apply_mask(TEXT_FIRST, additive([0, 4, 5], low).view(shape), 10)
    assert routed == Routed((SequenceLayout(range(6, 10), (range(1, 4),)),))


def test_boolean_masks_and_batches():
    mask = torch.ones(2, 1, 1, 10, dtype=torch.bool)
    mask[1, ..., 2] = False
    first, second = apply_mask(TEXT_FIRST, mask, 10).layouts
    assert first == TEXT_FIRST
    assert second.conditioning == (range(0, 2), range(3, 6))


def test_all_text_may_be_hidden():
    assert apply_mask(TEXT_FIRST, additive(range(6)).view(1, 1, 10), 10) == Routed((SequenceLayout(range(6, 10)),))


@pytest.mark.parametrize("weight", [-2.0, 1.5])
def test_weights_of_keys_around_the_video_are_added_to_their_logits(weight):
    mask = additive([1], weight)
    mask[3] = -1e9
    routed = apply_mask(TEXT_FIRST, mask.view(1, 1, 1, 10), 10)
    assert routed.layouts == (SequenceLayout(range(6, 10), (range(3), range(4, 6))),)
    assert torch.equal(routed.biases, mask.view(1, 1, 10))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.zeros(10, 10), MASK_VARIES),
        (torch.zeros(1, 2, 1, 10), MASK_VARIES),
        (additive([7]).view(1, 1, 10), MASK_HIDES_VIDEO),
        (additive([8], -2.0).view(1, 1, 10), MASK_WEIGHTS),
        (torch.zeros(1, 1, 9), UNKNOWN_TOKENS),
    ],
)
def test_masks_that_are_refused(mask, reason):
    assert apply_mask(TEXT_FIRST, mask, 10) == reason
