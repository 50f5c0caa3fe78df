"""Inputs that are not finite, and finite ones whose products overflow: no call raises, and no statistic is anything but a number."""

from dataclasses import replace

import pytest
import torch
from kernel_inputs import clustered, relative_error
from svg_ear.kernels import BlockRouting, ClusterState, SequenceLayout, Settings, sparse_attention
from svg_ear.kernels.blocks import block_count
from torch.nn.functional import scaled_dot_product_attention
from triton_cases import DEVICE

TOKENS, TEXT = 90, 6
LAYOUT = SequenceLayout(range(TEXT, TOKENS), (range(TEXT),))
COUNTS = {"query_clusters": 4, "key_clusters": 17, "kmeans_candidates": 16, "kmeans_first": 2}
SETTINGS = [
    Settings(density=0.2, **COUNTS),
    Settings(density=1.0, **COUNTS),
    Settings(budget="top-p", top_p=0.7, weighted_centroids=False, key_metric=False, **COUNTS),
    Settings(method="svg2", density=0.2, **COUNTS),
    Settings(method="calibrated", **COUNTS),
    Settings(method="calibrated", weighted_centroids=False, **COUNTS),
    Settings(method="calibrated", compensate=False, **COUNTS),
]
IN_INT8 = [replace(SETTINGS[place], precision="int8") for place in (0, 3, 4)]
SETTINGS += IN_INT8
both_precisions = pytest.mark.parametrize("settings", [SETTINGS[0], IN_INT8[0]], ids=str)
all_settings = pytest.mark.parametrize("settings", SETTINGS, ids=str)
# What overflows inside the interpreter is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def call(q, k, v, settings, implementation="torch", state=None):
    count = block_count(TOKENS - TEXT, 16)
    exact = torch.eye(count, dtype=torch.bool, device=q.device).expand(q.shape[1], -1, -1)
    blocks = BlockRouting(exact, 16) if settings.method == "calibrated" else None
    found = sparse_attention(q, k, v, settings, layouts=LAYOUT, blocks=blocks, state=state, implementation=implementation)
    for name in ("density", "group_shares", "estimated_error"):
        assert getattr(found.statistics, name).isfinite().all(), name
    return found


def tensors(dtype=torch.float32, **options):
    return [tensor.to(DEVICE) for tensor in clustered(TOKENS, heads=1, dtype=dtype, **options)]


@all_settings
@pytest.mark.parametrize("size", [1e2, 1e15, 1e30])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["q", "k", "v"])
def test_large_inputs_have_finite_statistics(settings, place, size):
    given = tensors()
    given[place] *= size
    found = call(*given, settings)
    assert found.output.isfinite().all() or size > 1e2


@all_settings
@pytest.mark.parametrize("kind", ["one huge token", "opposite values", "no values"])
def test_outputs_next_to_nothing_have_finite_statistics(settings, kind):
    q, k, v = tensors()
    if kind == "one huge token":
        k[:, :, 40] *= 1000
    elif kind == "opposite values":
        v[:, :, 1::2] = -v[:, :, ::2]
    else:
        v *= 1e-30
    call(60 * q, k, v, settings)


def check_one_token(settings, place, value, implementation="torch"):
    given = tensors(torch.float16)
    given[place][:, :, 30, 5] = value
    output = call(*given, settings, implementation).output
    if place == 0:
        others = [token for token in range(TOKENS) if token != 30]
        assert output[:, :, others].isfinite().all()
    if place == 1 and value != value and settings.precision == "int8":
        # All keys of a head have one scale.
        assert not output[:, :, TEXT:].isfinite().any()
    if place == 2:
        assert output[..., [*range(5), *range(6, 64)]].isfinite().all()


@all_settings
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2], ids=["q", "k", "v"])
def test_one_token_without_a_number(settings, place, value):
    check_one_token(settings, place, value)


@all_settings
def test_nothing_but_nan(settings):
    call(*(torch.full_like(tensor, float("nan")) for tensor in tensors()), settings)


def check_recovery(recluster_every, implementation="torch", precision="full"):
    clean, broken = tensors(), tensors()
    broken[0][:, :, ::7] = float("nan")
    broken[1][:, :, 33] = float("inf")
    settings = Settings(density=0.3, recluster_every=recluster_every, precision=precision, **COUNTS)
    state, fresh = ClusterState(), ClusterState()
    call(*broken, settings, implementation, state)
    for _ in range(recluster_every + 1):
        found, expected = (call(*clean, settings, implementation, kept).output for kept in (state, fresh))
    exact = scaled_dot_product_attention(*(tensor.double() for tensor in clean))
    assert relative_error(found, exact) < 2 * relative_error(expected, exact)


@pytest.mark.parametrize("precision", ["full", "int8"])
@pytest.mark.parametrize("recluster_every", [1, 2])
def test_a_later_call_recovers(recluster_every, precision):
    check_recovery(recluster_every, precision=precision)


class TestTriton:
    """Fewer cases: Triton's interpreter takes seconds for what a GPU does at once."""

    @pytest.fixture(autouse=True)
    def stages(self):
        pytest.importorskip("triton")

    @both_precisions
    @pytest.mark.parametrize(("place", "size"), [(0, 1e30), (1, 1e15), (2, 1e30)])
    def test_large_inputs(self, place, size, settings):
        given = tensors()
        given[place] *= size
        call(*given, settings, "triton")

    @both_precisions
    @pytest.mark.parametrize(
        ("place", "value"),
        [(0, float("nan")), (0, float("inf")), (1, float("nan")), (1, -float("inf")), (2, float("nan"))],
    )
    def test_one_token(self, place, value, settings):
        check_one_token(settings, place, value, "triton")

    @pytest.mark.parametrize("settings", [*(SETTINGS[place] for place in (0, 3, 4)), *IN_INT8], ids=str)
    def test_nothing_but_nan(self, settings):
        call(*(torch.full_like(tensor, float("nan")) for tensor in tensors()), settings, "triton")

    @pytest.mark.parametrize("precision", ["full", "int8"])
    def test_recovery(self, precision):
        check_recovery(1, "triton", precision)
