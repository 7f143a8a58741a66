"""Leaks of various sizes are found under noise; noise, steps, and what fills up once are no leaks."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.benchmarks.soak_verdict import (
    FLAT,
    GROWS,
    UNKNOWN,
    Bound,
    condensed,
    judge,
    slope_with_lower_end,
)

MIB = 1024 * 1024
HEAP = Bound(slope=1024, relative=0.03, least=512 * 1024)
COUNT = Bound(slope=0, relative=0.05, least=2.5)
SAMPLES = 400
PER_SAMPLE = 2_000  # operations between two samples
OPERATIONS = [PER_SAMPLE * index for index in range(SAMPLES)]


def noisy(level: float, amount: float, seed: int) -> list[float]:
    """As of a heap: a random part, and a saw of the garbage collector's."""
    rng = random.Random(seed)
    return [level + amount * (rng.gauss(0, 0.5) + (index % 17) / 17) for index in range(SAMPLES)]


def leaking(per_operation: float, noise: float, seed: int, level: float = 40 * MIB) -> list[float]:
    return [y + per_operation * x for x, y in zip(OPERATIONS, noisy(level, noise, seed), strict=True)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("per_operation", "noise"),
    [
        (per_operation, noise)
        for per_operation in (8, 40, 400, 4_000)
        for noise in (0, 0.2 * MIB, MIB, 3 * MIB)
        if noise <= per_operation * OPERATIONS[-1] / 4
    ],
)
def test_a_planted_leak_is_found(per_operation: float, noise: float, seed: int) -> None:
    found = judge(OPERATIONS, leaking(per_operation, noise, seed), HEAP)
    assert found.verdict == GROWS
    assert found.slope == pytest.approx(1000 * per_operation, rel=0.25)
    assert found.relative > 0.03


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("noise", [0, 0.2 * MIB, MIB, 3 * MIB])
def test_noise_is_no_leak(noise: float, seed: int) -> None:
    assert judge(OPERATIONS, noisy(40 * MIB, noise, seed), HEAP).verdict == FLAT


@pytest.mark.parametrize("seed", range(10))
def test_a_walk_of_the_allocator_that_returns_is_no_leak(seed: int) -> None:
    rng = random.Random(seed)
    level, values = 0.0, []
    for _ in range(SAMPLES):
        level = 0.9 * level + rng.gauss(0, 0.3 * MIB)
        values.append(40 * MIB + level)
    assert judge(OPERATIONS, values, HEAP).verdict == FLAT


@pytest.mark.parametrize("at", range(0, SAMPLES, 20))
def test_one_step_is_no_leak(at: int) -> None:
    values = [y + (6 * MIB if index >= at else 0) for index, y in enumerate(noisy(40 * MIB, 0.1 * MIB, at))]
    assert judge(OPERATIONS, values, HEAP).verdict == FLAT


@pytest.mark.parametrize("full_at", range(20, SAMPLES * 3 // 4, 20))
def test_a_table_that_is_full_in_time_is_no_leak(full_at: int) -> None:
    values = [y + 20 * MIB * min(index / full_at, 1) for index, y in enumerate(noisy(40 * MIB, 0.1 * MIB, 1))]
    assert judge(OPERATIONS, values, HEAP).verdict == FLAT


def test_a_leak_in_steps_is_found() -> None:
    values = [40 * MIB + MIB * (x // 50_000) for x in OPERATIONS]
    assert judge(OPERATIONS, values, HEAP).verdict == GROWS


def test_outliers_hide_no_leak_and_make_none() -> None:
    rng = random.Random(7)
    spikes = [rng.choice([0, 0, 0, 0, 60 * MIB]) for _ in range(SAMPLES)]
    flat = [y + spike for y, spike in zip(noisy(40 * MIB, 0.1 * MIB, 7), spikes, strict=True)]
    grows = [y + spike for y, spike in zip(leaking(40, 0.1 * MIB, 7), spikes, strict=True)]
    assert judge(OPERATIONS, flat, HEAP).verdict == FLAT
    assert judge(OPERATIONS, grows, HEAP).verdict == GROWS


@pytest.mark.parametrize("per_sample", [0.05, 0.2, 1])
def test_descriptors_that_stay_open_are_found(per_sample: float) -> None:
    values = [40 + int(per_sample * index) for index in range(SAMPLES)]
    assert judge(OPERATIONS, values, COUNT).verdict == GROWS


def test_descriptors_that_come_and_go_are_not() -> None:
    rng = random.Random(3)
    values = [40 + rng.choice([0, 0, 1, 2, 5, 9]) for _ in range(SAMPLES)]
    assert judge(OPERATIONS, values, COUNT).verdict == FLAT


def test_less_than_the_bound_is_flat() -> None:
    assert judge(OPERATIONS, leaking(0.5, 0, 1), HEAP).verdict == FLAT  # 500 bytes per 1,000 operations
    assert judge(OPERATIONS, leaking(2, 0, 1), HEAP).verdict == FLAT  # 2 % of the level
    assert judge(OPERATIONS, leaking(2, 0, 1), Bound(1024, 0.01, 0)).verdict == GROWS


def test_what_shrinks_is_flat() -> None:
    assert judge(OPERATIONS, leaking(-40, 0, 1), HEAP).verdict == FLAT


def test_too_little_is_no_verdict() -> None:
    assert judge([], [], HEAP).verdict == UNKNOWN
    assert judge(range(15), range(15), HEAP).verdict == UNKNOWN
    assert judge([5] * 40, range(40), HEAP).verdict == UNKNOWN
    with pytest.raises(ValueError, match="3 counts of operations for 2"):
        judge([1, 2, 3], [1, 2], HEAP)


def test_a_day_of_samples_is_condensed() -> None:
    count = 20_000
    values = [40 * MIB + 1_000 * x for x in range(count)]
    assert judge(range(count), values, HEAP).verdict == GROWS
    assert len(condensed([(float(x), 1.0) for x in range(1001)], 100)) == 91


@given(st.floats(-1e6, 1e6), st.floats(-1e3, 1e3), st.lists(st.integers(0, 10**6), min_size=2, max_size=20))
def test_a_line_has_its_own_slope(start: float, slope: float, xs: list[int]) -> None:
    points = [(float(x), start + slope * x) for x in sorted(xs)]
    found, low = slope_with_lower_end(points)
    if points[0][0] == points[-1][0]:
        assert (found, low) == (0, 0)
    else:
        assert math.isclose(found, slope, rel_tol=1e-3, abs_tol=1e-3)
        assert low <= found
