"""How results get back to their callers: those of a burst of short tasks together, in one frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from framework._base import limits
from framework._net.connection import Connection
from framework._wire import messages as m

#: the number of a task, its run time, its value: what is small enough to wait for company before it is packed
Result = tuple[int, int, Any]
_FLUSH_AFTER = limits.FLUSH_AFTER_NS


class Replies:
    """What waits to be sent. Any thread may do so at any time; `more` is what is still to be run, and while
    there is something, results wait for company (for `limits.FLUSH_AFTER_NS` at most, unless the next task
    takes longer). Where calls run beside each other on a loop, `more` are those under way, and `later` is
    called to have what waits flushed when the loop has done what it has to do now."""

    __slots__ = ("_last", "_more", "_unflushed", "later")

    def __init__(self, more: Collection[Any]) -> None:
        self._more = more
        self.later: Callable[[], object] | None = None
        self._last = 0
        self._unflushed: dict[Connection, None] = {}

    def add(self, connection: Connection, result: Result, pack: Callable[[Any], bytes], now: int) -> None:
        """An executing thread: the result of a task that was done at `now` (`time.monotonic_ns`)."""
        connection.state.results.append(result)
        if not self._more or now - self._last > _FLUSH_AFTER:
            self._buffer(connection, pack)
            connection.flush()
            self._last = now
        else:
            self._unflushed[connection] = None
            if self.later is not None:
                self.later()

    def beside(self, under_way: Collection[Any], later: Callable[[], object]) -> None:
        """From now on calls run beside each other."""
        self._more, self.later = under_way, later

    def send(
        self, connection: Connection, data: bytes, pack: Callable[[Any], bytes], at_once: bool = False
    ) -> None:
        """The same for a frame; `at_once`: it is to be in the hands of the system on return."""
        self._buffer(connection, pack)
        connection.buffer(data)
        if at_once:
            write_out(connection)
            self._last = time.monotonic_ns()
        elif not self._more or self.later or time.monotonic_ns() - self._last > _FLUSH_AFTER:
            connection.flush()
            self._last = time.monotonic_ns()
        else:
            self._unflushed[connection] = None

    def flush(self, pack: Callable[[Any], bytes]) -> None:
        """Any thread: send all that waits for company."""
        unflushed = self._unflushed
        while unflushed:
            try:
                connection, _ = unflushed.popitem()
            except KeyError:
                break
            self._buffer(connection, pack)
            connection.flush()
        self._last = time.monotonic_ns()

    @staticmethod
    def _buffer(connection: Connection, pack: Callable[[Any], bytes]) -> None:
        results = connection.state.results
        if not results:
            return
        fields: list[Any] = []
        try:
            while results:
                fields += results.popleft()
        except IndexError:  # another thread has had the last one
            pass
        if len(fields) == 3:
            connection.buffer(pack((m.DONE, *fields)))
        elif fields:
            connection.buffer(pack((m.DONES, fields)))


def write_out(connection: Connection) -> None:
    """The executing thread: what has been said must not be lost if user code ends this process now. The
    other thread may hold the connection and wait for the interpreter: `flush` alone would leave it to
    that one."""
    connection.flush(wait=True)
    while not connection.written:
        time.sleep(0.001)
