"""What waits for the main thread of a worker: tasks and calls that the loop has read, and, while the thread
is idle, those that it reads itself (see `framework._net.takeover`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from framework._base import limits
from framework._net import takeover
from framework._net.connection import Connection, Frame
from framework._net.takeover import Reading, Turn
from framework._runtime.direct import NO_FRAME, Direct
from framework._wire import messages as m
from framework._wire.codec import unpack_frame
from framework.exceptions import ProtocolError

Item = tuple[Connection | None, Frame]


class Inbox:
    """A queue, filled by the loop, for one thread that may take from it: the one that made it.

    `accepts` is asked in that thread whether a TASK frame may be run at once; it may raise `ProtocolError`.
    """

    __slots__ = ("_accepts", "_caller", "_connections", "_direct", "_idle", "_parking", "_soon", "items")

    def __init__(self, direct: Direct, accepts: Callable[[Connection, Frame], bool]) -> None:
        self._connections = direct
        self._accepts = accepts
        self._parking = takeover.parking()
        self._caller: Connection | None = None  #: whose task was the last
        self._direct = False  #: the last one was read here
        self._idle = False
        self._soon = False  #: the last call that it waited for came at once
        self.items: deque[Item] = deque()

    def push(self, item: Item) -> None:
        """Loop: one more thing to do."""
        self.items.append(item)
        if self._idle:
            self._idle = False
            self._parking()

    def push_all(self, items: list[Item]) -> None:
        """Loop: several."""
        self.items.extend(items)
        if self._idle:
            self._idle = False
            self._parking()

    def take(self, idle: Callable[[], object]) -> Item:
        """The next thing to do. `idle()` is called before it is waited for."""
        if not self._direct:
            try:
                next_item = self.items.popleft()
            except IndexError:
                pass
            else:
                self._caller = next_item[0]
                return next_item
        direct, self._direct = self._direct, False
        item: Item | None
        while True:
            try:
                item = self.items.popleft()
                if direct and self.items and self._caller is not None:
                    self._caller.shy = limits.DIRECT_AGAIN  # several came behind it: they do so in bursts
            except IndexError:
                idle()
                item = self._wait()
            if item is not None:
                self._caller = item[0]
                return item
            direct = False

    def _wait(self) -> Item | None:
        """Until something is there, or may be; or what this thread has found at its last caller's."""
        parking, caller = self._parking, self._caller
        reading = self._connections.reading(caller) if caller is not None else None
        turn = Turn()
        item: Item | None = None
        parking.busy = True
        self._idle = True
        if reading is None or not reading.take(turn):
            if not self.items:
                parking.wait(-1, None)
        else:
            assert caller is not None
            if not self.items and self._wait_for(reading.fileno()):
                frame = self._read(caller, reading, turn)
                if frame is not None:
                    item = (caller, frame)
                    self._direct = True
                else:
                    caller.shy = limits.DIRECT_AGAIN
            reading.give_back(turn)
        self._idle = False
        parking.busy = False
        return item

    def _wait_for(self, fd: int) -> bool:
        """As `Parking.wait`. Where calls come one at a time, and soon, being woken for each takes longer than
        the call itself: so before it sleeps the thread looks, as long as that was worth it the last time.
        (Only here, in a process that is ours: what the user's has of its cores it may need for other work.)
        """
        began, soon = time.monotonic_ns(), limits.SPIN
        if self._soon:
            self._parking.look(fd, soon)
        else:
            soon += limits.WAKE
        readable = self._parking.wait(fd, None)
        self._soon = time.monotonic_ns() - began < soon
        return readable

    def _read(self, caller: Connection, reading: Reading, turn: Turn) -> Frame | None:
        """A task, if that is what has come, and nothing else."""
        try:
            data = reading.peek()
            frame: Frame = unpack_frame(data)
            if (
                self.items
                or self._connections.behind()
                or type(frame) is not list
                or m.check(frame) != m.TASK
                or not self._accepts(caller, frame)
                or not reading.claim(turn)
            ):
                return None
        except ProtocolError:
            return None  # the loop deals with that
        except NO_FRAME:
            return None
        reading.skip(turn, len(data))
        return frame
