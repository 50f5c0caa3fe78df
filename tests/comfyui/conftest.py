"""A session-wide ComfyUI server. Without a checkout these tests are skipped and the run says so; with one, a skip fails."""

from pathlib import Path

import pytest
from harness.checkout import HOW_TO_GET_ONE, find_checkout
from harness.checkpoints import ARCHITECTURES
from harness.server import Server

HERE = Path(__file__).parent
CHECKOUT = find_checkout()


def pytest_collection_modifyitems(items):
    if CHECKOUT is None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no ComfyUI checkout found"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return _no_skip(report, collector.path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    return _no_skip(report, item.path)


def _no_skip(report, path):
    if CHECKOUT is not None and report.skipped and not hasattr(report, "wasxfail") and HERE in path.parents:
        report.outcome = "failed"
        report.longrepr = f"skipped although {CHECKOUT} was found: {report.longrepr}"
    return report


def pytest_report_header():
    return f"ComfyUI: {CHECKOUT or 'NOT FOUND'}"


def pytest_terminal_summary(terminalreporter):
    if CHECKOUT is None:
        line = f"THE COMFYUI TESTS DID NOT RUN: no checkout found; {HOW_TO_GET_ONE}"
        terminalreporter.write_line(line, red=True, bold=True)
    else:
        terminalreporter.write_line(f"ComfyUI tests ran against {CHECKOUT}", green=True, bold=True)


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory):
    """A running server with the pack, the fixture nodes and a checkpoint of every architecture; see harness/."""
    server = Server(CHECKOUT, tmp_path_factory.mktemp("comfyui"))
    for architecture in ARCHITECTURES.values():
        architecture.write(server.models_dir)
    with server:
        yield server


@pytest.fixture
def client(comfyui):
    """The client of the session's server, with the counters at 0."""
    comfyui.client.reset_counters()
    return comfyui.client
