"""The same computation on a CUDA GPU. Needs one: without it these tests are skipped, and nothing else covers the GPU."""

import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from kernel_inputs import clustered, relative_error
from svg_ear.kernels import ClusterState, SelfTest, SequenceLayout, Settings, StageTimer, prepare, sparse_attention, tuning
from svg_ear.kernels.hollow import HollowCall
from svg_ear.kernels.settings import PRECISIONS
from svg_ear.kernels.timing import PENDING_CALLS

from benchmarks.speed.measure import compilations

if torch.cuda.is_available():
    from svg_ear.kernels import replay, triton_stages
    from svg_ear.kernels.triton_stages.launches import Kernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
LAYOUT = SequenceLayout(range(7, 1500), (range(0, 5), range(1500, 1511)))
precisions = pytest.mark.parametrize("precision", PRECISIONS)


@precisions
@pytest.mark.parametrize("method", ["svg-ear", "svg2"])
def test_the_torch_stages_give_what_they_give_on_a_cpu(method, precision):
    inputs = clustered(1511, batch=2, heads=3)
    settings = Settings(method=method, density=0.2, precision=precision)
    expected = sparse_attention(*inputs, settings, layouts=LAYOUT).output
    found = sparse_attention(*(tensor.cuda() for tensor in inputs), settings, layouts=LAYOUT, implementation="torch").output
    assert relative_error(found.cpu(), expected) < 1e-9


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(density=0.2),
        Settings(density=0.2, weighted_centroids=False, key_metric=False),
        Settings(budget="top-p", top_p=0.7, min_share=0.1),
        Settings(method="svg2", density=0.2),
    ],
    ids=str,
)
def test_triton_gives_what_torch_gives(settings, dtype, dim):
    inputs = [tensor.cuda() for tensor in clustered(1511, batch=2, heads=3, dim=dim, dtype=dtype)]
    video = slice(LAYOUT.video.start, LAYOUT.video.stop)
    exact = F.scaled_dot_product_attention(*(tensor.double() for tensor in inputs))
    rounding = relative_error(F.scaled_dot_product_attention(*inputs), exact)
    plain, fused = (
        sparse_attention(*inputs, settings, layouts=LAYOUT, implementation=name).output[:, :, video] for name in ("torch", "triton")
    )
    # Multiplied in tf32, which has 10 bits.
    assert relative_error(fused, plain) < 2 * (rounding if dtype != torch.float32 else 1e-3)


DEVICE = torch.device("cuda", 0)
CHOICES = (
    [{"attend": choice} for choice in tuning.attend_choices(DEVICE)] + [{"probe": choice} for choice in tuning.probe_choices(DEVICE)]
    if torch.cuda.is_available()
    else []
)


@pytest.mark.parametrize("tiles", CHOICES, ids=str)
def test_every_choice_of_tiles_gives_what_torch_gives(tiles):
    inputs = [tensor.to(DEVICE) for tensor in clustered(1511, batch=2, heads=3, dim=128, dtype=torch.bfloat16)]
    video = slice(LAYOUT.video.start, LAYOUT.video.stop)
    exact = F.scaled_dot_product_attention(*(tensor.double() for tensor in inputs))
    rounding = relative_error(F.scaled_dot_product_attention(*inputs), exact)
    tuning.use(DEVICE, **tiles)
    try:
        plain, fused = (
            sparse_attention(*inputs, Settings(density=0.2), layouts=LAYOUT, implementation=name).output[:, :, video]
            for name in ("torch", "triton")
        )
    finally:
        tuning.use(DEVICE)
    assert relative_error(fused, plain) < 2 * rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        (Settings(), None),
        (Settings(budget="top-p"), LAYOUT),
        (Settings(method="svg2"), None),
        (Settings(precision="int8"), LAYOUT),
        (Settings(method="svg2", precision="int8"), None),
    ],
)
def test_no_call_compiles_what_was_prepared(settings, layout, dtype):
    inputs = [tensor.cuda() for tensor in clustered(1511, batch=2, heads=3, dim=128, dtype=dtype)]
    for launch in HollowCall.like(*inputs, settings, layout, None, None).launches():
        # What earlier tests compiled.
        launch.kernel.device_caches.clear()
    with compilations() as ahead:
        preparation = prepare(HollowCall.like(*inputs, settings, layout, None, None))
        preparation.wait()
    assert not preparation.errors and len(ahead) == len(preparation.kernels) > 15
    with compilations() as late:
        state = ClusterState()
        for _ in range(2):
            sparse_attention(*inputs, settings, layouts=layout, state=state)
    assert not late


def test_kernels_are_prepared_while_other_work_runs():
    """Nothing of the device is held, and what the calls give is what they give without."""
    inputs = [tensor.cuda() for tensor in clustered(1511, heads=3, dim=128, dtype=torch.bfloat16)]
    expected = sparse_attention(*inputs).output
    for launch in HollowCall.like(*inputs, Settings(), None, None, None).launches():
        launch.kernel.device_caches.clear()
    before = torch.cuda.memory_allocated()
    preparation = prepare(HollowCall.like(*inputs, Settings(), None, None, None))
    while not preparation.has_ended:
        dense = F.scaled_dot_product_attention(*inputs)
    torch.cuda.synchronize()
    # The allocator hands out multiples of 512 bytes.
    assert 0 <= torch.cuda.memory_allocated() - before - dense.untyped_storage().nbytes() < 512
    assert torch.equal(sparse_attention(*inputs).output, expected)


@precisions
def test_nothing_waits_for_the_gpu(precision):
    inputs = [tensor.cuda() for tensor in clustered(1511, heads=3, dim=128, dtype=torch.bfloat16)]
    state, settings = ClusterState(), Settings(precision=precision)
    for _ in range(3):
        sparse_attention(*inputs, settings, layouts=LAYOUT, state=state)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            sparse_attention(*inputs, settings, layouts=LAYOUT, state=state)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@precisions
@pytest.mark.parametrize("owners", [None, [0, 0]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_calls_that_repeat_launches_give_the_same_bits(dtype, owners, precision):
    """On streams of their own, too, and in no more memory."""
    replay._RECORDINGS.clear()
    layout = SequenceLayout(range(40, 5000), (range(40),))
    steps = [[tensor.cuda() for tensor in clustered(5000, batch=2, heads=3, dim=128, dtype=dtype, seed=seed)] for seed in range(4)]
    found, peaks, launch = ([], []), ([], []), Kernel.launch
    for repeats in (False, True):
        state = ClusterState()
        for number, step in enumerate(steps):
            stream = torch.cuda.Stream()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with (
                patch.object(triton_stages, "LAUNCHES", repeats),
                patch.object(Kernel, "launch", autospec=True, side_effect=launch) as launched,
                torch.cuda.stream(stream),
            ):
                options = {"layouts": layout, "owners": owners, "state": state, "memory_limit": 2**26}
                result = sparse_attention(*step, Settings(density=0.2, precision=precision), **options)
            torch.cuda.synchronize()
            assert launched.called == (repeats and number == 1)
            peaks[repeats].append(torch.cuda.max_memory_allocated() - before)
            found[repeats].append([result.output, *vars(result.statistics).values(), *state.tensors()])
    assert all(torch.equal(*pair) for calls in zip(*found) for pair in zip(*calls))
    assert peaks[True][-1] < 1.1 * peaks[False][-1]


@precisions
@pytest.mark.parametrize("batch", [1, 2])
def test_a_warm_call_launches_at_most_90_kernels(batch, precision):
    """In as many chunks of heads as at 480p with 40 heads, where their number is largest."""
    inputs = [torch.randn(batch, 40, 32_760, 128, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
    state, timer, settings = ClusterState(), StageTimer(), Settings(precision=precision)
    for _ in range(2):
        sparse_attention(*inputs, settings, state=state, timer=timer)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        sparse_attention(*inputs, settings, state=state, timer=timer)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 20 < len(names) <= 90, names


def test_stages_of_many_calls_are_timed():
    inputs = [tensor.cuda() for tensor in clustered(1511, heads=3, dim=128, dtype=torch.bfloat16)]
    state, timer = ClusterState(), StageTimer()
    sparse_attention(*inputs, layouts=LAYOUT, state=state)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(2 * PENDING_CALLS):
        sparse_attention(*inputs, layouts=LAYOUT, state=state, timer=timer)
    ended.record()
    seconds = timer.seconds()
    assert list(seconds) == ["cluster", "permute", "summarize", "probe", "route", "attend", "conditioning"]
    # Between two calls is no stage.
    assert 0.5 < 1000 * sum(seconds.values()) / began.elapsed_time(ended) < 1.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_everything_exact_is_dense(dtype):
    inputs = [tensor.cuda() for tensor in clustered(3000, heads=3, dim=128, dtype=dtype)]
    expected = F.scaled_dot_product_attention(*(tensor.double() for tensor in inputs))
    rounding = relative_error(F.scaled_dot_product_attention(*inputs), expected)
    rounding = max(rounding, 1e-3) if dtype == torch.float32 else rounding
    assert relative_error(sparse_attention(*inputs, Settings(density=1.0)).output, expected) < 2 * rounding


@precisions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bitwise_repeatable(dtype, precision):
    inputs = [tensor.cuda() for tensor in clustered(5000, heads=3, dim=128, dtype=dtype)]
    first, second = (sparse_attention(*inputs, Settings(precision=precision)).output for _ in range(2))
    assert torch.equal(first, second)


@precisions
def test_extra_memory_is_bounded(precision):
    # So many heads that the limit follows from the inputs: a short sequence may take half a gigabyte whatever its size.
    inputs = [tensor.cuda() for tensor in clustered(32_760, heads=40, dim=128, dtype=torch.bfloat16)]
    state, timer = ClusterState(), StageTimer()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sparse_attention(*inputs, Settings(precision=precision), state=state, timer=timer)
    extra = torch.cuda.max_memory_allocated() - before
    print({name: round(seconds, 3) for name, seconds in timer.seconds().items()})
    print(f"extra {extra / 2**20:.0f} MiB, inputs {3 * inputs[0].nbytes / 2**20:.0f} MiB, state {state.nbytes() / 2**20:.1f} MiB")
    assert extra < 2 * 3 * inputs[0].nbytes


@pytest.mark.parametrize(("precision", "tokens"), [("full", 100_000), ("full", 131_072), ("full", 180_000), ("int8", 180_000)])
def test_long_views_of_a_fused_tensor_are_right_to_the_last_row(tokens, precision):
    """Rows of q, k and v are 3 * 40 * 128 elements apart, so that the last ones begin beyond what 32 bits can say."""
    generator = torch.Generator("cuda").manual_seed(0)
    fused = torch.randn(1, tokens, 3, 40, 128, generator=generator, device="cuda", dtype=torch.bfloat16)
    assert tokens < 180_000 or fused.numel() > 2**31
    q, k, v = (part.transpose(1, 2) for part in fused.unbind(2))
    layout = SequenceLayout(range(200, tokens - 30), (range(200), range(tokens - 30, tokens)))
    heads, rows = [0, 39], [*range(3), *range(tokens - 64, tokens)]
    expected = torch.stack([F.scaled_dot_product_attention(*(x[0, head].double() for x in (q[:, :, rows], k, v))) for head in heads])
    found = sparse_attention(q, k, v, Settings(density=1.0, kmeans_first=1, precision=precision), layouts=layout).output[0, heads][:, rows]
    # A row in int8 is off by a hundredth of its length, and few by three.
    most = {"full": 0.03, "int8": 0.06}[precision]
    assert (found.double() - expected).norm(dim=-1).amax() < most * expected.norm(dim=-1).mean()
    sparse = sparse_attention(q, k, v, Settings(kmeans_first=1, precision=precision), layouts=layout).output
    assert sparse.isfinite().all()
    # The text's own queries, the last rows of all, are dense whatever the density.
    last = sparse[0, heads][:, -30:].double()
    assert (last - expected[:, -30:]).norm(dim=-1).amax() < 0.03 * expected.norm(dim=-1).mean()


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(method="svg2"),
        Settings(method="calibrated"),
        Settings(precision="int8"),
        Settings(method="svg2", precision="int8"),
        Settings(method="calibrated", precision="int8"),
    ],
    ids=lambda value: f"{value.method} {value.precision}",
)
def test_the_self_test_passes_in_less_than_two_seconds_beside_compilation(settings, dtype, dim):
    test = SelfTest(DEVICE, dtype, settings, head_dim=dim)
    # Far from a false alarm.
    assert max(test.measure().values()) < 0.25
    began = time.perf_counter()
    assert test.run() is None
    seconds = time.perf_counter() - began
    print(f"{dtype} {dim} {settings.method} {settings.precision}: {seconds:.2f} s")
    assert seconds < 2


@precisions
@pytest.mark.parametrize("text", [False, True])
def test_the_self_test_and_calls_compile_nothing_that_was_not_prepared(text, precision):
    layout, settings = LAYOUT if text else None, Settings(precision=precision)
    inputs = [tensor.cuda() for tensor in clustered(1511, batch=2, heads=3, dim=128, dtype=torch.bfloat16)]
    test = SelfTest(DEVICE, torch.bfloat16, settings, text=text)
    for call in (HollowCall.like(*inputs, settings, layout, None, None), *test.hollow()):
        for launch in call.launches():
            launch.kernel.device_caches.clear()
    with compilations() as ahead:
        preparation = prepare(HollowCall.like(*inputs, settings, layout, None, None), test)
        preparation.wait()
    assert preparation.wrong is None and not preparation.errors and len(ahead) == len(preparation.kernels) > 15
    with compilations() as late:
        sparse_attention(*inputs, settings, layouts=layout)
    assert not late


def test_the_self_test_does_not_wait_for_what_the_gpu_has_to_do():
    """Nor does it keep that waiting for long."""
    test = SelfTest(DEVICE, torch.bfloat16, Settings())
    assert test.run() is None
    inputs = [torch.randn(1, 40, 75_600, 128, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
    F.scaled_dot_product_attention(*inputs)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began.record()
    for _ in range(40):
        F.scaled_dot_product_attention(*inputs)
    ended.record()
    start = time.perf_counter()
    assert test.run() is None
    seconds, waits = time.perf_counter() - start, ended.query()
    torch.cuda.synchronize()
    print(f"the test took {seconds:.2f} s beside {began.elapsed_time(ended) / 1000:.2f} s of dense attention")
    assert not waits


@pytest.mark.parametrize("variables", [{"CC": "/bin/false"}, {"TRITON_CACHE_DIR": "/proc/nowhere"}], ids=str)
def test_what_a_machine_lacks_ends_dense_with_one_reason(tmp_path, variables):
    script, variables = Path(__file__).with_name("cuda_process.py"), {"TRITON_CACHE_DIR": str(tmp_path)} | variables
    found = subprocess.run([sys.executable, script], env=os.environ | variables, capture_output=True, text=True)
    assert found.stdout.strip().endswith("{'kernel-failed': 3}"), found.stdout + found.stderr
    assert found.stderr.count("kernel-failed") <= 1 and "ahead of use" not in found.stderr
