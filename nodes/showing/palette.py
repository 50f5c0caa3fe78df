"""Colours that people with colour-blindness can tell apart: blue is exact, orange is error."""

from __future__ import annotations

import numpy

INK, FAINT, PAPER, LINE = (32, 36, 42), (104, 110, 118), (255, 255, 255), (196, 200, 206)
EXACT = (13, 59, 120)
DENSE = (214, 217, 222)
ERROR = ((250, 247, 241), (253, 208, 152), (240, 138, 44), (158, 60, 4))
DENSITY = ((240, 245, 250), (158, 196, 226), (58, 121, 184), (13, 59, 120))
SHARE = ((0, 32, 77), (65, 77, 107), (124, 123, 120), (187, 172, 104), (255, 234, 70))

# The range of block errors that colours tell apart, relative to the output; below the first a block is as good as exact.
ERROR_RANGE = (1e-4, 0.3)


def shade(levels, ramp):
    """Colours uint8 ``[..., 3]`` of levels from 0 to 1 along a ramp."""
    levels = numpy.clip(numpy.nan_to_num(levels), 0, 1) * (len(ramp) - 1)
    stops = numpy.asarray(ramp, dtype=float)
    return numpy.stack([numpy.interp(levels, range(len(ramp)), stops[:, part]) for part in range(3)], axis=-1).round().astype("uint8")


def error_level(errors):
    """Level from 0 to 1 of block errors, logarithmic over ``ERROR_RANGE``."""
    low, high = numpy.log10(ERROR_RANGE)
    return (numpy.log10(numpy.maximum(errors, ERROR_RANGE[0])) - low) / (high - low)
