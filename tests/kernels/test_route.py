from dataclasses import replace

import pytest
import torch
from kernel_inputs import stages
from svg_ear.kernels import Settings, reference
from svg_ear.kernels.torch_stages.route import route


@pytest.mark.parametrize("score", ["error", "mass"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(density=0.0),
        dict(density=0.07),
        dict(density=0.35),
        dict(density=1.0),
        dict(budget="top-p", top_p=0.6),
        dict(budget="top-p", top_p=0.95, min_share=0.4),
        dict(method="svg2", density=0.02),
        dict(method="svg2", budget="top-p", top_p=0.8),
    ],
)
def test_matches_the_reference(score, settings):
    settings = Settings(probe_score=score, **settings)
    case = stages(settings, tokens=301, heads=3, group_count=6, key_count=23)
    expected = reference.route(case.probe, case.clusters, settings)
    assert torch.equal(case.routing.exact, expected.exact)
    torch.testing.assert_close(case.routing.shares, expected.shares)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.3])
def test_density_is_met_on_average(density):
    case = stages(Settings(density=density), tokens=2000, heads=4, group_count=12, key_count=40)
    assert case.routing.shares.mean().item() == pytest.approx(density, abs=0.15 * density)


def test_the_ends_of_the_density_range():
    nothing, everything = stages(Settings(density=0.0)), stages(Settings(density=1.0))
    assert not nothing.routing.exact.any()
    assert everything.routing.shares.min() == 1


def test_min_share_is_a_floor():
    case = stages(Settings(budget="top-p", top_p=0.0, min_share=0.25), tokens=2000, key_count=11)
    assert case.routing.shares.min() >= 0.25


def test_svg2_keeps_something_everywhere():
    case = stages(Settings(method="svg2", density=0.0))
    assert (case.routing.exact.sum(-1) == 1).all()


def test_empty_clusters_are_never_exact():
    case = stages(tokens=30, key_count=30)
    case.k[:] = case.k[:, :, :1]
    case.__post_init__()
    assert not (case.routing.exact & (case.clusters.sizes == 0)[:, :, None]).any()


def test_numbering_of_clusters_does_not_matter():
    case = stages(Settings(density=0.2), tokens=301, key_count=23)
    shuffle = torch.randperm(23, generator=torch.Generator().manual_seed(5))
    shuffled = type(case.probe)(
        case.probe.errors[..., shuffle],
        case.probe.masses[..., shuffle],
        case.probe.output_norms,
    )
    found = route(shuffled, replace(case.clusters, sizes=case.clusters.sizes[..., shuffle]), case.settings)
    assert torch.equal(found.exact, case.routing.exact[..., shuffle])


def test_conditioning_that_takes_all_attention_leaves_the_routing_finite():
    case = stages(Settings(budget="top-p", top_p=0.8), tokens=300, extra=4, dtype=torch.float32)
    query = 8 * case.q[:, :, :1]
    case.q[:, :, :40] = query
    direction = query / query.square().sum(-1, keepdim=True) / case.scale
    case.k[:, :, :300] = (case.k[:, :, :300] * 1e-3) - 60 * direction
    case.k[:, :, 300:] = 60 * direction
    case.__post_init__()
    assert case.probe.masses.sum(-1).min() == 0
    assert case.routing.shares.min() > 0.3
