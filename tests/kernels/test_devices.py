"""Every kernel is launched with the device of its tensors as the current one."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch
from kernel_inputs import clustered
from svg_ear.kernels import ClusterState, SelfTest, SequenceLayout, Settings, sparse_attention
from svg_ear.kernels.calibration import Calibration
from triton_cases import GPU

interpreter = pytest.importorskip("triton.runtime.interpreter")
COUNTS = {"query_clusters": 3, "key_clusters": 7, "kmeans_first": 1}


@pytest.fixture
def current(monkeypatch):
    """Devices that are current, as far as they were made so; launches without one fail."""
    devices, launches = [], []

    @contextmanager
    def guard(device):
        devices.append(device)
        yield
        devices.pop()

    run = interpreter.GridExecutor.__call__

    def launch(kernel, *args, **kwargs):
        launches.append(kernel.fn.__name__)
        assert devices and devices[-1].type == "cpu", f"{kernel.fn.__name__} was launched on whatever device is current"
        return run(kernel, *args, **kwargs)

    for module in ("device", "selftest", "calibration.collect"):
        monkeypatch.setattr(import_module(f"svg_ear.kernels.{module}"), "on_device", guard)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    return launches


@pytest.mark.skipif(GPU, reason="the guard is played in the interpreter; the tests below use two GPUs")
@pytest.mark.parametrize("precision", ["full", "int8"])
def test_calls_and_calibrations_launch_on_the_device_of_their_tensors(current, precision):
    q, k, v = clustered(60, heads=1, dtype=torch.float16)
    layouts = SequenceLayout(range(5, 60), (range(0, 5),))
    sparse_attention(q, k, v, Settings(density=0.3, precision=precision, **COUNTS), layouts=layouts, implementation="triton")
    assert len(current) > 10
    run = Calibration(shapes=("raster",)).start((1.0, 0.5), (1, 5, 11))
    run.observe((0, 0), 0, q, k, v, layouts=[layouts], implementation="triton")
    assert current[-1] == "_energies"


@pytest.mark.skipif(GPU, reason="the guard is played in the interpreter; the tests below use two GPUs")
def test_the_self_test_launches_on_its_device(current):
    assert SelfTest(torch.device("cpu"), torch.float16, Settings(method="calibrated"), head_dim=64).run() is None and current


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
PRESETS = (Settings(density=0.2), Settings(density=0.1), Settings(method="svg2", density=0.2), Settings(density=0.2, precision="int8"))
LAYOUT = SequenceLayout(range(7, 9000), (range(0, 5), range(9000, 9011)))


def steps(device, settings):
    """The outputs of three steps on one GPU, while another may be the current one."""
    state = ClusterState()
    inputs = [tensor.to(device) for tensor in clustered(9011, heads=4, dim=128, dtype=torch.bfloat16)]
    return [sparse_attention(*inputs, settings, layouts=LAYOUT, state=state).output.cpu() for _ in range(3)]


@two_gpus
@pytest.mark.parametrize("settings", PRESETS, ids=str)
def test_a_second_gpu_gives_the_same_bits_while_the_first_is_current(settings):
    torch.cuda.set_device(0)
    first, second = (steps(f"cuda:{number}", settings) for number in range(2))
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(one, other) for one, other in zip(first, second))


@two_gpus
@pytest.mark.parametrize("settings", (PRESETS[0], PRESETS[-1]), ids=str)
def test_two_gpus_at_once_give_what_each_gives_alone(settings):
    alone = steps("cuda:0", settings)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda number: steps(f"cuda:{number}", settings), range(2)))
    assert all(torch.equal(one, other) for found in both for one, other in zip(found, alone))


@two_gpus
def test_a_second_gpu_calibrates_and_tests_itself():
    torch.cuda.set_device(0)
    for settings in PRESETS:
        assert SelfTest(torch.device("cuda", 1), torch.bfloat16, settings).run() is None
    seen = []
    for number in range(2):
        q, k, v = (tensor.to(f"cuda:{number}") for tensor in clustered(4096, heads=2, dim=128, dtype=torch.bfloat16))
        run = Calibration(shapes=("raster",)).start((1.0, 0.5), (4, 32, 32))
        run.observe((0, 0), 0, q, k, v, layouts=[SequenceLayout(range(4096))])
        seen.append(run.seen[(0, 0), 0].energies)
    assert torch.equal(*seen) and seen[0].sum() > 0
