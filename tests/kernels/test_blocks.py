"""Method ``calibrated``: given blocks of positions in the place of a routing."""

import pytest
import torch
from kernel_inputs import clustered, relative_error
from svg_ear.kernels import BlockRouting, SequenceLayout, Settings, reference, sparse_attention
from svg_ear.kernels.blocks import ANCHOR_EVERY, block_count
from svg_ear.kernels.torch_stages.cluster import cluster_from_labels
from svg_ear.kernels.types import Conditioning, Routing
from triton_cases import DEVICE

SIZE = 16
PLAIN = Settings(method="calibrated", weighted_centroids=False)
WEIGHTED = Settings(method="calibrated")
DROPPING = Settings(method="calibrated", compensate=False)
LAYOUT = SequenceLayout(range(7, 140), (range(0, 5), range(140, 149)))


def some_blocks(tokens, heads, repeating=(), share=0.4, size=SIZE):
    """A random routing whose diagonal is exact."""
    count = block_count(tokens, size)
    exact = torch.rand(heads, count, count, generator=torch.Generator().manual_seed(1)) < share
    return BlockRouting(exact | torch.eye(count, dtype=bool), size, repeating)


def with_labels(blocks, tokens):
    """The same table for blocks of scattered tokens, others in every head."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.stack([torch.randperm(tokens, generator=generator) // blocks.size for _ in blocks.exact])
    return BlockRouting(blocks.exact, blocks.size, blocks.repeating, labels.int()), labels.argsort(dim=-1, stable=True)


def expected_output(q, k, v, settings, layout, blocks):
    """The reference's attention of the video tokens."""
    video = slice(layout.video.start, layout.video.stop)
    queries, keys, values = (x[:, :, video].double() for x in (q, k, v))
    outside = [position for span in layout.conditioning for position in span]
    conditioning = Conditioning(k[:, :, outside].double(), v[:, :, outside].double())
    labels = torch.arange(len(layout.video)) // blocks.size if blocks.labels is None else blocks.labels
    labels = labels.expand(queries.shape[:3])
    previous = queries.new_zeros(*q.shape[:2], blocks.exact.shape[-1], q.shape[-1])
    groups, clusters = (cluster_from_labels(tokens, labels, previous) for tokens in (queries, keys))
    sorted_keys = reference.permute(keys, values, clusters)
    routing = Routing(blocks.exact.expand(q.shape[0], -1, -1, -1), None)
    summaries, scale = reference.summarize(sorted_keys), q.shape[-1] ** -0.5
    return reference.attend(queries, groups, sorted_keys, conditioning, summaries, routing, settings, scale)


@pytest.mark.parametrize("scattered", [False, True], ids=["consecutive", "scattered"])
@pytest.mark.parametrize("settings", [PLAIN, WEIGHTED, DROPPING], ids=["plain", "weighted", "dropping"])
def test_matches_the_reference(settings, scattered):
    q, k, v = clustered(149, batch=2, heads=3)
    blocks = some_blocks(133, 3)
    if scattered:
        blocks, _ = with_labels(blocks, 133)
    found = sparse_attention(q, k, v, settings, layouts=LAYOUT, blocks=blocks)
    expected = expected_output(q, k, v, settings, LAYOUT, blocks)
    assert relative_error(found.output[:, :, 7:140], expected) < 1e-12
    sizes = torch.full((9,), SIZE).index_fill_(0, torch.tensor(8), 5)
    shares = (blocks.exact * sizes[:, None] * sizes).sum((1, 2)) / 133**2
    torch.testing.assert_close(found.statistics.density, shares.float().expand(2, -1))


@pytest.mark.parametrize("tokens", [1, 15, 16, 129, 200])
def test_everything_exact_is_dense(tokens):
    q, k, v = clustered(tokens, heads=2)
    count = block_count(tokens, SIZE)
    blocks = BlockRouting(torch.ones(2, count, count, dtype=bool), SIZE)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert relative_error(sparse_attention(q, k, v, DROPPING, blocks=blocks).output, dense) < 1e-12


@pytest.mark.parametrize("memory_limit", [1, None])
def test_repeating_heads_are_copies_of_their_anchors(memory_limit):
    """Head 1 repeats: anchors as without repetition, the others as their anchor, and what was computed is counted."""
    q, k, v = clustered(11 * SIZE - 3, heads=3)
    tokens, every = q.shape[2], some_blocks(q.shape[2], 3)
    all_rows = sparse_attention(q, k, v, blocks=every, settings=WEIGHTED)
    repeated = sparse_attention(q, k, v, blocks=BlockRouting(every.exact, SIZE, (1,)), settings=WEIGHTED, memory_limit=memory_limit)
    torch.testing.assert_close(repeated.output[:, [0, 2]], all_rows.output[:, [0, 2]])
    for token in range(tokens):
        block, place = divmod(token, SIZE)
        source = (block - block % ANCHOR_EVERY) * SIZE + place
        torch.testing.assert_close(repeated.output[:, 1, token], all_rows.output[:, 1, source])
    rows = torch.arange(tokens) // SIZE % ANCHOR_EVERY == 0
    keys = every.exact[1].repeat_interleave(SIZE, 0)[:tokens].repeat_interleave(SIZE, 1)[:, :tokens]
    assert repeated.statistics.density[0, 1].item() == pytest.approx(keys[rows].sum().item() / tokens**2)


@pytest.mark.parametrize("memory_limit", [1, None])
def test_scattered_blocks_are_consecutive_ones_in_another_order(memory_limit):
    """Head 1 repeats: its copies follow the order of the blocks, too."""
    q, k, v = clustered(11 * SIZE - 3, heads=3)
    blocks, orders = with_labels(some_blocks(q.shape[2], 3, repeating=(1,)), q.shape[2])
    found = sparse_attention(q, k, v, WEIGHTED, blocks=blocks, memory_limit=memory_limit)
    index = orders[None, :, :, None].expand_as(q)
    arranged = (x.gather(2, index) for x in (q, k, v))
    consecutive = sparse_attention(*arranged, WEIGHTED, blocks=BlockRouting(blocks.exact, SIZE, (1,)))
    torch.testing.assert_close(found.output.gather(2, index), consecutive.output)
    torch.testing.assert_close(found.statistics.density, consecutive.statistics.density)


def test_a_call_needs_blocks_that_fit():
    q, k, v = clustered(100)
    blocks = some_blocks(100, 2)
    with pytest.raises(ValueError, match="pass blocks with method 'calibrated'"):
        sparse_attention(q, k, v, WEIGHTED)
    with pytest.raises(ValueError, match="pass blocks with method 'calibrated'"):
        sparse_attention(q, k, v, blocks=blocks)
    with pytest.raises(ValueError, match=r"need \(2, 7, 7\)"):
        sparse_attention(q, k, v, WEIGHTED, blocks=some_blocks(120, 2))
    with pytest.raises(ValueError, match=r"need \(2, 7, 7\)"):
        sparse_attention(q, k, v, WEIGHTED, blocks=some_blocks(100, 3))
    with pytest.raises(ValueError, match=r"labels of blocks are \(2, 99\) on cpu; this call needs \(2, 100\)"):
        sparse_attention(q, k, v, WEIGHTED, blocks=BlockRouting(blocks.exact, SIZE, (), torch.zeros(2, 99, dtype=torch.int32)))
    with pytest.raises(ValueError, match=r"labels are torch.int64 \(2, 100\); 2 heads need int32 \[2, N\]"):
        BlockRouting(blocks.exact, SIZE, (), torch.zeros(2, 100, dtype=torch.int64))
    with pytest.raises(ValueError, match="bool"):
        BlockRouting(torch.ones(2, 7, 7), SIZE)
    with pytest.raises(ValueError, match="repeating heads"):
        BlockRouting(torch.ones(2, 7, 7, dtype=bool), SIZE, (2,))


class TestTriton:
    """The kernels against the torch stages."""

    @pytest.fixture(autouse=True)
    def triton(self):
        pytest.importorskip("triton")

    @pytest.mark.parametrize("settings", [PLAIN, WEIGHTED, DROPPING], ids=["plain", "weighted", "dropping"])
    def test_a_call_gives_what_torch_gives(self, settings):
        from triton_cases import inputs

        q, k, v = inputs(149, torch.float32, heads=2)
        chosen, _ = with_labels(some_blocks(133, 2), 133)
        blocks = BlockRouting(chosen.exact.to(DEVICE), SIZE, (1,), chosen.labels.to(DEVICE))
        plain, fused = (
            sparse_attention(q, k, v, settings, layouts=LAYOUT, blocks=blocks, implementation=name) for name in ("torch", "triton")
        )
        assert relative_error(fused.output[:, :, 7:140], plain.output[:, :, 7:140]) < (2e-3 if q.is_cuda else 2e-6)
        torch.testing.assert_close(fused.statistics.density, plain.statistics.density)

    def test_given_rows_are_listed(self):
        """Rows without any block, with all, and with one at each end."""
        from svg_ear.kernels.triton_stages import cluster_from_labels, route_given
        from triton_cases import inputs

        tokens = inputs(150, torch.float32, heads=1)[0]
        labels = (torch.arange(150, dtype=torch.int32, device=DEVICE) // SIZE).expand(1, 1, -1).contiguous()
        clusters = cluster_from_labels(tokens, labels, tokens.new_zeros(1, 1, 10, 64))
        exact = torch.zeros(1, 1, 10, 10, dtype=bool, device=DEVICE)
        exact[..., 1, :] = exact[..., 2, 0] = exact[..., 3, 9] = exact[..., 4, ::2] = True
        routing = route_given(exact, clusters)
        assert torch.equal(routing.exact, exact)
        for row in range(10):
            entries = routing.rows.entries[0, 0, row, : routing.rows.counts[0, 0, row]].tolist()
            listed = [place for entry in entries for place in range(entry >> 5, (entry >> 5) + (entry & 31))]
            assert listed == [token for token in range(150) if exact[0, 0, row, token // SIZE]]


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_a_row_without_blocks_attends_to_its_own_where_the_rest_is_dropped(implementation):
    if implementation == "triton":
        pytest.importorskip("triton")
    q, k, v = (x.to(DEVICE) for x in clustered(60, heads=1, dtype=torch.float32))
    none, own = torch.zeros(2, 1, 4, 4, dtype=torch.bool, device=DEVICE)
    own |= torch.eye(4, dtype=torch.bool, device=DEVICE)

    def attend(exact):
        return sparse_attention(q, k, v, DROPPING, blocks=BlockRouting(exact, SIZE), implementation=implementation)

    found, expected = attend(none), attend(own)
    assert torch.equal(found.output, expected.output) and found.output.isfinite().all()


def test_a_block_has_tokens():
    with pytest.raises(ValueError, match="size is 0; a block has at least one token"):
        BlockRouting(torch.ones(1, 2, 2, dtype=torch.bool), 0)
