"""How the items of a generator get to its owner: those of a burst together, in one frame."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection
from framework._serial import values
from framework._wire import messages as m
from framework._worker.replies import write_out
from framework._worker.templates import ExecTemplate

if TYPE_CHECKING:
    from framework._worker.executor import Executor

_FLUSH_AFTER = limits.FLUSH_AFTER_NS
_TOGETHER = limits.ITEMS_IN_FRAME


class Items:
    """What one generator has made and its owner was not sent yet. An item waits for company if the one before
    it was sent a moment ago, and has left by the time at which the generator waits for something that the
    framework knows of. Should it wait for something else, or take long, the runtime's loop sends what there
    is (after `limits.FLUSH_ELSEWHERE`).

    `add` and `alone` are for the thread in which the generator runs, `flush` for any. Items leave in their
    order: who sends holds the lock from taking them until they are in the connection's buffer.
    """

    __slots__ = (
        "_careful",
        "_connection",
        "_executor",
        "_first",
        "_last",
        "_lock",
        "_looking",
        "_template",
        "_unique",
        "_waiting",
        "small",
    )

    def __init__(
        self, executor: Executor, connection: Connection, template: ExecTemplate, unique: int
    ) -> None:
        self._executor = executor
        self._connection = connection
        self._template = template
        self._unique = unique
        self._careful = template.careful
        self._waiting: deque[Any] = deque()
        self._first = 0  #: the number of the first of them
        self._last = 0  #: when something was sent, in nanoseconds
        self._looking = False  #: the loop is going to look
        self._lock = threading.Lock()
        self.small = True  #: all that were added lately waited for company

    def add(self, index: int, item: Any) -> None:
        """An item, which follows on the last one."""
        kind = type(item)
        if self._careful:
            self.alone(index, item)
            return
        if kind not in values.ATOM_TYPES or not values.is_atom(item) or kind is str:
            wire, refs = self._executor.results.item(
                self._connection, self._template, self._unique, index, item
            )
            kind = type(wire)
            if refs or kind is list or ((kind is bytes or kind is str) and len(wire) > limits.LIGHT_ARGUMENT):
                self._send_alone(index, wire, refs)
                return
            item = wire
        waiting = self._waiting
        waiting.append(item)
        if len(waiting) >= _TOGETHER or time.monotonic_ns() - self._last > _FLUSH_AFTER:
            self.flush()
        elif not self._looking:
            self._looking = True
            self._executor.runtime.post(self._look_later)

    def alone(self, index: int, item: Any) -> None:
        """An item that goes at once, in a frame of its own. (Its number need not be the next one.)"""
        wire, refs = self._executor.results.item(self._connection, self._template, self._unique, index, item)
        self._send_alone(index, wire, refs)

    def _send_alone(self, index: int, wire: Any, refs: list[Any]) -> None:
        self.small = False
        connection = self._connection
        if refs:
            self._executor.runtime.objects.hold(connection, self._unique, index + 2, refs)
        data = self._executor.thread.pack((m.ITEM, self._unique, index, wire))
        with self._lock:
            self._buffer()
            self._first = index + 1
            connection.buffer(data)
        connection.flush()
        if self._careful:
            write_out(connection)
        self._last = time.monotonic_ns()

    def flush(self) -> None:
        """Any thread: send what there is."""
        if self._waiting:
            with self._lock:
                self._buffer()
            self._connection.flush()
            self._last = time.monotonic_ns()

    def _buffer(self) -> None:
        """With the lock."""
        waiting = self._waiting
        together = [waiting.popleft() for _ in range(len(waiting))]
        if together:
            first = self._first
            self._first = first + len(together)
            pack = self._executor.thread.pack
            if len(together) == 1:
                self._connection.buffer(pack((m.ITEM, self._unique, first, together[0])))
            else:
                self._connection.buffer(pack((m.ITEMS, self._unique, first, together)))

    # ---- the runtime's loop --------------------------------------------------------------------------

    def _look_later(self) -> None:
        self._executor.runtime.loop.call_later(limits.FLUSH_ELSEWHERE, self._look)

    def _look(self) -> None:
        if self._waiting:
            self.flush()
            self._look_later()  # where there are some, others follow
            return
        self._looking = False
        if self._waiting and not self._looking:  # since the first of these lines
            self._looking = True
            self._look_later()
