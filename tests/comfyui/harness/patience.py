"""Time limits in seconds of an idle machine, which last longer on a slow or busy one."""

import time

# What ``reference`` takes on two idle cores, and how often it is asked again.
REFERENCE_SECONDS, ASK_SECONDS = 0.05, 5.0
REFERENCE_TURNS = 5_000_000


def reference() -> float:
    """Seconds that a small computation takes: more on a slow machine, and on a busy one, where it has to share."""
    began = time.perf_counter()
    for _ in range(REFERENCE_TURNS):
        pass
    return time.perf_counter() - began


class Patience:
    """Waits for something that may take ``seconds`` on an idle machine, and on others as much longer as they are slower.

        patience = Patience(60)
        while patience.lasts():
            ...

    As text it says what it has waited.
    """

    def __init__(self, seconds: float, clock=time.monotonic, reference=reference):
        self.seconds, self.clock, self.reference = seconds, clock, reference
        self.renew()

    def renew(self) -> None:
        """Begin anew, since something goes on."""
        self.left, self.began = self.seconds, self.clock()
        self.asked = self.began

    def __str__(self):
        return f"{self.clock() - self.began:.0f} s, {self.seconds - self.left:.0f} s on an idle machine"

    def lasts(self) -> bool:
        """Whether to wait on."""
        passed = self.clock() - self.asked
        if passed >= min(ASK_SECONDS, self.left):
            slowness = max(1, self.reference() / REFERENCE_SECONDS)
            self.left -= (self.clock() - self.asked) / slowness
            self.asked = self.clock()
        return self.left > 0
