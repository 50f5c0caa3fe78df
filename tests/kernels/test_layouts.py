"""Calls whose queries are a part of the video, whose exact keys have biases, and which share their keys."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kernel_inputs import clustered, relative_error
from svg_ear.kernels import BlockRouting, ClusterState, SequenceLayout, Settings, SharedKeys, StageTimer, reference, sparse_attention
from svg_ear.kernels.counts import cluster_counts, routed_counts

EVERYTHING = Settings(density=1.0)
SETTINGS = Settings(density=0.2, query_clusters=4, key_clusters=25, kmeans_candidates=16, kmeans_first=3)
KEYS = 345
# Keys 13 to 19 and the last four are padding; queries 0 to 4 and 65 on are dense.
LAYOUT = SequenceLayout(range(20, 320), (range(0, 13), range(330, 341)), range(5, 65))
QUERIES = 70


def call(queries=QUERIES, keys=KEYS, seed=0, **options):
    """q of one length, k and v of another."""
    q, k, v = clustered(max(queries, keys), seed=seed, **options)
    return q[:, :, :queries], k[:, :, :keys], v[:, :, :keys]


def biases_for(k, seed=0, items=1, heads=1):
    """Biases of the keys around the video, one of which is hidden."""
    found = 2 * torch.randn(items, heads, k.shape[2], generator=torch.Generator().manual_seed(seed))
    found[:, :, 20:320] = 0
    found[:, :, 3] = -torch.inf
    return found


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_matches_the_reference(dtype, biased, weighted):
    q, k, v = call(heads=3, dtype=dtype)
    settings, state = replace(SETTINGS, weighted_centroids=weighted), ClusterState()
    biases = biases_for(k, heads=3) if biased else None
    sparse_attention(q, k, v, settings, layouts=LAYOUT, biases=biases, state=state)
    kept = state.items[0]
    centroids = (kept.query_centroids.double(), kept.key_centroids.double())
    starts = type(kept)(*centroids, kept.query_labels.long(), kept.key_labels.long())
    found = sparse_attention(q, k, v, settings, layouts=LAYOUT, biases=biases, state=state).output
    wide = (q.double(), k.double(), v.double())
    expected = reference.sparse_attention(*wide, settings, LAYOUT, 0.125, starts, biases)
    rounding = relative_error(F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(*wide))
    assert found.dtype == dtype and found.shape == q.shape
    assert relative_error(found, expected) < 2 * rounding + 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 3, 64, 113, 345, 400])
@pytest.mark.parametrize("biased", [True, False])
def test_everything_exact_is_dense(queries, biased, dtype):
    q, k, v = call(queries, batch=2, dtype=dtype)
    layout = replace(LAYOUT, queries=range(queries))
    biases = biases_for(k, items=2) if biased else None
    result = sparse_attention(q, k, v, EVERYTHING, layouts=layout, biases=biases)
    expected = reference.dense_attention(q.double(), k.double(), v.double(), layout, 0.125, biases)
    rounding = relative_error(F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q.double(), k.double(), v.double()))
    assert relative_error(result.output, expected) < 2 * rounding + 1e-7
    assert (result.statistics.density == 1).all()


def test_biases_that_are_zero_change_nothing():
    q, k, v = call()
    plain = sparse_attention(q, k, v, SETTINGS, layouts=LAYOUT).output
    assert torch.equal(sparse_attention(q, k, v, SETTINGS, layouts=LAYOUT, biases=torch.zeros(1, 1, KEYS)).output, plain)


def test_a_bias_is_a_weight():
    """A key with the bias log 2 counts as two of them, for routed queries and for dense ones."""
    q, k, v = call()
    biases = torch.zeros(1, 1, KEYS)
    biases[..., 7] = torch.tensor(2.0).log()
    twice = replace(LAYOUT, conditioning=(range(0, 13), range(330, 342)))
    k2, v2 = (torch.cat((tensor[:, :, :341], tensor[:, :, 7:8]), dim=2) for tensor in (k, v))
    found = sparse_attention(q, k, v, SETTINGS, layouts=LAYOUT, biases=biases).output
    assert relative_error(found, sparse_attention(q, k2, v2, SETTINGS, layouts=twice).output) < 1e-7


def test_fewer_queries_are_the_queries_that_they_are():
    """Dense whatever is not given: the same rows of a call with more."""
    q, k, v = clustered(300)
    found = sparse_attention(q[:, :, 100:140], k, v, EVERYTHING, layouts=SequenceLayout(range(300), queries=range(40))).output
    assert relative_error(found, sparse_attention(q, k, v, EVERYTHING).output[:, :, 100:140]) < 1e-12


def test_a_part_of_the_queries_makes_groups_that_fill_a_tile():
    assert cluster_counts(75_600, Settings()) == (300, 600)
    assert cluster_counts(75_600, Settings(), 3600) == (29, 600)
    assert cluster_counts(32_760, Settings(), 1560) == (13, 512)
    assert cluster_counts(75_600, Settings(), 40) == (1, 600)
    assert routed_counts(75_600, Settings(), 3600)[1] == routed_counts(75_600, Settings())[1]
    assert cluster_counts(75_600, Settings(query_clusters=7), 3600) == (7, 600)


class TestSharing:
    def calls(self, count=3, **options):
        """Calls with the same keys."""
        _, k, v = call(**options)
        return [(call(seed=1 + number, **options)[0], k, v) for number in range(count)]

    @pytest.mark.parametrize("limit", [1, 1 << 40, None])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_calls_give_what_each_gives_alone(self, batch, limit):
        """Step by step, with exact keys of their own."""
        states = [[ClusterState() for _ in range(3)] for _ in range(2)]
        for _ in range(2):
            shared = SharedKeys()
            for number, tensors in enumerate(self.calls(batch=batch, heads=3)):
                layout = replace(LAYOUT, conditioning=LAYOUT.conditioning[:number])
                options = {"layouts": layout, "memory_limit": limit}
                own = sparse_attention(*tensors, SETTINGS, state=states[0][number], **options)
                found = sparse_attention(*tensors, SETTINGS, state=states[1][number], shared=shared, **options)
                assert torch.equal(found.output, own.output)
                assert torch.equal(found.statistics.density, own.statistics.density)

    def test_keys_are_clustered_and_sorted_once(self):
        shared, names = SharedKeys(), []
        for tensors in self.calls():
            timer, state = StageTimer(), ClusterState()
            sparse_attention(*tensors, SETTINGS, layouts=LAYOUT, state=state, shared=shared, timer=timer, memory_limit=1 << 40)
            names.append(list(timer.seconds()))
            assert (state.items[0].key_centroids is None) == (len(names) > 1)
        assert len(shared.clusters) == len(shared.sorted) == 1
        assert "permute" in names[0] and not {"permute", "summarize"} & {*names[1], *names[2]}

    def test_little_memory_keeps_no_copies_of_the_keys(self):
        shared = SharedKeys()
        for tensors in self.calls():
            sparse_attention(*tensors, SETTINGS, layouts=LAYOUT, shared=shared, memory_limit=1)
        assert not shared.sorted and len(shared.clusters) == 1

    def test_labels_are_reused_between_reclusterings(self):
        settings, states = replace(SETTINGS, recluster_every=2), [[ClusterState() for _ in range(2)] for _ in range(2)]
        for _ in range(3):
            shared = SharedKeys()
            for number, tensors in enumerate(self.calls(2)):
                own = sparse_attention(*tensors, settings, layouts=LAYOUT, state=states[0][number]).output
                found = sparse_attention(*tensors, settings, layouts=LAYOUT, state=states[1][number], shared=shared).output
                assert torch.equal(found, own)

    def test_items_take_the_clusters_of_their_owners(self):
        for own_layouts in ((LAYOUT, LAYOUT), (LAYOUT, replace(LAYOUT, conditioning=()))):
            shared = SharedKeys()
            for tensors in self.calls(batch=2):
                options = {"layouts": own_layouts, "owners": (0, 0)}
                own = sparse_attention(*tensors, SETTINGS, **options).output
                assert torch.equal(sparse_attention(*tensors, SETTINGS, shared=shared, **options).output, own)

    @pytest.mark.parametrize(
        "change",
        [{"layouts": replace(LAYOUT, video=range(20, 319))}, {"settings": replace(SETTINGS, density=0.3)}, {"owners": (0, 0)}],
        ids=str,
    )
    def test_keys_of_other_calls_are_refused(self, change):
        shared, (tensors, *_) = SharedKeys(), self.calls(batch=2)
        options = {"settings": SETTINGS, "layouts": LAYOUT, "shared": shared}
        sparse_attention(*tensors, **options)
        with pytest.raises(ValueError, match="use new SharedKeys"):
            sparse_attention(*tensors, **options | change)


class TestRefusals:
    @pytest.mark.parametrize(
        ("layout", "message"),
        [
            (replace(LAYOUT, queries=range(10, 71)), "reaches query 71, but there are 70"),
            (replace(LAYOUT, queries=None), "needs layouts that name the queries"),
            (replace(LAYOUT, conditioning=(range(0, 13), range(330, 346))), "reaches position 346"),
        ],
    )
    def test_layouts_that_do_not_fit(self, layout, message):
        with pytest.raises(ValueError, match=message):
            sparse_attention(*call(), SETTINGS, layouts=layout)

    @pytest.mark.parametrize("queries", [range(0), range(0, 10, 2), range(-1, 4)], ids=str)
    def test_queries_that_are_no_range_of_positions(self, queries):
        with pytest.raises(ValueError, match="video and queries not empty"):
            SequenceLayout(range(20), queries=queries)

    def test_items_with_different_numbers_of_queries(self):
        with pytest.raises(ValueError, match="split the batch"):
            sparse_attention(*call(batch=2), SETTINGS, layouts=[LAYOUT, replace(LAYOUT, queries=range(59))])

    def test_owners_whose_queries_lie_elsewhere(self):
        with pytest.raises(ValueError, match="let each item be its own"):
            sparse_attention(*call(batch=2), SETTINGS, layouts=[LAYOUT, replace(LAYOUT, queries=range(60))], owners=(0, 0))

    @pytest.mark.parametrize("shape", [(1, 1, 344), (2, 1, 345), (1, 3, 345), (345,)], ids=str)
    def test_biases_of_another_shape(self, shape):
        with pytest.raises(ValueError, match=r"these keys need \[1 or 1, 2 or 1, 345\]"):
            sparse_attention(*call(), SETTINGS, layouts=LAYOUT, biases=torch.zeros(shape))

    def test_calibrated_blocks_of_other_queries(self):
        blocks = BlockRouting(torch.ones(2, 5, 5, dtype=torch.bool), 64)
        with pytest.raises(ValueError, match="'calibrated' knows blocks of queries that are the keys' positions"):
            sparse_attention(*call(), Settings(method="calibrated"), layouts=LAYOUT, blocks=blocks)

    def test_a_state_of_another_number_of_queries(self):
        state = ClusterState()
        sparse_attention(*call(), SETTINGS, layouts=LAYOUT, state=state)
        with pytest.raises(ValueError, match="use a new ClusterState"):
            sparse_attention(*call(), SETTINGS, layouts=replace(LAYOUT, queries=range(5, 64)), state=state)
