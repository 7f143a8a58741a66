"""Reading a connection from outside of its loop: a thread that waits for one frame takes it itself.

Where the loop reads it, a frame costs two wake-ups: of the loop's thread, and of the one that waits, and the
two are in each other's way, as they share one interpreter. So the descriptors of some connections are in an
epoll of their own (`Readers`), which is one single descriptor to the loop: a thread takes one out of there
and puts it back with a system call each, and the loop sleeps on.

The thread looks at what has come (`peek`) and takes it out of the socket only when it has dealt with it
(`skip`). Whatever it does not know it leaves there and gives the reading back: then the loop finds it, in its
order. So little can go wrong where an exception may strike at any line (Ctrl-C, the interruption of a task).

A thread may also be kept from its work, by a signal handler on top of it that itself waits for this very
connection. So the loop looks now and then (`Readers.look`) and takes back what has not been read for a while.

A loop of the application that awaits such a frame takes the reading over, too, and keeps it from one call to
the next, as it is there to see what else comes: see `framework._net.host`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from framework._base import limits
from framework._wire.codec import Decoder

if TYPE_CHECKING:
    from framework._net.host import Host

_TURN = 64  #: descriptors per turn of the loop
_ONE = (1).to_bytes(8, sys.byteorder)
_LONG = 86_400.0  #: seconds; poll cannot wait for ever

#: elsewhere the loop reads everything
AVAILABLE = hasattr(select, "epoll")


class Readers:
    """The connections of one loop whose reading may be taken over. `pause` and `resume` are for any thread,
    the rest is for the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._readings: dict[int, Reading] = {}
        self._paused: dict[Reading, None] = {}
        #: had something to read when they were looked at last, and had dealt with so many frames
        self._late: dict[Turn, int] = {}
        self._loop = loop
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def close(self) -> None:
        """After the last connection."""
        self._loop.remove_reader(self._epoll.fileno())
        self._readings.clear()
        self._epoll.close()

    def add(self, fd: int, reading: Reading) -> None:
        self._readings[fd] = reading
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        reading = self._readings.pop(fd, None)
        if reading is not None:
            self._epoll.unregister(fd)
            self._paused.pop(reading, None)

    def pause(self, fd: int, reading: Reading) -> None:
        self._paused[reading] = None
        try:
            # (A hang-up is reported whatever one asks for; with this, only once.)
            self._epoll.modify(fd, select.EPOLLONESHOT)
        except (OSError, ValueError):
            return  # removed, or the loop has ended
        # Again: whatever is paused must be in here, even if another thread has just resumed it. (And before
        # that, too, as a signal handler may raise here.)
        self._paused[reading] = None

    def resume(self, fd: int, reading: Reading) -> None:
        self._paused.pop(reading, None)
        try:
            self._epoll.modify(fd, select.EPOLLIN)
        except (OSError, ValueError):
            pass

    def _on_ready(self) -> None:
        for fd, _ in self._epoll.poll(0, _TURN):
            reading = self._readings.get(fd)
            if reading is not None:
                reading.on_ready()

    def look(self) -> None:
        """Take back what a thread has had for reading since the last look and has not read, and what an
        application's loop has that does not run."""
        before, self._late = self._late, {}
        poll, turns = select.poll(), {}
        for reading in list(self._paused):
            turn = reading.turn
            if turn is None:  # somebody was interrupted while it gave it back
                self.resume(reading.fileno(), reading)
            elif turn.host is not None and not turn.host.runs:
                reading.take_back(turn)
            else:
                poll.register(reading.fileno(), select.POLLIN)
                turns[reading.fileno()] = reading, turn
        for fd, _ in poll.poll(0) if turns else ():
            reading, turn = turns[fd]
            if before.get(turn) == turn.count:
                turn.late()
                reading.take_back(turn)
            else:
                self._late[turn] = turn.count


class Turn:
    """The right of one thread to read, until it gives it back, or is found not to use it. With a `host`, the
    right of that loop: it keeps it until anybody else wants to read."""

    __slots__ = ("busy", "count", "host")

    def __init__(self, busy: bool = False, host: Host | None = None) -> None:
        self.busy = busy  #: between `claim` and `skip`: not to be taken away
        self.count = 0  #: frames that were dealt with
        self.host = host

    def late(self) -> None:
        """It is going to be taken back, as it is not used."""


_LOOPS = Turn(busy=True)


def _nothing() -> None:
    """There is nothing to be read any more."""


class Reading:
    """The receiving side of a connection, for its loop or for one thread at a time.

    Signal handlers run in the middle of everything that the main thread does, and may use the connection, or
    raise: so what a thread does while it holds the lock here contains no calls, after which they would run.
    """

    __slots__ = (
        "_closed",
        "_decoder",
        "_fd",
        "_lock",
        "_on_readable",
        "_readers",
        "_sock",
        "_watched",
        "turn",
    )

    def __init__(
        self, readers: Readers, sock: socket.socket, decoder: Decoder, on_readable: Callable[[], None]
    ) -> None:
        self._readers = readers
        self._sock = sock
        self._fd = sock.fileno()
        self._decoder = decoder
        self._on_readable = on_readable
        self._lock = threading.Lock()
        self.turn: Turn | None = None  #: whose it is; None: nobody's, so the loop may
        self._watched = False
        self._closed = False

    # ---- loop ----------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Loop: read (again)."""
        with self._lock:
            self._watched = True
            self._readers.add(self._fd, self)
            if self.turn is not None:
                self._readers.pause(self._fd, self)

    def unwatch(self) -> None:
        """Loop: read no more. (A thread that is at it may. So may a host, for the frame that it is at.)"""
        self._watched = False
        self._readers.remove(self._fd)
        self.recall()

    def on_ready(self) -> None:
        """There is something to read."""
        with self._lock:
            if self.turn is not None:
                self._readers.pause(self._fd, self)  # taken over just now
                return
            self.turn = _LOOPS
        try:
            self._on_readable()
        finally:
            self.turn = None
            if self._closed:
                self._sock.close()

    def close(self) -> None:
        """Loop: close the socket; if a thread reads, it does so when it gives back, which is soon."""
        with self._lock:
            self._closed = True
            turn = self.turn
            free = turn is None or (turn.host is not None and not turn.busy)
            if free:
                self.turn = None
        self._on_readable = _nothing  # the connection: it has this, and they would keep each other
        if free:
            if turn is not None:
                self._leave(turn)
            self._sock.close()
        else:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    # ---- any thread ----------------------------------------------------------------------------------

    def take(self, turn: Turn) -> bool:
        """Any thread: the reading is its own now, to be given back soon (or kept, with a host); False when it
        cannot have it. What a host has can be had, unless that is in the middle of a frame."""
        decoder = self._decoder
        if not decoder.whole:
            return False
        with self._lock:
            before = self.turn
            if self._watched and (before is None or (before.host is not None and not before.busy)):
                self.turn = turn
        if self.turn is not turn:
            return False
        if before is None:
            self._readers.pause(self._fd, self)
            if self._is_nobodys():  # taken away and given back before it was paused
                self._readers.resume(self._fd, self)
                return False
        else:
            self._leave(before)
        if turn.host is not None and not turn.host.add(self._fd, turn):
            self.give_back(turn)
            return False
        if self._decoder.whole:  # (still)
            return True
        self.give_back(turn)
        return False

    def _is_nobodys(self) -> bool:
        return self.turn is None

    def take_back(self, turn: Turn) -> None:
        """Any thread: end a turn that is not used, or a host's."""
        with self._lock:
            mine = self.turn is turn and not turn.busy
            if mine:
                self.turn = None
        if mine:
            self._leave(turn)
            self._readers.resume(self._fd, self)

    def recall(self) -> bool:
        """Any thread: if a host reads, which is True, the loop does so from now on."""
        turn = self.turn
        if turn is None or turn.host is None:
            return False
        self.take_back(turn)
        return True

    def _leave(self, turn: Turn) -> None:
        """A turn is over: its host looks at this no more, unless it has just begun another."""
        host = turn.host
        if host is not None:
            host.remove(self._fd, turn)
            now = self.turn
            if now is not None and now.host is host:
                host.add(self._fd, now)

    def fileno(self) -> int:
        """What a thread with a turn may wait for. Nothing else may be done with it."""
        return self._fd

    def peek(self) -> bytes:
        """What has come, as far as it is of interest; empty at the end of the connection. OSError as of
        `socket.recv`."""
        return self._sock.recv(limits.DIRECT_FRAME, socket.MSG_PEEK)

    def claim(self, turn: Turn) -> bool:
        """What was seen may be dealt with now: it will be nobody else's. False when the turn is over."""
        with self._lock:
            mine = self.turn is turn
            turn.busy = mine
        return mine

    def skip(self, turn: Turn, size: int) -> None:
        """So many bytes have been dealt with, after `claim`."""
        try:
            self._sock.recv(size)
        except OSError:  # the loop meets that, too
            pass
        turn.count += 1
        turn.busy = False
        if turn.host is not None and (self._closed or not self._watched):  # since `claim`
            self.give_back(turn)

    def give_back(self, turn: Turn) -> None:
        """The end of the turn: from now on the loop reads. (Again, or without a turn, is no harm.)"""
        turn.busy = False
        with self._lock:
            if self.turn is turn:
                self.turn = None
            free = self.turn is None
        self._leave(turn)
        if free:
            self._readers.resume(self._fd, self)
            if self._closed:
                self._sock.close()


class Parking:
    """Where one thread waits for a descriptor, and may be woken by any other, by calling this."""

    __slots__ = ("_bell", "_close", "_event", "_fd", "_poll", "busy")

    def __init__(self) -> None:
        self._close = os.close  # (still there when the interpreter ends)
        if hasattr(os, "eventfd"):
            self._event = self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._event, self._bell = os.pipe()
            os.set_blocking(self._event, False)
            os.set_blocking(self._bell, False)
        self._watch(-1)
        self.busy = False  #: in use, by the code that a signal handler or destructor has interrupted

    def _watch(self, fd: int) -> None:
        poll = select.poll()
        poll.register(self._event, select.POLLIN)
        if fd >= 0:
            poll.register(fd, select.POLLIN)
        self._poll, self._fd = poll, fd

    def __call__(self, _: object = None) -> None:
        """Any thread: end the waiting, or the next one."""
        with contextlib.suppress(BlockingIOError):  # full: it has been woken
            os.write(self._bell, _ONE)

    def look(self, fd: int, nanoseconds: int) -> None:
        """What `wait` would return for may come at once: look for it so long. Others go first: where they
        want this core (it may be what is waited for), this costs a system call."""
        if fd != self._fd:
            self._watch(fd)
        poll, now, give_way = self._poll.poll, time.monotonic_ns, os.sched_yield
        end = now() + nanoseconds
        while not poll(0) and now() < end:
            give_way()

    def wait(self, fd: int, timeout: float | None) -> bool:
        """Until `fd` (-1: none) is readable, which is True, or somebody calls, or `timeout` seconds are
        over."""
        if fd != self._fd:
            self._watch(fd)
        readable = False
        for ready, _ in self._poll.poll(None if timeout is None else min(timeout, _LONG) * 1000):
            if ready == fd:
                readable = True
            else:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._event, 64)
        return readable

    def __del__(self) -> None:
        for fd in {self._event, self._bell}:
            self._close(fd)


class _Parkings(threading.local):
    mine: Parking | None = None


_parkings = _Parkings()


def parking() -> Parking:
    """The calling thread's."""
    mine = _parkings.mine
    if mine is None:
        mine = _parkings.mine = Parking()
    return mine


def _forked() -> None:
    _parkings.mine = None  # it is the parent's, who would be woken


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
