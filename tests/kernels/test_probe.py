import pytest
import torch
from kernel_inputs import stages
from svg_ear.kernels import Settings, reference
from svg_ear.kernels.torch_stages import chunks
from svg_ear.kernels.torch_stages.probe import probe_centroids, probe_tokens

FIELDS = ("errors", "masses", "output_norms")


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("extra", [0, 9])
@pytest.mark.parametrize("tokens", [3, 64, 157])
def test_matches_the_reference(tokens, extra, weighted):
    case = stages(Settings(density=0.3, weighted_centroids=weighted), tokens=tokens, extra=extra, group_count=1, key_count=3)
    expected = reference.probe_tokens(case.groups.centroids, case.sorted_keys, case.conditioning, case.summaries, weighted, case.scale)
    for name in FIELDS:
        torch.testing.assert_close(getattr(case.probe, name), getattr(expected, name), rtol=1e-9, atol=1e-12)


def test_chunks_change_nothing(monkeypatch):
    whole = stages(tokens=157)
    monkeypatch.setitem(chunks.WORKSPACE_ELEMENTS, "cpu", 700)
    pieces = stages(tokens=157)
    for name in FIELDS:
        torch.testing.assert_close(getattr(whole.probe, name), getattr(pieces.probe, name))


def test_masses_are_the_shares_of_attention():
    case = stages(tokens=120, extra=7)
    logits = case.scale * case.groups.centroids @ case.k.transpose(-1, -2)
    video = logits.softmax(-1)[..., :120]
    own = torch.nn.functional.one_hot(case.clusters.labels, case.key_count).double()
    torch.testing.assert_close(case.probe.masses, video @ own)


def test_everything_compensated_has_the_norm_of_the_output():
    case = stages(tokens=40, key_count=40)
    logits = case.scale * case.groups.centroids @ case.k.transpose(-1, -2)
    torch.testing.assert_close(case.probe.output_norms, (logits.softmax(-1) @ case.v).square().sum(-1))


def test_one_token_per_cluster_has_no_error():
    case = stages(tokens=40, key_count=40)
    assert case.probe.errors.max() < 1e-12


def test_compensated_mass_never_exceeds_the_true_mass():
    case = stages(Settings(density=0.3, weighted_centroids=False), tokens=157)
    assert (case.probe.masses.sum(-1) <= 1 + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(dtype):
    case = stages(tokens=157, dtype=torch.float64)
    factor = 60 / (case.scale * case.q @ case.k.transpose(-1, -2)).abs().max()
    case.q = (case.q * factor).to(dtype)
    case.k, case.v = case.k.to(dtype), case.v.to(dtype)
    case.__post_init__()
    for name in FIELDS:
        assert getattr(case.probe, name).isfinite().all(), name


def test_a_full_key_cluster_of_svg2_is_dropped_mass():
    case = stages(tokens=90)
    found = probe_centroids(case.groups.centroids, case.conditioning, case.summaries, case.scale)
    logits = case.scale * case.groups.centroids @ case.summaries.key_means.transpose(-1, -2)
    expected = (logits + case.summaries.log_sizes[:, :, None]).softmax(-1)
    torch.testing.assert_close(found.masses, expected)
    contribution = expected[..., None] * case.summaries.value_means[:, :, None]
    torch.testing.assert_close(found.errors, contribution.square().sum(-1))


def test_errors_are_the_same_for_a_head_alone():
    case = stages(tokens=157, heads=3)
    alone = probe_tokens(
        case.groups.centroids[:, 1:2],
        type(case.sorted_keys)(
            case.sorted_keys.keys[:, 1:2],
            case.sorted_keys.values[:, 1:2],
            type(case.clusters)(*(getattr(case.clusters, name)[:, 1:2] for name in ("labels", "centroids", "sizes", "order"))),
        ),
        type(case.conditioning)(case.conditioning.keys[:, 1:2], case.conditioning.values[:, 1:2]),
        type(case.summaries)(*(getattr(case.summaries, name)[:, 1:2] for name in case.summaries.__dataclass_fields__)),
        True,
        case.scale,
    )
    torch.testing.assert_close(alone.errors, case.probe.errors[:, 1:2])
