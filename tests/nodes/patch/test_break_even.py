import math

import pytest
from svg_ear.nodes.patch.break_even import at_density, at_heads, break_even


def test_lengths_are_interpolated_in_logarithms():
    # The gain is (tokens / 16000) ** 0.5, which is a straight line in logarithms.
    points = [(tokens, math.sqrt(tokens / 16000), 1.0) for tokens in (8000, 32000, 64000)]
    assert break_even(points) == pytest.approx(16000)
    assert break_even(reversed(points)) == pytest.approx(16000)


def test_always_and_never_faster():
    assert break_even([(8192, 2.0, 1.0), (16384, 3.0, 1.0)]) == 8192
    assert break_even([(8192, 1.0, 2.0), (16384, 1.0, 1.5)]) == math.inf
    assert break_even([]) == math.inf


def test_the_last_crossing_counts():
    points = [(8192, 1.1, 1.0), (16384, 0.5, 1.0), (32768, 2.0, 1.0)]
    assert break_even(points) == pytest.approx(16384 * math.sqrt(2))


def test_equal_times_are_the_break_even():
    assert break_even([(8192, 0.5, 1.0), (16384, 1.0, 1.0), (32768, 2.0, 1.0)]) == pytest.approx(16384)


@pytest.mark.parametrize(
    ("density", "tokens"), [(0.05, 10000), (0.01, 10000), (0.1, 12000), (0.2, 16000), (0.15, math.sqrt(12000 * 16000)), (0.4, 32000)]
)
def test_between_and_beyond_densities(density, tokens):
    assert at_density([(0.2, 16000), (0.05, 10000), (0.1, 12000)], density) == pytest.approx(tokens)


def test_a_density_that_never_pays_spoils_no_lower_one():
    found = [(0.1, 12000), (0.2, math.inf)]
    assert at_density(found, 0.1) == 12000
    assert at_density(found, 0.11) == at_density(found, 0.3) == math.inf


@pytest.mark.parametrize(("heads", "tokens"), [(12, 24000), (3, 48000), (48, 12000), (64, 12000), (24, math.sqrt(24000 * 12000))])
def test_between_and_beyond_heads(heads, tokens):
    assert at_heads([(48, 12000), (12, 24000)], heads) == pytest.approx(tokens)


def test_one_number_of_heads_serves_more_of_them_too():
    assert at_heads([(12, 24000)], 40) == 24000
