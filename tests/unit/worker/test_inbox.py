"""The main thread of a worker waits for its next task: what it reads itself, and how it waits for that."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from framework._base import limits
from framework._net import takeover
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework._worker.inbox import Inbox

pytestmark = pytest.mark.skipif(not takeover.AVAILABLE, reason="needs epoll")

LATE = limits.SPIN + limits.WAKE


class Reading:
    """A connection of which a thread may always have the reading."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def take(self, turn: object) -> bool:
        return True

    def give_back(self, turn: object) -> None:
        """It is to be taken again."""

    def claim(self, turn: object) -> bool:
        return True

    def fileno(self) -> int:
        return self.sock.fileno()

    def peek(self) -> bytes:
        return self.sock.recv(1000, socket.MSG_PEEK)

    def skip(self, turn: object, size: int) -> None:
        self.sock.recv(size)


class Direct:
    """Whose connections may be read by whoever waits."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def reading(self, connection: object) -> Reading:
        return self._reading

    def behind(self) -> bool:
        return False


class Caller:
    """Sends calls, one at a time, each after so many nanoseconds of a clock that stands still otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._now = self._number = self._takes = 0
        self.looks: list[int] = []
        direct: Any = Direct(Reading(self._theirs))
        self._inbox = Inbox(direct, lambda connection, frame: True)
        wait = takeover.Parking.wait

        def look(parking: object, fd: int, nanoseconds: int) -> None:
            assert fd == self._theirs.fileno()
            self.looks.append(nanoseconds)

        def slow(parking: Any, fd: int, timeout: float | None) -> bool:
            self._now += self._takes
            return wait(parking, fd, timeout)

        monkeypatch.setattr("framework._worker.inbox.time.monotonic_ns", lambda: self._now)
        monkeypatch.setattr(takeover.Parking, "look", look)
        monkeypatch.setattr(takeover.Parking, "wait", slow)
        caller: Any = self
        self._inbox.push((caller, [m.TASK]))
        self._inbox.take(lambda: None)

    def call_after(self, nanoseconds: int) -> None:
        """It is taken by the thread that waits."""
        self._number += 1
        self._takes = nanoseconds

        def idle() -> None:
            self._ours.sendall(new_packer()([m.TASK, self._number, 1, [], None, None]))

        assert self._inbox.take(idle)[1][1] == self._number

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    made = Caller(monkeypatch)
    yield made
    made.close()


def test_it_looks_for_calls_that_come_at_once(caller: Caller) -> None:
    for _ in range(4):
        caller.call_after(limits.SPIN // 2)
    assert caller.looks == [limits.SPIN] * 3, "not before the first, of which nothing was known"


def test_not_for_others(caller: Caller) -> None:
    for _ in range(4):
        caller.call_after(LATE)
    assert not caller.looks


def test_what_waking_takes_is_not_the_callers_time(caller: Caller) -> None:
    caller.call_after(LATE - 1)  # woken late
    caller.call_after(0)
    assert len(caller.looks) == 1


def test_once_in_vain_is_enough(caller: Caller) -> None:
    caller.call_after(0)
    caller.call_after(limits.SPIN)
    caller.call_after(LATE)
    assert len(caller.looks) == 1
    caller.call_after(0)
    caller.call_after(0)
    assert len(caller.looks) == 2
