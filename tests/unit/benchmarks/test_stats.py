from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.benchmarks.stats import median, of_floor, overlap, relative_spread, speed_up, verdict

positive = st.floats(min_value=1e-6, max_value=1e9)
some = st.lists(positive, min_size=1, max_size=9)


def test_spread_is_range_over_median() -> None:
    assert relative_spread([90.0, 100.0, 120.0]) == pytest.approx(0.3)


def test_spread_of_one_sample_and_of_zeros_is_zero() -> None:
    assert relative_spread([5.0]) == 0.0
    assert relative_spread([0.0, 0.0]) == 0.0


def test_spread_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        relative_spread([])


@given(some, positive)
def test_spread_does_not_depend_on_the_unit(samples: list[float], factor: float) -> None:
    scaled = [sample * factor for sample in samples]
    assert relative_spread(scaled) == pytest.approx(relative_spread(samples), rel=1e-6, abs=1e-9)


@given(some)
def test_median_lies_within_the_samples(samples: list[float]) -> None:
    assert min(samples) <= median(samples) <= max(samples)


def test_of_floor_reads_alike_for_rates_and_times() -> None:
    assert of_floor(25.0, 100.0, per_floor=1, lower_is_better=False) == pytest.approx(0.25)
    assert of_floor(0.4, 0.1, per_floor=1, lower_is_better=True) == pytest.approx(0.25)


def test_of_floor_counts_the_operations_in_a_unit() -> None:
    # 30 batches of 1000 calls, where the floor makes 100,000 calls.
    assert of_floor(30.0, 100_000.0, per_floor=1000, lower_is_better=False) == pytest.approx(0.3)
    # A hundred forks of 1 ms are the floor of a hundred actors in 0.5 s.
    assert of_floor(0.5, 0.001, per_floor=100, lower_is_better=True) == pytest.approx(0.2)


@pytest.mark.parametrize(("value", "floor"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_of_floor_of_no_figure_is_nan(value: float, floor: float) -> None:
    assert math.isnan(of_floor(value, floor, per_floor=1, lower_is_better=False))


@given(positive, positive, st.booleans())
def test_speed_up_there_and_back_is_one(before: float, after: float, lower: bool) -> None:
    there = speed_up(before, after, lower_is_better=lower)
    back = speed_up(after, before, lower_is_better=lower)
    assert there * back == pytest.approx(1.0)


@given(positive, positive)
def test_speed_up_of_a_time_is_that_of_its_rate(before: float, after: float) -> None:
    as_time = speed_up(before, after, lower_is_better=True)
    as_rate = speed_up(1 / before, 1 / after, lower_is_better=False)
    assert as_time == pytest.approx(as_rate)


def test_speed_up_without_a_figure_is_nan() -> None:
    assert math.isnan(speed_up(0.0, 1.0, lower_is_better=False))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, 2.0], [2.0, 3.0], "no difference seen"),
        ([1.0, 2.0], [2.1, 3.0], "faster"),
        ([2.1, 3.0], [1.0, 2.0], "slower"),
        ([1.0, 9.0], [2.0, 3.0], "no difference seen"),
        ([1.0], [2.0, 3.0], "?"),
        ([1.0, 2.0], [3.0], "?"),
    ],
)
def test_verdict(before: list[float], after: list[float], expected: str) -> None:
    assert verdict(before, after, lower_is_better=False) == expected


@given(some, some)
def test_verdict_mirrors(before: list[float], after: list[float]) -> None:
    mirror = {"faster": "slower", "slower": "faster"}
    found = verdict(before, after, lower_is_better=False)
    expected = mirror.get(found, found)
    assert verdict(after, before, lower_is_better=False) == expected
    assert verdict(before, after, lower_is_better=True) == expected


@given(some)
def test_nothing_differs_from_itself(samples: list[float]) -> None:
    assert overlap(samples, samples)
    assert verdict(samples, samples, lower_is_better=True) in ("no difference seen", "?")
