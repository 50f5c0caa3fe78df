from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kernel_inputs import clustered, relative_error
from svg_ear.kernels import ClusterState, SequenceLayout, Settings, StageTimer, reference, sparse_attention
from svg_ear.kernels.settings import CLUSTERING

EVERYTHING = Settings(density=1.0)


def dense(q, k, v, visible=None):
    q, k, v = q.double(), k.double(), v.double()
    if visible is not None:
        k, v = k[:, :, visible], v[:, :, visible]
    return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_matches_the_reference(dtype, weighted, dim):
    counts = {"query_clusters": 4, "key_clusters": 25, "kmeans_candidates": 16}
    settings = Settings(density=0.2, weighted_centroids=weighted, recluster_every=1, **counts)
    layout = SequenceLayout(range(20, 320), (range(0, 13), range(330, 341)))
    q, k, v = clustered(345, heads=3, dim=dim, dtype=dtype)
    state = ClusterState()
    call = dict(layouts=layout, state=state, memory_limit=1 << 40)
    sparse_attention(q, k, v, settings, **call)
    kept = state.items[0]
    centroids = (kept.query_centroids, kept.key_centroids)
    starts = type(kept)(*(tensor.double() for tensor in centroids), kept.query_labels.long(), kept.key_labels.long())
    found = sparse_attention(q, k, v, settings, **call).output
    expected = reference.sparse_attention(q.double(), k.double(), v.double(), settings, layout, dim**-0.5, starts)
    plain = F.scaled_dot_product_attention(q, k, v)
    rounding = relative_error(plain, dense(q, k, v))
    assert found.dtype == dtype
    assert relative_error(found, expected) < 2 * rounding + 1e-12


@pytest.mark.parametrize("tokens", [1, 3, 63, 64, 65, 113, 1023])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_exact_is_dense(tokens, dtype):
    q, k, v = clustered(tokens, batch=2, heads=3, dtype=dtype)
    result = sparse_attention(q, k, v, EVERYTHING)
    rounding = relative_error(F.scaled_dot_product_attention(q, k, v), dense(q, k, v))
    assert relative_error(result.output, dense(q, k, v)) < 2 * rounding + 1e-7
    assert (result.statistics.density == 1).all()


@pytest.mark.parametrize("density", [0.0, 0.1])
def test_one_token_per_cluster_is_dense(density):
    q, k, v = clustered(200)
    found = sparse_attention(q, k, v, Settings(density=density, key_clusters=200)).output
    assert relative_error(found, dense(q, k, v)) < 1e-12


@pytest.mark.parametrize("density", [0.0, 0.3])
def test_identical_tokens_in_every_cluster_are_dense(density):
    q, k, v = clustered(20)
    k, v = k.repeat(1, 1, 15, 1), v.repeat(1, 1, 15, 1)
    q = q.repeat(1, 1, 15, 1) + 0.3 * torch.randn(k.shape, generator=torch.Generator().manual_seed(2)).double()
    found = sparse_attention(q, k, v, Settings(density=density, key_clusters=20, kmeans_first=12)).output
    assert relative_error(found, dense(q, k, v)) < 1e-12


def test_more_clusters_than_tokens_are_clamped():
    q, k, v = clustered(30)
    settings = Settings(density=0.1, query_clusters=300, key_clusters=1000)
    assert relative_error(sparse_attention(q, k, v, settings).output, dense(q, k, v)) < 1e-12


def test_a_constant_added_to_all_keys_changes_nothing():
    q, k, v = clustered(500)
    offset = 4 * torch.randn(k.shape[-1], generator=torch.Generator().manual_seed(1), dtype=k.dtype)
    shifted = sparse_attention(q, k + offset, v).output
    assert relative_error(shifted, sparse_attention(q, k, v).output) < 1e-9


@pytest.mark.parametrize("heads_at_once", [1, 3])
def test_a_head_alone_is_the_same_head_in_a_batch(heads_at_once):
    q, k, v = clustered(400, batch=2, heads=3, dtype=torch.float32)
    limit = 1 if heads_at_once == 1 else 1 << 40
    together = sparse_attention(q, k, v, memory_limit=limit).output
    alone = sparse_attention(q[1:, 2:], k[1:, 2:], v[1:, 2:]).output
    torch.testing.assert_close(together[1:, 2:], alone, rtol=1e-4, atol=1e-5)


def test_bitwise_repeatable():
    q, k, v = clustered(700, dtype=torch.bfloat16)
    assert torch.equal(sparse_attention(q, k, v).output, sparse_attention(q, k, v).output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [True, False])
def test_logits_of_sixty_stay_finite(dtype, weighted):
    q, k, v = clustered(600, spread=1.0)
    q = q * (60 / (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).abs().max())
    found = sparse_attention(q.to(dtype), k.to(dtype), v.to(dtype), Settings(weighted_centroids=weighted)).output
    assert found.isfinite().all()
    assert relative_error(found, dense(q, k, v)) < 1


def test_strides_do_not_matter():
    q, k, v = clustered(300, batch=2, heads=3, dtype=torch.float32)
    packed = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)]
    assert torch.equal(sparse_attention(*packed).output, sparse_attention(q, k, v).output)


def test_output_reshapes_without_a_copy():
    q, k, v = clustered(100, batch=2, heads=3, dtype=torch.float32)
    output = sparse_attention(q, k, v).output
    assert output.transpose(1, 2).reshape(2, 100, -1).data_ptr() == output.data_ptr()


class TestLayouts:
    layout = SequenceLayout(range(20, 320), (range(0, 13), range(330, 341)))
    visible = [*range(13), *range(20, 320), *range(330, 341)]

    def test_conditioning_queries_are_dense(self):
        q, k, v = clustered(345)
        found = sparse_attention(q, k, v, layouts=self.layout).output
        expected = dense(q, k, v, self.visible)
        outside = [position for position in range(345) if position not in range(20, 320)]
        assert relative_error(found[:, :, outside], expected[:, :, outside]) < 1e-12
        assert found.isfinite().all()

    def test_conditioning_keys_are_exact_at_any_budget(self):
        q, k, v = clustered(345)
        k[:, :, 20:320] -= 40 * q.mean(dim=2, keepdim=True) / q.mean(dim=2, keepdim=True).norm(dim=-1, keepdim=True)
        found = sparse_attention(q, k, v, Settings(density=0.0, weighted_centroids=False), layouts=self.layout).output
        changed = v.clone()
        changed[:, :, 5] += 1
        shifted = sparse_attention(q, k, changed, Settings(density=0.0, weighted_centroids=False), layouts=self.layout).output
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)[..., self.visible].softmax(-1)
        assert (shifted - found)[:, :, 20:320].mean() == pytest.approx(weights[:, :, 20:320, 5].mean().item(), rel=0.1)

    def test_padding_is_seen_by_nobody(self):
        q, k, v = clustered(345)
        found = sparse_attention(q, k, v, layouts=self.layout).output
        k[:, :, 13:20], v[:, :, 13:20] = 1e4, 1e4
        again = sparse_attention(q, k, v, layouts=self.layout).output
        assert torch.equal(found[:, :, 20:], again[:, :, 20:])

    # Clustered together where their video lies at the same place, and one by one where it does not.
    @pytest.mark.parametrize("start", [20, 21])
    def test_batch_items_may_differ(self, start):
        q, k, v = clustered(345, batch=3)
        other = SequenceLayout(range(start, start + 300), (range(0, 6),))
        layouts, together, alone = [self.layout, other, other], ClusterState(), [ClusterState() for _ in range(3)]
        for _ in range(2):
            found = sparse_attention(q, k, v, layouts=layouts, state=together).output
            for item, (layout, state) in enumerate(zip(layouts, alone)):
                own = slice(item, item + 1)
                torch.testing.assert_close(found[own], sparse_attention(q[own], k[own], v[own], layouts=layout, state=state).output)
        assert [len(kept.key_centroids) for kept in together.items.values()] == ([3] if start == 20 else [1, 2])


class TestState:
    settings = Settings(density=0.2, query_clusters=4, key_clusters=15, kmeans_first=3, kmeans_next=1, recluster_every=1)

    def test_the_second_call_starts_from_the_first(self):
        q, k, v = clustered(400)
        state = ClusterState()
        sparse_attention(q, k, v, self.settings, state=state)
        warm = sparse_attention(q, k, v, self.settings, state=state).output
        four = Settings(**{**self.settings.__dict__, "kmeans_first": 4})
        assert relative_error(warm, sparse_attention(q, k, v, four).output) < 1e-12

    def test_labels_are_reused_between_reclusterings(self):
        q, k, v = clustered(400)
        other_q, other_k, other_v = clustered(400, seed=1)
        reuse = Settings(**{**self.settings.__dict__, "recluster_every": 2})
        state = ClusterState()
        sparse_attention(q, k, v, reuse, state=state)
        first = state.items[0].key_labels
        sparse_attention(other_q, other_k, other_v, reuse, state=state)
        assert torch.equal(state.items[0].key_labels, first)
        sparse_attention(other_q, other_k, other_v, reuse, state=state)
        assert not torch.equal(state.items[0].key_labels, first)
        assert state.calls == 3

    def test_labels_are_not_kept_without_need(self):
        q, k, v = clustered(400)
        state = ClusterState()
        sparse_attention(q, k, v, replace(self.settings, kmeans_candidates=0), state=state)
        assert state.items[0].key_labels is None
        assert 0 < state.nbytes() < q.nbytes

    def test_a_state_serves_calls_with_another_memory_limit(self):
        q, k, v = clustered(400, heads=3)
        outputs = []
        for limit in (1, 1 << 40):
            state = ClusterState()
            sparse_attention(q, k, v, self.settings, state=state, memory_limit=1)
            outputs.append(sparse_attention(q, k, v, self.settings, state=state, memory_limit=limit).output)
        assert relative_error(*outputs) < 1e-12

    @pytest.mark.parametrize("change", [{"density": 0.6}, {"min_share": 0.5}, {"budget": "top-p"}, {"probe_score": "mass"}])
    def test_a_state_serves_calls_with_another_budget(self, change):
        q, k, v = clustered(400)
        outputs = []
        for first in (self.settings, replace(self.settings, **change)):
            state = ClusterState()
            sparse_attention(q, k, v, first, state=state)
            outputs.append(sparse_attention(q, k, v, self.settings, state=state).output)
        assert torch.equal(*outputs)

    @pytest.mark.parametrize("name", CLUSTERING)
    def test_a_state_of_another_clustering_is_refused(self, name):
        q, k, v = clustered(400)
        state = ClusterState()
        sparse_attention(q, k, v, self.settings, state=state)
        value = getattr(self.settings, name)
        other = replace(self.settings, **{name: not value if isinstance(value, bool) else 16 if name == "kmeans_candidates" else value + 1})
        with pytest.raises(ValueError, match="use a new ClusterState"):
            sparse_attention(q, k, v, other, state=state)

    def test_a_state_of_other_calls_is_refused(self):
        q, k, v = clustered(400)
        state = ClusterState()
        sparse_attention(q, k, v, self.settings, state=state)
        with pytest.raises(ValueError, match="use a new ClusterState"):
            sparse_attention(q[:, :, :300], k[:, :, :300], v[:, :, :300], self.settings, state=state)


class TestOwners:
    settings = Settings(density=0.6, query_clusters=4, key_clusters=15, recluster_every=2)

    def test_an_item_takes_the_partition_of_its_owner_with_means_of_its_own(self):
        q, k, v = clustered(400, batch=2)
        state, alone = ClusterState(), ClusterState()
        shared = sparse_attention(q, k, v, self.settings, state=state, owners=(1, 1)).output
        own = sparse_attention(q[1:], k[1:], v[1:], self.settings, state=alone).output
        assert torch.equal(shared[1:], own) and list(state.items) == [1]
        # A call that reuses the labels of the one before.
        other = sparse_attention(q[:1], k[:1], v[:1], self.settings, state=ClusterState(calls=1, items=alone.items)).output
        assert relative_error(shared[:1], other) < 1e-12
        assert relative_error(shared[:1], sparse_attention(q[:1], k[:1], v[:1], self.settings).output) > 1e-3

    @pytest.mark.parametrize("density", [0.1, 0.3])
    def test_the_share_is_met_with_clusters_of_another(self, density):
        q, k, v = clustered(1000, batch=2)
        shares = sparse_attention(q, k, v, Settings(density=density), owners=(1, 1)).statistics.density.mean(1)
        assert shares.tolist() == pytest.approx([density] * 2, rel=0.05)

    def test_everything_exact_is_dense(self):
        q, k, v = clustered(200, batch=2)
        assert relative_error(sparse_attention(q, k, v, EVERYTHING, owners=(0, 0)).output, dense(q, k, v)) < 1e-12

    @pytest.mark.parametrize("owners", [(0,), (0, 2), (1, 0), (-1, 1)])
    def test_owners_that_own_nothing_are_refused(self, owners):
        q, k, v = clustered(60, batch=2)
        with pytest.raises(ValueError, match=r"for 2 batch items; name for each item one that is its own owner"):
            sparse_attention(q, k, v, owners=owners)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[:, :, :5], k, v), "three equal"),
        (lambda q, k, v: (q[0], k[0], v[0]), r"\[B, H, L, D\]"),
        (lambda q, k, v: (q.float(), k, v), "one floating dtype on one device"),
        (lambda q, k, v: (q.long(), k.long(), v.long()), "one floating dtype"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sparse_attention(*change(*clustered(20)))


def test_layouts_that_do_not_fit_are_refused():
    q, k, v = clustered(20, batch=2)
    with pytest.raises(ValueError, match="reaches position 30"):
        sparse_attention(q, k, v, layouts=SequenceLayout(range(0, 30)))
    with pytest.raises(ValueError, match="3 layouts for 2 batch items"):
        sparse_attention(q, k, v, layouts=[SequenceLayout(range(20))] * 3)
    with pytest.raises(ValueError, match="split the batch"):
        sparse_attention(q, k, v, layouts=[SequenceLayout(range(20)), SequenceLayout(range(19))])


def test_stages_are_timed_in_order():
    timer = StageTimer()
    sparse_attention(*clustered(300), layouts=SequenceLayout(range(10, 300), (range(10),)), timer=timer)
    names = ["cluster", "permute", "summarize", "probe", "route", "attend", "conditioning"]
    assert list(timer.seconds()) == names
    assert all(seconds > 0 for seconds in timer.seconds().values())


@pytest.mark.parametrize("memory_limit", [1, 1 << 40])
def test_observers_see_every_head_once(memory_limit):
    q, k, v = clustered(300, batch=2, heads=3)
    seen = []
    result = sparse_attention(q, k, v, memory_limit=memory_limit, observe=seen.append)
    assert [(routed.item, head) for routed in seen for head in routed.heads] == [(b, h) for b in range(2) for h in range(3)]
    for routed in seen:
        density = result.statistics.density[routed.item, routed.heads.start : routed.heads.stop]
        torch.testing.assert_close(routed.key_shares().mean(-1), density)
