"""A worker's heads, computed from what raylight gathered, are those of one GPU; what cannot be is refused by name."""

import pytest
import torch
from fake_comfyui import WIDGETS, Harness, counts, options
from svg_ear import kernels
from svg_ear.nodes.recording.reasons import StrictModeError
from test_gathered import shared_out
from torch.nn.functional import scaled_dot_product_attention

HEADS, DIM, TEXT = 4, 64, 5
# 63 patches, of which neither 2 nor 4 ranks have equal parts.
SHAPE, VIDEO = (3, 6, 14), 63


@pytest.fixture
def worker(raylight):
    from svg_ear.nodes.distributed import worker

    return worker


class Played(Harness):
    """One worker among ``ranks``: ``attend`` asks its processor in a sampler run of its own."""

    def __init__(self, worker, monkeypatch, ranks=2, ring=1, model="wan", **widgets):
        super().__init__(model, **widgets)
        self.patch = worker.WorkerPatch(options(**(WIDGETS | widgets)))
        self.processor = worker.InnerAttention(self.patch)
        self.dense_calls = []
        monkeypatch.setattr(worker, "degrees", lambda: (ranks, ring))

    def dense(self, q, k, v, **arguments):
        self.dense_calls.append((q, k, v, arguments))
        return scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (q, k, v))).transpose(1, 2)

    def attend(self, q, k, v, block=0, block_type="double", step=2, conditions=None, **arguments):
        def body(attention):
            place = attention.options | {"block_index": block, "block_type": block_type}
            return self.processor(self.dense, q, k, v, transformer_options=place, softmax_scale=None, dropout_p=0.0, **arguments)

        return self.evaluate(body, step=step, conditions=conditions, **self.given(len(q)))

    def given(self, batch):
        """What an evaluation of ``batch`` items is."""
        # LTX-Video takes every pixel of a latent as a token.
        pixels = SHAPE if hasattr(self.base_model.diffusion_model, "patch_size") else (3, 3, 7)
        branches = {"cond_or_uncond": [1, 0], "uuids": ["u", "c"]} if batch == 2 else {}
        return {"shape": (batch, 16, *pixels)} | branches


def drawn(tokens, batch=1, seed=0):
    """q, k and v ``[B, tokens, H, D]``."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, tokens, HEADS, DIM, generator=generator) for _ in range(3))


CASES = {
    "wan": ("wan", "double", (VIDEO,)),
    "ltx": ("ltx", None, (VIDEO,)),
    "hunyuan double": ("hunyuan", "double", (TEXT, VIDEO)),
    "hunyuan single": ("hunyuan", "single", (TEXT + VIDEO,)),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_the_heads_of_all_workers_are_those_of_one_gpu(worker, monkeypatch, case, ranks, batch):
    model, block_type, streams = CASES[case]
    conditions = {"c_crossattn": torch.zeros(batch, TEXT, 8)}
    alone = Harness(model)
    workers = [Played(worker, monkeypatch, ranks, model=model) for _ in range(ranks)]
    # The second step starts from the clusters of the first.
    for step in (2, 3):
        tensors = drawn(sum(streams), batch, seed=step)

        def whole(attention):
            return attention(*(tensor.flatten(2) for tensor in tensors), HEADS, block=0, block_type=block_type)

        expected = alone.evaluate(whole, step=step, **workers[0].given(batch)).unflatten(-1, (HEADS, DIM))
        gathered = [shared_out(tensor.split(streams, dim=1), ranks) for tensor in tensors]
        outputs = []
        for rank, played in enumerate(workers):
            some = [tensor.chunk(ranks, dim=2)[rank] for tensor in gathered]
            outputs.append(played.attend(*some, block_type=block_type, step=step, conditions=conditions))
            assert outputs[-1].shape == some[0].shape and played.dense_calls == []
        padded = shared_out(expected.split(streams, dim=1), ranks)
        torch.testing.assert_close(torch.cat(outputs, dim=2), padded, rtol=1e-5, atol=1e-5)
    assert alone.dense_calls == 0 and all(len(played.patch.states) == 1 for played in workers)


@pytest.mark.parametrize(("ranks", "limit"), [(1, 0), (2, 0), (2, 7)])
def test_a_worker_takes_the_working_memory_of_all_heads_or_what_the_user_says(worker, monkeypatch, ranks, limit):
    played, given = Played(worker, monkeypatch, ranks, memory_limit_mb=limit), []
    attention = kernels.sparse_attention
    monkeypatch.setattr(
        kernels, "sparse_attention", lambda *args, **options: given.append(options["memory_limit"]) or attention(*args, **options)
    )
    played.attend(*(shared_out([tensor], ranks).chunk(ranks, dim=2)[0] for tensor in drawn(VIDEO)))
    assert given == [limit * 2**20 or 3 * (3 * VIDEO * HEADS * DIM * 4) // 4]


def test_a_dense_call_is_raylights_own(worker, monkeypatch):
    played = Played(worker, monkeypatch, dense_blocks="1")
    q, k, v = drawn(VIDEO + 1)
    record = played.sample(lambda: played.attend(q, k, v, block=1))
    assert counts(record) == {"dense-block": 1} and list(record.dense_attention) == ["attention of raylight"]
    (given,) = played.dense_calls
    assert all(one is other for one, other in zip(given, (q, k, v))) and given[3] == {"softmax_scale": None, "dropout_p": 0.0}


REFUSED = {
    "repeated-tokens": {"tokens": VIDEO + 1 + 2 * 9},
    "unknown-tokens": {"tokens": VIDEO - 3},
    "ring-attention": {"ring": 2},
    "unknown-option": {"causal": True},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_run_is_refused_by_name(worker, monkeypatch, reason):
    given = dict(REFUSED[reason])
    ring, tensors = given.pop("ring", 1), drawn(given.pop("tokens", VIDEO + 1))
    played = Played(worker, monkeypatch, ring=ring)
    record = played.sample(lambda: played.attend(*tensors, **given))
    assert counts(record) == {reason: 1} and len(played.dense_calls) == 1
    strict = Played(worker, monkeypatch, ring=ring, strict=True)
    with pytest.raises(StrictModeError, match=reason):
        strict.sample(lambda: strict.attend(*tensors, **given))


def test_joint_tensors_are_tokens_that_every_rank_repeats(worker, monkeypatch):
    played = Played(worker, monkeypatch)
    record = played.sample(lambda: played.attend(*drawn(VIDEO + 1), joint_tensor_key=torch.zeros(1, 3, HEADS, DIM)))
    assert counts(record) == {"repeated-tokens": 1}


def test_attention_to_the_text_is_left_alone(worker, monkeypatch):
    played = Played(worker, monkeypatch, strict=True)
    q, k, v = drawn(VIDEO + 1)
    played.attend(q, k[:, :10], v[:, :10])
    assert len(played.dense_calls) == 1


def test_a_part_of_the_queries_is_refused_by_name(worker, monkeypatch):
    """As of single frames, or of guides that have weights; the text is shorter than the video."""
    played = Played(worker, monkeypatch)
    q, k, v = drawn(VIDEO + 1)
    assert counts(played.sample(lambda: played.attend(q[:, :32], k, v))) == {"partial-queries": 1}
    assert counts(played.sample(lambda: played.attend(q[:, :32], k[:, :40], v[:, :40]))) == {"cross-attention": 1}
    strict = Played(worker, monkeypatch, strict=True)
    with pytest.raises(StrictModeError, match="partial-queries"):
        strict.sample(lambda: strict.attend(q[:, :32], k, v))


# The last of three frames.
GUIDES = {"keyframe_idxs": torch.zeros(1, 3, VIDEO // 3, 2)}


@pytest.mark.parametrize("ranks", [2, 4])
def test_guides_of_ltx_are_frames_of_every_worker(worker, monkeypatch, ranks):
    """Without their weights, which raylight leaves out itself."""
    tensors = drawn(VIDEO)
    gathered = [shared_out([tensor], ranks) for tensor in tensors]
    alone, workers = Harness("ltx"), [Played(worker, monkeypatch, ranks, model="ltx", strict=True) for _ in range(ranks)]

    def whole(attention):
        return attention(*(tensor.flatten(2) for tensor in tensors), HEADS)

    expected = alone.evaluate(whole, conditions=GUIDES, **workers[0].given(1)).unflatten(-1, (HEADS, DIM))
    outputs = []
    for rank, played in enumerate(workers):
        some = [tensor.chunk(ranks, dim=2)[rank] for tensor in gathered]
        outputs.append(played.attend(*some, block_type=None, conditions=GUIDES))
        assert played.dense_calls == []
    torch.testing.assert_close(torch.cat(outputs, dim=2), shared_out([expected], ranks), rtol=1e-5, atol=1e-5)


def test_guides_of_a_coarser_grid_are_refused_by_name(worker, monkeypatch):
    """They have fewer tokens in the sequence than cells in the latent, and how many are padding does not show."""
    played = Played(worker, monkeypatch, model="ltx")
    tokens = VIDEO - VIDEO // 3 + VIDEO // 9
    record = played.sample(lambda: played.attend(*drawn(tokens + tokens % 2), block_type=None, conditions=GUIDES))
    assert counts(record) == {"unknown-tokens": 1} and len(played.dense_calls) == 1


def test_outside_an_evaluation_raylight_computes(worker, monkeypatch):
    played = Played(worker, monkeypatch)
    played.processor(played.dense, *drawn(8), transformer_options={})
    assert len(played.dense_calls) == 1


@pytest.fixture
def model():
    from models import WanModel

    return WanModel()


def asked(model):
    """What a processor was told in a run of ``model``: the number of the block of each call."""
    from raylight.distributed_modules.inner_attention import INNER_ATTENTION_KEY

    told = []

    def processor(dense, q, k, v, *, transformer_options, group, **options):
        told.append(transformer_options["block_index"])
        return dense(q, k, v, **options)

    model.run(torch.randn(1, 8, HEADS * DIM), {INNER_ATTENTION_KEY: processor})
    return told


def test_forwards_hand_on_their_options_once_they_are_told_to(raylight, worker, model):
    raylight.inject(model)
    assert asked(model) == []
    assert worker.pass_options(model)
    assert asked(model) == [0, 1]
    attention = raylight.xfuser_optimized_attention
    assert worker.pass_options(model) and asked(model) == [0, 1]
    # Loading the model anew puts raylight's forwards back.
    raylight.inject(model)
    assert asked(model) == []
    assert worker.pass_options(model) and asked(model) == [0, 1] and raylight.xfuser_optimized_attention is attention


def test_forwards_that_are_not_known_are_named(worker, monkeypatch, model):
    played = Played(worker, monkeypatch)
    played.base_model.diffusion_model = model
    assert not worker.pass_options(model)
    record = played.sample(lambda: played.evaluate(lambda attention: None))
    assert counts(record) == {"never-asked": 1}
    assert any("forwards for WanModel that SVG-EAR does not know" in text for text in record.warnings)


def test_without_a_split_the_override_is_asked(worker, monkeypatch):
    played = Played(worker, monkeypatch)
    q, k, v = (tensor.flatten(2) for tensor in drawn(VIDEO))
    record = played.sample(lambda: played.evaluate(lambda attention: attention(q, k, v, HEADS), **played.given(1)))
    assert record.sparse_calls == 1 and record.warnings == ()
