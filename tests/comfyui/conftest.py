"""A session-wide ComfyUI server. Without a checkout these tests are skipped; with one, a skip fails."""

from pathlib import Path

import pytest
from harness.checkpoints import ARCHITECTURES
from harness.server import Server
from harness.variants import VARIANTS
from left_out import CHECKOUT, NO_BROWSER, NO_BROWSER_REASON, NO_CHECKOUT_REASON

HERE = Path(__file__).parent
BROWSER_TESTS = HERE / "browser"


def pytest_collection_modifyitems(items):
    for item in items:
        if CHECKOUT is None and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=NO_CHECKOUT_REASON))
        elif NO_BROWSER and BROWSER_TESTS in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=NO_BROWSER_REASON))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return _no_skip(report, collector.path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    return _no_skip(report, item.path)


def _no_skip(report, path):
    expected = CHECKOUT is None or (NO_BROWSER and BROWSER_TESTS in path.parents)
    if not expected and report.skipped and not hasattr(report, "wasxfail") and HERE in path.parents:
        report.outcome = "failed"
        report.longrepr = f"skipped although {CHECKOUT} was found: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory):
    """A running server with the pack, the fixture nodes and a checkpoint of every architecture; see harness/."""
    server = Server(CHECKOUT, tmp_path_factory.mktemp("comfyui"))
    for architecture in (*ARCHITECTURES.values(), *(variant.architecture for variant in VARIANTS.values())):
        architecture.write(server.models_dir)
    with server:
        yield server


@pytest.fixture
def client(comfyui):
    """The client of the session's server, with the counters at 0."""
    comfyui.client.reset_counters()
    return comfyui.client
