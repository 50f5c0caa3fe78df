"""A session-wide ComfyUI server. Without a checkout these tests are skipped and the run says so; with one, a skip fails."""

from pathlib import Path

import pytest
from harness import browser
from harness.checkpoints import ARCHITECTURES
from harness.server import Server

from benchmarks.checkout import HOW_TO_GET_ONE, find_checkout

HERE = Path(__file__).parent
CHECKOUT = find_checkout()
BROWSER_TESTS = HERE / "browser"
NO_BROWSER = browser.missing()


def pytest_collection_modifyitems(items):
    for item in items:
        if CHECKOUT is None and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no ComfyUI checkout found"))
        elif NO_BROWSER and BROWSER_TESTS in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"missing {', '.join(NO_BROWSER)}"))


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


def pytest_report_header():
    return f"ComfyUI: {CHECKOUT or 'NOT FOUND'}"


def pytest_terminal_summary(terminalreporter):
    if CHECKOUT is None:
        line = f"THE COMFYUI TESTS DID NOT RUN: no checkout found; {HOW_TO_GET_ONE}, then run `make test` again"
        terminalreporter.write_line(line, red=True, bold=True)
    else:
        terminalreporter.write_line(f"ComfyUI tests ran against {CHECKOUT}", green=True, bold=True)
    if NO_BROWSER:
        terminalreporter.write_line(f"THE BROWSER TESTS DID NOT RUN: missing {', '.join(NO_BROWSER)}", red=True, bold=True)
    elif browser.SCREENSHOTS.is_dir():
        terminalreporter.write_line(f"screenshots of the browser tests: {browser.SCREENSHOTS}")


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
