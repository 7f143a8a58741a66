"""Waiting for objects: threads, asyncio futures, plain callbacks. All are callables that get the entry that
is done.

Protocol: register first, then look at the state (see `Entry`). A waiter may therefore be called by the
runtime's loop and by the thread that registered it, for the same entry: every one here is idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable

from framework._service.mailbox import Mailbox
from framework._state.objects import FAILED, Entry

_registration = threading.Lock()


def register(entry: Entry, waiter: Callable[[Entry], object]) -> None:
    """Have `waiter(entry)` called when the object is done; at once, in this thread, when it is already."""
    with _registration:
        if entry.waiters is None:
            entry.waiters = [waiter]
        else:
            entry.waiters.append(waiter)
    if entry.state:
        waiter(entry)


def unregister(entry: Entry, waiter: Callable[[Entry], object]) -> None:
    """Forget a waiter that has given up."""
    with _registration:
        if entry.waiters is not None:
            with contextlib.suppress(ValueError):
                entry.waiters.remove(waiter)


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

    def wake(self) -> None:
        """End the waiting, from any thread."""
        with contextlib.suppress(RuntimeError):  # woken before
            self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """Wait; False when the time ran out. Signals are handled meanwhile, in the main thread."""
        if timeout is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))


class FutureWaiter:
    """An asyncio future of some loop gets the result None when the object is done."""

    __slots__ = ("_future", "_mailbox")

    def __init__(self, mailbox: Mailbox, future: asyncio.Future[None]) -> None:
        self._mailbox = mailbox
        self._future = future

    def __call__(self, entry: Entry) -> None:
        self._mailbox.post(_finish, self._future)


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
    return mailbox
