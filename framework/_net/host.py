"""Reading connections in an event loop of the application: a coroutine that awaits one frame gets it from its
own loop.

Where the runtime's loop reads that frame, it then has to wake the application's: two threads that share one
interpreter. A thread that waits takes the reading over for the time of one frame (see
`framework._net.takeover`). A loop keeps it, as it is there to see what else comes: its next frame costs
nothing but being read. What it does not know it leaves in the socket and gives the reading back.

So it never has the reading for itself: everybody else takes it away, from any thread, with a system call or
two (`Reading.take`, `Reading.recall`). For that its connections are in an epoll of its own, which is the one
descriptor that the application's loop sees. That loop may therefore be blocked, stopped or closed at any
time, and nobody needs it to get a connection back: whoever waits, or sends, in another thread does so at once
where it knows of it, and the runtime's tick in any case.

To be woken takes longer than a short call. So where answers have come soon, the loop does not sleep at once
(`Host.expect`): it goes on turning for a moment, in which everything else that it has to do happens as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import select
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from framework._base import limits
from framework._net.takeover import Reading, Turn
from framework._state.looking import Looking

if TYPE_CHECKING:
    from framework._net.connection import Connection

_TURN = 64  #: frames per turn of the loop


class Stay(Turn):
    """The turn of a loop of the application at a connection."""

    __slots__ = ("connection", "reading")

    def __init__(self, host: Host, connection: Connection, reading: Reading) -> None:
        super().__init__(host=host)
        self.connection = connection
        self.reading = reading

    def late(self) -> None:
        """The loop is blocked. What else comes here must not wait for that too often."""
        self.connection.shy = limits.DIRECT_LATE


class Host:
    """An event loop of the application that reads. `deal` is called in it for a connection that may have
    something: False if there was nothing. (It must not raise but for interruptions.)

    `add`, `remove` and `close` are for any thread.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_deal",
        "_epoll",
        "_expectation",
        "_looking",
        "_stays",
        "loop",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, deal: Callable[[Stay], bool]) -> None:
        """In the loop. OSError, NotImplementedError: it cannot be had."""
        self.loop = weakref.ref(loop)  #: which has this, by its callback
        self._deal = deal
        self._stays: dict[int, Stay] = {}
        self._epoll = select.epoll()
        self._expectation = Looking()
        self._looking = False  #: the loop is kept from sleeping
        self._context = contextvars.Context()
        self._listen(loop)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        # What is called here belongs to nobody: not in the context of whoever happened to be the first.
        contextvars.Context().run(loop.add_reader, self._epoll.fileno(), self._on_ready)

    def expect(self) -> None:
        """In the loop: somebody awaits what may come soon. If it is worth while, the loop does not sleep at
        once."""
        if self._expectation.expects(time.monotonic_ns()) and not self._looking:
            self._looking = True
            self._turn_again()

    def _look(self) -> None:
        if self._expectation.goes_on(time.monotonic_ns()):
            self._turn_again()
        else:
            self._looking = False

    def _turn_again(self) -> None:
        loop = self.loop()
        if loop is not None:
            loop.call_soon(self._look, context=self._context)

    def _has_come(self) -> None:
        self._expectation.has_come(time.monotonic_ns())

    @property
    def is_over(self) -> bool:
        """Whether the loop is closed."""
        loop = self.loop()
        return loop is None or loop.is_closed()

    @property
    def runs(self) -> bool:
        """Whether the loop is being run at present."""
        loop = self.loop()
        return loop is not None and loop.is_running()

    @property
    def reads(self) -> bool:
        """Whether it has anything to read."""
        return bool(self._stays)

    def add(self, fd: int, stay: Turn) -> bool:
        """Look at it from now on. (Again is no harm.) False: no room."""
        self._stays[fd] = stay  # type: ignore[assignment]
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except FileExistsError:
            pass
        except (OSError, ValueError):
            return False
        return True

    def remove(self, fd: int, stay: Turn) -> None:
        """That stay is over."""
        if self._stays.get(fd) is stay:
            self._stays.pop(fd, None)
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def close(self) -> None:
        """The runtime ends: the application's loop looks here no more, as soon as it runs. (The epoll is
        closed with the last reference to it, not before the loop has forgotten it.)"""
        loop = self.loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(loop.remove_reader, self._epoll.fileno())

    def _on_ready(self) -> None:
        stays = self._stays
        if len(stays) == 1:  # as it is mostly: no need to ask which
            for stay in list(stays.values()):
                if self._deal(stay):
                    self._has_come()
                    return
        for fd, _ in self._epoll.poll(0, _TURN):
            known = stays.get(fd)
            if known is None or known.reading.turn is not known:
                self._clear(fd)
            elif self._deal(known):
                self._has_come()

    def _clear(self, fd: int) -> None:
        """Somebody was interrupted while they took it away from here."""
        self._stays.pop(fd, None)
        try:
            self._epoll.unregister(fd)
        except OSError:
            # It was closed before it was taken out of here. A process that user code has forked may have it
            # open, and so it is reported for ever.
            self._renew()

    def _renew(self) -> None:
        loop = self.loop()
        if loop is None:
            return
        loop.remove_reader(self._epoll.fileno())
        old, self._epoll = self._epoll, select.epoll()
        self._listen(loop)
        for fd, stay in list(self._stays.items()):
            self.add(fd, stay)
        old.close()
