"""The order of gathered tokens, told by splitting and gathering as the engines do."""

import pytest
import torch
from fake_comfyui import HunyuanVideo, LTXVModel, WanModel
from svg_ear.nodes.distributed.gathered import Gathered
from svg_ear.nodes.distributed.order import gathered_order, text_tokens
from svg_ear.nodes.patch.sequence import find_architecture
from svg_ear.nodes.recording.reasons import REPEATED_TOKENS, UNKNOWN_TOKENS


def shared_out(streams, ranks):
    """What an engine's all-to-all gathers of ``streams`` ``[B, tokens, H, D]``: every rank pads and cuts them, rank follows rank."""
    held = []
    for rank in range(ranks):
        for stream in streams:
            part = -(-stream.shape[1] // ranks)
            zeros = stream.new_zeros(stream.shape[0], part * ranks - stream.shape[1], *stream.shape[2:])
            held.append(torch.cat((stream, zeros), dim=1)[:, rank * part : (rank + 1) * part])
    return torch.cat(held, dim=1)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("tokens", [(96,), (97,), (5, 96), (7, 113), (0, 10), (1, 1), (3, 5, 7)])
def test_there_and_back(tokens, ranks):
    streams = [torch.randn(2, count, 3, 4) for count in tokens]
    order = Gathered(tokens, ranks)
    gathered = shared_out(streams, ranks)
    assert gathered.shape[1] == len(order)
    collected = order.collect(gathered)
    assert torch.equal(collected, torch.cat(streams, dim=1))
    assert torch.equal(order.spread(collected), gathered)


def test_a_single_stream_is_not_copied():
    gathered = torch.randn(1, 100, 2, 4)
    assert Gathered((97,), 4).collect(gathered).data_ptr() == gathered.data_ptr()


@pytest.mark.parametrize(("streams", "ranks"), [((), 2), ((0,), 2), ((-1, 5), 2), ((4,), 0)])
def test_nothing_to_share_is_refused(streams, ranks):
    with pytest.raises(ValueError, match="streams are"):
        Gathered(streams, ranks)


@pytest.mark.parametrize(
    ("model", "text", "block_type", "tokens", "streams"),
    [
        (WanModel, 0, "double", 108, (105,)),
        (LTXVModel, 0, None, 108, (105,)),
        (HunyuanVideo, 7, "double", 108 + 8, (7, 105)),
        (HunyuanVideo, 7, "single", 112, (112,)),
    ],
)
def test_the_order_of_the_models(model, text, block_type, tokens, streams):
    architecture, grid = find_architecture(model()), (3, 5, 7)
    assert gathered_order(architecture, grid, text, block_type, tokens, 4) == Gathered(streams, 4)
    # Four ranks repeat a reference of nine tokens; or the sequence is not of this video at all.
    assert gathered_order(architecture, grid, text, block_type, tokens + 4 * 9, 4) is REPEATED_TOKENS
    assert gathered_order(architecture, grid, text, block_type, tokens - 4, 4) is UNKNOWN_TOKENS


def test_text_is_what_the_model_reads_of_it():
    text, glyphs, picture = torch.zeros(1, 20, 8), torch.zeros(1, 5, 8), torch.zeros(1, 9, 8)
    model = HunyuanVideo()
    assert text_tokens(model, text, glyphs, picture) == 29
    model.byt5_in = object()
    assert text_tokens(model, text, glyphs, picture) == 34 and text_tokens(model, text) == 20
