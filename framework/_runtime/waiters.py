"""Waiting for objects: threads, asyncio futures, plain callbacks. All are callables that get the entry that
is done.

Protocol: register first, then look at the state (see `Entry`). A waiter may therefore be called by the
runtime's loop and by the thread that registered it, for the same entry: every one here is idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from framework._service.blocking import acquire
from framework._service.mailbox import Mailbox
from framework._state.objects import FAILED, Entry

T = TypeVar("T")

_registration = threading.Lock()
_AT_ONCE = 1_000  #: registrations for which that is held


def register(entry: Entry, waiter: Callable[[Entry], object]) -> None:
    """Have `waiter(entry)` called when the object is done; at once, in this thread, when it is already."""
    with _registration:
        _add(entry, waiter)
    if entry.state:
        unregister(entry, waiter)  # left there, it would be kept, with all that it refers to, for nothing
        waiter(entry)


def _add(entry: Entry, waiter: Callable[[Entry], object]) -> None:
    waiters = entry.waiters
    if waiters is None:
        entry.waiters = [waiter]
    elif isinstance(waiters, tuple):
        entry.waiters = [*waiters, waiter]
    else:
        waiters.append(waiter)


def register_all(entries: list[Entry], waiter: ThreadWaiter) -> None:
    """As `register`, for many. (Most of them have this waiter alone: they share the tuple that says so.)"""
    alone = (waiter,)
    for start in range(0, len(entries), _AT_ONCE):
        some = entries[start : start + _AT_ONCE]
        with _registration:
            for entry in some:
                if entry.waiters is None:
                    entry.waiters = alone
                else:
                    _add(entry, waiter)
        for entry in some:
            if entry.state:
                unregister(entry, waiter)
                waiter(entry)


def unregister(entry: Entry, waiter: Callable[[Entry], object]) -> None:
    """Forget a waiter that has given up."""
    with _registration:
        waiters = entry.waiters
        if waiters is not None and waiter in waiters:
            if isinstance(waiters, tuple):
                entry.waiters = None
            else:
                waiters.remove(waiter)


class ThreadWaiter:
    """A thread waits until `needed` of some objects are done (or, if `eager`, until one has failed)."""

    __slots__ = ("_eager", "_lock", "_remaining", "_stop_at")

    def __init__(self, entries: Iterable[Entry], needed: int, eager: bool) -> None:
        self._remaining = set(entries)
        self._stop_at = len(self._remaining) - needed
        self._eager = eager
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self, entry: Entry) -> None:
        remaining = self._remaining
        remaining.discard(entry)
        if len(remaining) <= self._stop_at or (self._eager and entry.state == FAILED):
            self.wake()

    def have_values(self, entries: list[Entry]) -> None:
        """As a call for each of these, none of which has failed."""
        remaining = self._remaining
        remaining.difference_update(entries)
        if len(remaining) <= self._stop_at:
            self.wake()

    def wake(self) -> None:
        """End the waiting, from any thread."""
        with contextlib.suppress(RuntimeError):  # woken before
            self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """Wait; False when the time ran out. Signals are handled meanwhile, in the main thread."""
        return acquire(self._lock, timeout)


class WaitSet:
    """A thread waits until some of many objects are done, again and again, for fewer and fewer of them: the
    loop around `wait`. It stays registered with those that are left, so that the next turn registers with new
    ones only. It does not refer to any of them between two turns.

    One thread uses it at a time; anyone may call it.
    """

    __slots__ = ("_lock", "_remaining", "_stop_at", "busy")

    def __init__(self) -> None:
        self.busy = False  #: in use, by the code that a signal handler or destructor has interrupted
        self._remaining: set[Entry] = set()
        self._stop_at = -1
        self._lock = threading.Lock()

    def __call__(self, entry: Entry) -> None:
        remaining = self._remaining
        remaining.discard(entry)
        if len(remaining) <= self._stop_at:
            with contextlib.suppress(RuntimeError):  # woken before
                self._lock.release()

    def wait_for(self, entries: list[Entry], needed: int, timeout: float | None) -> bool:
        """Wait until `needed` of them are done; False when the time ran out."""
        remaining = set(entries)
        self._lock.acquire(False)  # a late waking of the last turn, if there was one
        self._stop_at = len(remaining) - needed
        self._remaining = remaining
        done = False
        try:
            for entry in entries:
                waiters = entry.waiters
                if waiters is None or self not in waiters:
                    register(entry, self)
                elif entry.state:  # since before the lines above
                    self(entry)
            end = None if timeout is None else time.monotonic() + timeout
            while not done:
                woken = acquire(self._lock, None if end is None else end - time.monotonic())
                # Whoever woke us may have been on its way since the last turn.
                done = len(remaining) <= self._stop_at
                if not woken:
                    break
            return done
        finally:
            self._stop_at = -1
            self._remaining = set()
            if not done or self is not _wait_sets.mine:
                for entry in entries:
                    if not entry.state:
                        unregister(entry, self)


class _WaitSets(threading.local):
    def __init__(self) -> None:
        self.mine = WaitSet()


_wait_sets = _WaitSets()


@contextlib.contextmanager
def wait_set() -> Iterator[WaitSet]:
    """This thread's; another one when it is in use."""
    found = _wait_sets.mine
    if found.busy:
        found = WaitSet()
    found.busy = True
    try:
        yield found
    finally:
        found.busy = False


def first_done(entries: Sequence[Entry], count: int) -> list[int]:
    """The positions of the first `count` that are done, or of all such if there are fewer."""
    found = []
    for position, entry in enumerate(entries):
        if entry.state:
            found.append(position)
            if len(found) == count:
                break
    return found


def without(items: Sequence[T], positions: Sequence[int]) -> list[T]:
    """A list of all but those at these positions, which ascend."""
    if len(positions) == 1:
        rest = list(items)
        del rest[positions[0]]
        return rest
    rest = []
    start = 0
    for position in positions:
        rest += items[start:position]
        start = position + 1
    rest += items[start:]
    return rest


class FutureWaiter:
    """An asyncio future of some loop gets the result None when the object is done."""

    __slots__ = ("future", "mailbox")

    def __init__(self, mailbox: Mailbox, future: asyncio.Future[None]) -> None:
        self.mailbox = mailbox
        self.future = future

    def __call__(self, entry: Entry) -> None:
        self.mailbox.post(_finish, self.future)


def finish_here(entry: Entry) -> None:
    """An object is done: tell those at once who await it on the loop that runs in this thread."""
    waiters = entry.waiters
    if waiters:
        mailbox = _mailboxes.mailbox
        # Told first, forgotten second: whoever is interrupted in between has lost nobody.
        for waiter in list(waiters):
            if type(waiter) is FutureWaiter and waiter.mailbox is mailbox:
                if not waiter.future.done():
                    waiter.future.set_result(None)
                unregister(entry, waiter)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Mailboxes(threading.local):
    """The mailbox of the loop that runs in this thread: a loop runs in one thread at a time."""

    loop: asyncio.AbstractEventLoop | None = None
    mailbox: Mailbox | None = None


_mailboxes = _Mailboxes()


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """The mailbox of the running loop of this thread."""
    mailbox = _mailboxes.mailbox
    if mailbox is None or _mailboxes.loop is not loop:
        mailbox = Mailbox(loop)
        _mailboxes.loop, _mailboxes.mailbox = loop, mailbox
    elif mailbox.awake:
        mailbox.look_after()
    return mailbox
