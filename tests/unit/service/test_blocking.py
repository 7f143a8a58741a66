"""Waiting that looks up now and then: it is what it would be without."""

from __future__ import annotations

import concurrent.futures
import threading
from unittest import mock

import pytest

from framework._base import limits
from framework._service import blocking


class Waits:
    """What is waited for comes at the `after`-th look; the clock goes by what each was to take."""

    def __init__(self, after: int | None) -> None:
        self.after, self.asked, self.now = after, list[float](), 100.0

    def __call__(self, seconds: float) -> bool:
        self.asked.append(seconds)
        if len(self.asked) == self.after:
            return True
        self.now += seconds
        return False

    def run(self, timeout: float | None) -> bool:
        with mock.patch.object(blocking.time, "monotonic", lambda: self.now):
            return blocking.patiently(self, timeout)


LOOK = limits.SIGNAL_LOOK


def test_it_looks_up_until_it_has_come() -> None:
    waits = Waits(after=4)
    assert waits.run(None)
    assert waits.asked == [LOOK] * 4


def test_it_ends_in_time() -> None:
    waits = Waits(after=None)
    assert not waits.run(2.25 * LOOK)
    assert waits.asked == pytest.approx([LOOK, LOOK, 0.25 * LOOK])
    assert waits.now == pytest.approx(100.0 + 2.25 * LOOK)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_no_time_is_one_look(timeout: float) -> None:
    waits = Waits(after=None)
    assert not waits.run(timeout)
    assert waits.asked == [0.0]
    assert Waits(after=1).run(timeout)


def test_a_lock() -> None:
    lock = threading.Lock()
    assert blocking.acquire(lock)
    assert not blocking.acquire(lock, 0.01)
    threading.Timer(0.01, lock.release).start()
    assert blocking.acquire(lock, None)


def test_a_future_and_what_it_raises() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    threading.Timer(0.01, future.set_result, [7]).start()
    assert blocking.outcome(future) == 7
    failed: concurrent.futures.Future[int] = concurrent.futures.Future()
    failed.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        blocking.outcome(failed)
