"""Waiting for objects: in threads, on any loop, and by callback."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from framework._base import limits
from framework._runtime.context import TaskContext, current_task
from framework._runtime.current import fork_count
from framework._runtime.waiters import (
    FutureWaiter,
    ThreadWaiter,
    mailbox_of,
    register,
    register_all,
    unregister,
    wait_set,
)
from framework._state.objects import Entry
from framework.exceptions import ForkedProcessError, GetTimeoutError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


def _parent_waits(runtime: Runtime, pending: list[Entry], context: TaskContext | None, host: object) -> None:
    runtime.groups.parent_waits(pending, context, host)


class Waiting:
    """How user code waits in this process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._forks = fork_count()
        #: what was left of the last `wait`, each once: a loop around it comes with these again. Forgotten by
        #: the runtime's tick: entries of objects that are gone are not to be kept.
        self.distinct: list[Entry] = []
        self._warned_blocking: set[tuple[str, int]] = set()
        self._callbacks: concurrent.futures.ThreadPoolExecutor | None = None

    def wait(self, entries: list[Entry], needed: int, timeout: float | None, eager: bool, what: str) -> bool:
        """Any thread but the loop's: block until `needed` of them are done; False when the time ran out. With
        `eager`, one failure is enough."""
        pending = [entry for entry in entries if not entry.state]
        needed -= len(entries) - len(pending)
        if needed <= 0:
            return True
        if self._runtime.direct.hosting:
            for entry in pending:
                self._runtime.direct.leave(entry)
        if timeout is not None and timeout <= 0:
            self.ask_for(pending)
            return False
        self._check_thread(what)
        self.ask_for(pending)
        if self._runtime.captures:
            self._parent_waits(pending)
        if not eager:
            with wait_set() as several, self.blocked():
                return several.wait_for(pending, needed, timeout)
        waiter = ThreadWaiter(pending, needed, eager)
        register_all(pending, waiter)
        try:
            with self.blocked():
                return waiter.wait(timeout)
        finally:
            for entry in pending:
                if not entry.state:
                    unregister(entry, waiter)

    def ask_for(self, pending: list[Entry]) -> None:
        """Any thread: somebody is going to wait for these."""
        borrowed = [entry for entry in pending if entry.owner is not None and not entry.fetching]
        if borrowed:
            self._runtime.post(self._need_all, borrowed)

    def _parent_waits(self, pending: list[Entry]) -> None:
        """Any thread: code in a placement group waits. What it waits for may need what it has there."""
        runtime = self._runtime
        runtime.post(_parent_waits, runtime, pending, current_task.get(), runtime.actor_host)

    def _need_all(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._runtime.objects.need(entry)

    def _check_thread(self, what: str) -> None:
        if threading.current_thread() is self._runtime.thread:
            raise RuntimeError(
                f"{what}() was called on the runtime's own loop, for which it would wait forever"
            )
        if asyncio._get_running_loop() is not None:
            self.warn_blocking(what)

    def warn_blocking(self, what: str) -> None:
        """A blocking call inside a running event loop: say so once per line."""
        import sys

        frame = sys._getframe(1)
        here = os.path.dirname(os.path.dirname(__file__)) + os.sep
        while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
            frame = frame.f_back
        place = (frame.f_code.co_filename, frame.f_lineno)
        if place in self._warned_blocking or len(self._warned_blocking) >= limits.WARNED_LINES:
            return
        self._warned_blocking.add(place)
        form = {
            "get": "`await ref` (or `await asyncio.gather(*refs)`)",
            "wait": "`await asyncio.wait(refs)`",
            "next": "`async for ref in generator`",
        }
        warnings.warn_explicit(
            f"blocking {what}() inside a running event loop stops everything else on that loop, at "
            f"{place[0]}:{place[1]}; use "
            f"{form.get(what, 'the await form')} instead",
            RuntimeWarning,
            filename=place[0],
            lineno=place[1],
        )

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Any thread: the block waits for other tasks. A worker lends out its CPUs meanwhile."""
        hook = self._runtime.on_blocked
        if hook is None or not self._runtime.in_task():
            yield
            return
        hook()
        try:
            yield
        finally:
            if self._runtime.on_unblocked is not None:
                self._runtime.on_unblocked()

    def get(self, entries: list[Entry], timeout: float | None) -> None:
        """Any thread but the loop's: block until all are done, or one has failed."""
        if not self.wait(entries, len(entries), timeout, True, "get"):
            raise self._timed_out(entries, timeout)

    def get_one(self, entry: Entry, timeout: float | None) -> None:
        """As `get`, for one that is not done."""
        runtime = self._runtime
        if timeout is not None and timeout <= 0:
            self.get([entry], timeout)
        elif runtime.on_blocked is None or not runtime.in_task():
            self._get_one(entry, timeout)
        else:
            with self.blocked():
                self._get_one(entry, timeout)

    def _get_one(self, entry: Entry, timeout: float | None) -> None:
        self._check_thread("get")
        begun = time.monotonic()
        self._runtime.direct.wait(entry, timeout)
        if entry.state:
            return
        left = None if timeout is None else max(begun + timeout - time.monotonic(), 0.0)
        if not self.wait([entry], 1, left, True, "get"):
            raise self._timed_out([entry], timeout)

    def _timed_out(self, entries: list[Entry], timeout: float | None) -> GetTimeoutError:
        pending = [entry for entry in entries if not entry.state]
        return GetTimeoutError(
            f"get() timed out after {timeout} s: {len(pending)} of {len(entries)} objects are not ready "
            f"(first: {self.describe(pending[0]) if pending else 'none'})"
        )

    def describe(self, entry: Entry) -> str:
        """What is known of a pending object, for errors."""
        task = entry.task
        name = getattr(getattr(task, "template", None), "name", None)
        made_by = f" made by {name}()" if name else ""
        return f"ObjectRef({entry.id.hex()}){made_by}"

    async def wait_async(self, entry: Entry) -> None:
        """On any loop: until the object is done."""
        if entry.state:
            return
        waiter = self.begin(entry)
        try:
            if self._runtime.on_blocked is None:
                await waiter.future
            else:
                with self.blocked():
                    await waiter.future
        finally:
            if not entry.state:
                unregister(entry, waiter)

    def begin(self, entry: Entry) -> FutureWaiter:
        """On any loop: what comes before the waiting for an object that is not done. The future of what this
        returns is done when the object is; whoever gives up before that unregisters it."""
        if self._forks != fork_count():
            self._check_process()
        if entry.owner is not None and not entry.fetching:
            self._runtime.post(self._runtime.objects.need, entry)
        loop = asyncio.get_running_loop()
        if self._runtime.captures:
            self._parent_waits([entry])
        if entry.task is not None:
            self._runtime.direct.attend(entry, loop)
        waiter = FutureWaiter(mailbox_of(loop), loop.create_future())
        register(entry, waiter)
        return waiter

    def _check_process(self) -> None:
        """References work without asking for the current runtime, so they check for themselves."""
        if os.getpid() != self._runtime.pid:
            raise ForkedProcessError(
                f"this reference belongs to process {self._runtime.pid}, of which this one (pid "
                f"{os.getpid()}) is a fork: its connections cannot be used here. Get the values before the "
                "fork, or use remote tasks instead of os.fork"
            )

    def callback(self, entry: Entry, function: Callable[[], object]) -> None:
        """Any thread: call `function` in a thread for callbacks when the object is done."""
        if not entry.state:
            self._check_process()
        if self._callbacks is None:
            self._callbacks = concurrent.futures.ThreadPoolExecutor(
                1, thread_name_prefix="framework-callbacks"
            )
        pool = self._callbacks
        if entry.owner is not None:
            self._runtime.post(self._runtime.objects.need, entry)

        self._runtime.direct.leave(entry)

        def done(_: Entry) -> None:
            with contextlib.suppress(RuntimeError):
                pool.submit(function)

        register(entry, done)

    def close(self) -> None:
        """No more callbacks."""
        if self._callbacks is not None:
            self._callbacks.shutdown(wait=False)
