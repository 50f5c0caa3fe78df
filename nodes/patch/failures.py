"""What makes a call that could have run sparse stay dense after all, instead of ending the prompt."""

from __future__ import annotations

import textwrap

from ..recording import reasons
from ..recording.reasons import Reason
from .memory import is_out_of_memory

# Letters of an error that a report has room for.
LETTERS = 240


def failure(error: Exception) -> Reason | None:
    """Why the call that raised ``error`` runs dense, None for an error that must be seen: one of our own, or of whoever called us."""
    if is_out_of_memory(error):
        return reasons.OUT_OF_MEMORY
    return reasons.kernel_failed(first_line(error)) if _is_of_triton(error) else None


def distrust(wrong: str | Exception | None) -> Reason | None:
    """Why the kernels must not run after a self-test that found this ``wrong``, or was stopped by it. Raises a :func:`failure`."""
    if not isinstance(wrong, Exception):
        return wrong and reasons.kernel_wrong(wrong)
    if failure(wrong) is None:
        return reasons.kernels_untested(first_line(wrong))
    raise wrong


def _is_of_triton(error: Exception) -> bool:
    """Whether Triton was at work when ``error`` arose.

    Compilers, caches, drivers and file systems raise what they like, so that no list of classes would do; a bad argument never gets as
    far as Triton.
    """
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "triton":
            return True
        step = step.tb_next
    return False


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says; a compiler's own words where it quotes the source before them."""
    lines = str(getattr(error, "error_message", None) or error).strip().splitlines()
    return textwrap.shorten(": ".join((type(error).__name__, *lines[:1])), LETTERS, placeholder=" ...")
