"""The measuring loops. The clock is an argument, so that tests can drive them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from framework.benchmarks.model import Measure

Clock = Callable[[], float]

_SLICES = 20  # the clock is looked at about this often in one run
_WARM_UP_SHARE = 0.5


def next_step(calls: int, elapsed: float, seconds: float) -> int:
    """How many calls to make before the clock is read again.

    Aims at a twentieth of the run, and never past its end; at least 1.
    """
    if elapsed <= 0:
        return max(1, 2 * calls)
    rate = calls / elapsed
    remaining = max(0.0, seconds - elapsed)
    # The minimum comes before `int`: after an immeasurably short time the rate may be infinite.
    return max(1, int(min(2 * calls, rate * min(seconds / _SLICES, remaining))))


def rate(operation: Callable[[], object], seconds: float, clock: Clock = time.perf_counter) -> float:
    """Calls of `operation` per second, over at least one call and about `seconds` seconds."""
    calls, step = 0, 1
    start = clock()
    while True:
        for _ in range(step):
            operation()
        calls += step
        elapsed = clock() - start
        if elapsed >= seconds and elapsed > 0:
            return calls / elapsed
        step = next_step(calls, elapsed, seconds)


async def async_rate(
    operation: Callable[[], Awaitable[object]], seconds: float, clock: Clock = time.perf_counter
) -> float:
    """As `rate`, awaiting each call before the next one starts."""
    calls, step = 0, 1
    start = clock()
    while True:
        for _ in range(step):
            await operation()
        calls += step
        elapsed = clock() - start
        if elapsed >= seconds and elapsed > 0:
            return calls / elapsed
        step = next_step(calls, elapsed, seconds)


def rate_measure(operation: Callable[[], object], per_call: float = 1.0) -> Measure:
    """A `Measure` of one row: units per second, where one call of `operation` does `per_call` units."""

    def measure(seconds: float) -> Sequence[float]:
        return (rate(operation, seconds) * per_call,)

    return measure


def time_measure(timed: Callable[[], float]) -> Measure:
    """A `Measure` of one row in seconds: the mean of what `timed` returns, over about `seconds` of calls.

    `timed` times itself, so that its clean-up does not count.
    """

    def measure(seconds: float) -> Sequence[float]:
        total, calls = 0.0, 0
        end = time.perf_counter() + seconds
        while True:
            total += timed()
            calls += 1
            if time.perf_counter() >= end:
                return (total / calls,)

    return measure


def collect(measure: Measure, runs: int, seconds: float, *, warm_up: bool) -> list[list[float]]:
    """Samples per row: `runs` runs of `seconds` each, after a shorter one that is thrown away."""
    if warm_up:
        measure(seconds * _WARM_UP_SHARE)
    samples = [list(measure(seconds)) for _ in range(runs)]
    return [list(column) for column in zip(*samples, strict=True)]
