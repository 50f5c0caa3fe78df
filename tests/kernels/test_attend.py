import pytest
import torch
from kernel_inputs import relative_error, stages
from svg_ear.kernels import Settings, reference
from svg_ear.kernels.torch_stages import chunks
from svg_ear.kernels.torch_stages.attend import attend


def attended(case, dtype=torch.float64):
    output = torch.full(case.queries.shape, torch.nan, dtype=dtype)
    attend(
        case.queries, case.groups, case.sorted_keys, case.conditioning, case.summaries, case.probe, case.routing,
        case.settings, case.scale, output,
    )  # fmt: skip
    return output


def expected(case):
    return reference.attend(
        case.queries, case.groups, case.sorted_keys, case.conditioning, case.summaries, case.routing,
        case.settings, case.scale,
    )  # fmt: skip


@pytest.mark.parametrize("extra", [0, 11])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(density=0.25),
        Settings(density=0.25, weighted_centroids=False),
        Settings(density=0.0),
        Settings(method="svg2", density=0.25),
    ],
)
def test_matches_the_reference(settings, extra):
    case = stages(settings, tokens=301, extra=extra, heads=3, dim=128)
    assert relative_error(attended(case), expected(case)) < 1e-12


@pytest.mark.parametrize("tokens", [1, 3, 63, 64, 65, 113, 1023])
def test_odd_lengths(tokens):
    case = stages(tokens=tokens, group_count=min(tokens, 5), key_count=min(tokens, 11))
    assert relative_error(attended(case), expected(case)) < 1e-11


def test_chunks_change_nothing(monkeypatch):
    case = stages(tokens=301)
    whole = attended(case)
    monkeypatch.setitem(chunks.WORKSPACE_ELEMENTS, "cpu", 900)
    torch.testing.assert_close(attended(case), whole)


def test_weighted_centroids_make_every_mean_query_dense():
    case = stages(Settings(density=0.2), tokens=400, extra=5)
    case.queries = torch.take_along_dim(case.groups.centroids, case.groups.labels[..., None], dim=2)
    logits = case.scale * case.queries @ case.k.transpose(-1, -2)
    dense = logits.softmax(-1) @ case.v
    assert relative_error(attended(case), dense) < 1e-12
    case.settings = Settings(density=0.2, weighted_centroids=False)
    assert relative_error(attended(case), dense) > 1e-2


def test_compensation_beats_dropping():
    compensated = stages(Settings(density=0.2, weighted_centroids=False), tokens=600)
    dropped = stages(Settings(density=0.2, method="svg2"), tokens=600)
    dense = (compensated.scale * compensated.q @ compensated.k.transpose(-1, -2)).softmax(-1) @ compensated.v
    assert relative_error(attended(compensated), dense) < relative_error(attended(dropped), dense)


@pytest.mark.parametrize("peak", [44.0, 46.5, 47.0, 58.0])
def test_a_skipped_outlier_key_does_not_overflow(peak):
    case = stages(Settings(density=0.05), tokens=600, group_count=4, key_count=1, dtype=torch.float32)
    direction = case.q[:, :, :1] / case.q[:, :, :1].norm(dim=-1, keepdim=True)
    case.q = direction.expand_as(case.q) * 8
    case.k[:] = -peak / 8 / case.scale * direction
    case.k[:, :, 300] *= -1
    case.v = 5 * case.v
    case.__post_init__()
    assert attended(case).isfinite().all()
