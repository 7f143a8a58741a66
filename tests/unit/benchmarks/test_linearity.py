from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.benchmarks.linearity import FASTER, LINEAR, UNKNOWN, slope, verdict

SIZES = [1000, 3000, 10_000, 30_000, 100_000]


@given(st.floats(min_value=0.0, max_value=2.0), st.floats(min_value=1e-6, max_value=1e3))
def test_the_slope_is_the_exponent(exponent: float, factor: float) -> None:
    points = [(float(size), factor * size**exponent) for size in SIZES]
    assert slope(points) == pytest.approx(exponent, abs=1e-6)


@pytest.mark.parametrize(
    ("exponent", "expected"), [(0.0, LINEAR), (1.0, LINEAR), (1.09, LINEAR), (1.2, FASTER), (2.0, FASTER)]
)
def test_verdict(exponent: float, expected: str) -> None:
    assert verdict([(size, size**exponent) for size in SIZES]) == expected


def test_what_is_constant_below_does_not_hide_growth_above() -> None:
    points = [(10.0**power, max(1.0, 10.0 ** (2 * (power - 4)))) for power in range(7)]
    assert verdict(points) == FASTER


def test_one_outlier_decides_nothing() -> None:
    points = [(float(size), float(size)) for size in SIZES]
    points[2] = (points[2][0], 5 * points[2][1])
    assert verdict(points) == LINEAR


def test_too_few_points() -> None:
    assert slope([]) is None
    assert verdict([(1.0, 1.0), (2.0, 2.0)]) == UNKNOWN
    assert slope([(5.0, 1.0)] * 4) is None
    with pytest.raises(ValueError, match="positive"):
        slope([(1.0, 0.0)])
