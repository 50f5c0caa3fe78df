import pytest
from fake_comfyui import flow_schedule, flow_sigma, options
from svg_ear.nodes.patch.schedule import Schedule
from svg_ear.nodes.recording.reasons import LAST_STEPS, OUTSIDE_WINDOW, UNKNOWN_STEP, WARM_UP_STEP


def schedule(sigmas, **widgets):
    return Schedule(sigmas, flow_sigma, options(**widgets))


def reasons(sigmas, **widgets):
    plan = schedule(sigmas, **widgets)
    return [plan.dense_reason(sigma) for sigma in sigmas[:-1]]


@pytest.mark.parametrize(("steps", "warm_up"), [(1, 1), (4, 1), (5, 1), (8, 2), (20, 4), (50, 10)])
def test_automatic_warm_up_is_a_fifth_of_the_steps(steps, warm_up):
    assert reasons(flow_schedule(steps), warm_up_density=0.0) == [WARM_UP_STEP] * warm_up + [None] * (steps - warm_up)


def densities(sigmas, **widgets):
    plan = schedule(sigmas, **widgets)
    return [plan.density(sigma) for sigma in sigmas[:-1]]


def test_the_density_falls_by_the_same_factor_from_the_first_step_to_the_last():
    found = densities(flow_schedule(5), warm_up_density=0.32, density=0.02)
    assert found == pytest.approx([0.32, 0.16, 0.08, 0.04, 0.02])
    assert reasons(flow_schedule(5), warm_up_density=0.32) == [None] * 5
    assert densities(flow_schedule(1), warm_up_density=0.32, density=0.02) == [0.32]
    assert densities(flow_schedule(3), warm_up_density=0.32, density=1.0) == [1.0] * 3
    assert densities(flow_schedule(8), preset="few-step") == pytest.approx([0.3] * 8)


def test_dense_steps_leave_the_density_of_the_others_as_it_is():
    widgets = {"warm_up_density": 0.32, "density": 0.02}
    assert densities(flow_schedule(5), dense_first_steps=2, **widgets) == densities(flow_schedule(5), **widgets)
    assert reasons(flow_schedule(5), dense_first_steps=2, **widgets) == [WARM_UP_STEP] * 2 + [None] * 3


def test_two_samplers_share_one_curve():
    whole, widgets = flow_schedule(20), {"preset": "balanced"}
    found = densities(whole, **widgets)
    assert (found[0], found[-1]) == pytest.approx((0.35, 0.06))
    assert densities(whole[:11], **widgets) + densities(whole[10:], **widgets) == pytest.approx(found)


def test_without_a_schedule_the_density_is_that_of_the_first_step():
    for sigmas, sigma in ((None, 0.5), ([0.0, 0.5, 1.0], 0.5), (flow_schedule(4), None)):
        plan = schedule(sigmas, preset="balanced")
        assert plan.dense_reason(sigma) is None and plan.density(sigma) == 0.35


def test_the_density_is_that_of_the_settings_where_it_does_not_fall():
    assert densities(flow_schedule(5), warm_up_density=0.0) == [None] * 5
    assert densities(flow_schedule(5), preset="custom", budget="top-p") == [None] * 5


def test_few_step_preset_has_no_warm_up():
    assert reasons(flow_schedule(4), preset="few-step") == reasons(flow_schedule(4), preset="few-step", warm_up_density=0.0) == [None] * 4
    assert reasons(flow_schedule(4), preset="few-step", dense_first_steps=1)[0] == WARM_UP_STEP


def test_first_and_last_steps():
    found = reasons(flow_schedule(6), dense_first_steps=2, dense_last_steps=1)
    assert found == [WARM_UP_STEP] * 2 + [None] * 3 + [LAST_STEPS]


def test_sigmas_between_steps_belong_to_the_earlier_one():
    sigmas = flow_schedule(5)
    plan = schedule(sigmas)
    for step in range(5):
        assert plan.step(sigmas[step]) == step
        assert plan.step(sigmas[step] * (1 - 1e-6)) == step
        assert plan.step(sigmas[step] * (1 + 1e-6)) == step
        assert plan.step((sigmas[step] + sigmas[step + 1]) / 2) == step
    assert plan.step(2 * sigmas[0]) == 0
    assert plan.step(0.0) == 4


def test_second_expert_has_its_warm_up_behind_it():
    whole = flow_schedule(20)
    first, second = whole[:11], whole[10:]
    assert reasons(first, dense_first_steps=4, dense_last_steps=2) == [WARM_UP_STEP] * 4 + [None] * 6
    assert reasons(second, dense_first_steps=4, dense_last_steps=2) == [None] * 8 + [LAST_STEPS] * 2
    assert reasons(second, dense_first_steps=12) == [WARM_UP_STEP] * 2 + [None] * 8


def test_redrawing_counts_the_steps_that_were_skipped():
    assert reasons(flow_schedule(20, start=1 / 21), dense_first_steps=4) == [WARM_UP_STEP] * 3 + [None] * 17


def test_window_is_in_percent_of_the_denoising():
    found = reasons(flow_schedule(10), start_percent=0.3, end_percent=0.7, dense_first_steps=0)
    assert found == [OUTSIDE_WINDOW] * 3 + [None] * 5 + [OUTSIDE_WINDOW] * 2


@pytest.mark.parametrize("sigmas", [None, [1.0], [0.0, 0.5, 1.0]])
def test_unknown_schedules_matter_only_where_the_step_does(sigmas):
    assert schedule(sigmas, dense_first_steps=1).dense_reason(0.5) == UNKNOWN_STEP
    assert schedule(sigmas, dense_first_steps=0, start_percent=0.1).dense_reason(0.5) == UNKNOWN_STEP
    assert schedule(sigmas, dense_first_steps=0).dense_reason(0.5) is None
    assert schedule(flow_schedule(4), dense_first_steps=1).dense_reason(None) == UNKNOWN_STEP


def test_the_steps_that_may_run_sparse():
    assert schedule(flow_schedule(5), warm_up_density=0.0, dense_last_steps=1).sparse_steps == (1, 2, 3)
    assert schedule(None).sparse_steps == () and schedule(None).step(0.5) == 0
