from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from framework.benchmarks.runner import async_rate, collect, next_step, rate, rate_measure, time_measure


class Machine:
    """A clock that only operations move."""

    def __init__(self, cost: float) -> None:
        self.now = 100.0
        self.cost = cost
        self.calls = 0
        self.readings = 0

    def clock(self) -> float:
        self.readings += 1
        return self.now

    def operation(self) -> None:
        self.calls += 1
        self.now += self.cost

    async def async_operation(self) -> None:
        self.operation()


@given(st.floats(min_value=1e-4, max_value=10.0))
def test_rate_is_the_inverse_of_the_cost(cost: float) -> None:
    machine = Machine(cost)
    assert rate(machine.operation, 0.5, machine.clock) == pytest.approx(1 / cost, rel=1e-6)


def test_rate_runs_about_as_long_as_asked_and_seldom_reads_the_clock() -> None:
    machine = Machine(1e-4)
    rate(machine.operation, 1.0, machine.clock)
    assert 1.0 <= machine.now - 100.0 <= 1.01
    assert machine.readings < 100


def test_a_slow_operation_is_called_once() -> None:
    machine = Machine(7.0)
    assert rate(machine.operation, 1.0, machine.clock) == pytest.approx(1 / 7)
    assert machine.calls == 1


def test_a_cost_that_rises_does_not_prolong_the_run_much() -> None:
    machine = Machine(1e-4)

    def operation() -> None:
        machine.operation()
        machine.cost = 1e-4 if machine.calls < 500 else 1e-3

    rate(operation, 1.0, machine.clock)
    assert machine.now - 100.0 < 1.5


async def test_async_rate_counts_as_rate_does() -> None:
    machine = Machine(0.01)
    assert await async_rate(machine.async_operation, 1.0, machine.clock) == pytest.approx(100.0)


@example(calls=1, elapsed=5e-324, seconds=1.0)  # the rate overflows to infinity
@given(
    st.integers(min_value=1, max_value=10**9),
    st.floats(min_value=0.0, max_value=100.0),
    st.floats(min_value=1e-3, max_value=100.0),
)
def test_next_step_is_positive_and_at_most_doubles(calls: int, elapsed: float, seconds: float) -> None:
    assert 1 <= next_step(calls, elapsed, seconds) <= 2 * calls


def test_rate_measure_multiplies_by_units_per_call() -> None:
    calls = 0

    def operation() -> None:
        nonlocal calls
        calls += 1

    (one,) = rate_measure(operation)(1e-3)
    assert one > 0
    assert calls > 0


def test_time_measure_is_the_mean_of_what_was_timed() -> None:
    times = iter([1.0, 3.0])
    assert time_measure(lambda: next(times))(0.0) == (1.0,)


def test_collect_turns_runs_into_rows_and_drops_the_warm_up() -> None:
    asked: list[float] = []

    def measure(seconds: float) -> Sequence[float]:
        asked.append(seconds)
        return (len(asked), -len(asked))

    assert collect(measure, 3, 1.0, warm_up=True) == [[2, 3, 4], [-2, -3, -4]]
    assert asked[0] < 1.0
    assert asked[1:] == [1.0, 1.0, 1.0]
    assert collect(measure, 1, 1.0, warm_up=False) == [[5], [-5]]
