"""How long the tests wait for a server or a browser: as long as a slow machine needs, and not for ever."""

import os
import sys
import time

import pytest
from harness.browser import watch
from harness.patience import REFERENCE_SECONDS, Patience


class Machine:
    """A clock, and a machine that is so many times slower than an idle one."""

    def __init__(self, slowness):
        self.now, self.slowness = 0.0, slowness

    def wait(self, patience, step=1.0):
        """Seconds until the patience is at its end."""
        while patience.lasts():
            self.now += step
        return self.now

    def patience(self, seconds):
        return Patience(seconds, lambda: self.now, lambda: self.slowness * REFERENCE_SECONDS)


@pytest.mark.parametrize(("slowness", "waited"), [(0.5, 60), (1, 60), (4, 240), (12, 720)])
def test_a_slow_machine_is_given_more_time(slowness, waited):
    machine = Machine(slowness)
    assert machine.wait(machine.patience(60)) == pytest.approx(waited, rel=0.1)


def test_a_load_that_comes_later_counts_from_then_on():
    machine = Machine(1)
    patience = machine.patience(60)
    for machine.now in range(31):
        assert patience.lasts()
    machine.slowness = 10
    assert machine.wait(patience) == pytest.approx(30 + 10 * 30, rel=0.1)


def test_what_goes_on_is_waited_for():
    machine = Machine(1)
    patience = machine.patience(60)
    for machine.now in range(0, 1000, 50):
        assert patience.lasts()
        patience.renew()
    assert machine.wait(patience) == pytest.approx(950 + 60, abs=1)


def python(code):
    return [sys.executable, "-c", "import os, sys, time\nsay = lambda text: print(text, file=sys.stderr, flush=True)\n" + code]


def test_a_script_that_goes_on_is_not_ended():
    slow = python("for turn in range(8): time.sleep(0.25); say(turn)\nprint(sys.stdin.read())")
    assert watch(slow, "given", silence=1) == "given\n"


def test_a_script_that_hangs_is_ended_and_its_last_words_are_told(tmp_path):
    hung = python(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); say('about to hang'); time.sleep(600)")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="about to hang"):
        watch(hung, "", silence=1)
    assert time.monotonic() - began < 300
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_script_that_fails_is_told():
    with pytest.raises(RuntimeError, match="the reason"):
        watch(python("sys.exit('the reason')"), "not read", silence=30)
