"""The producer of a stream: runs a generator, sends its items, stays within its credits, stops when told."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection
from framework._state.streams import Credits
from framework._state.tasks import DYNAMIC
from framework._worker.items import Items
from framework._worker.templates import ExecTemplate

if TYPE_CHECKING:
    from framework._worker.executor import Executor


class Producer:
    """One running generator task. `credit` and `close` are called from the runtime's loop, the rest where it
    runs."""

    __slots__ = (
        "_ahead",
        "_async_wake",
        "_call",
        "_closed",
        "_connection",
        "_credits",
        "_executor",
        "_index",
        "_items",
        "_loop",
        "_only",
        "_template",
        "_unique",
        "_wake",
    )

    def __init__(
        self,
        executor: Executor,
        connection: Connection,
        template: ExecTemplate,
        unique: int,
        extra: dict[str, Any] | None,
        call: Callable[[int, Any, list[Any], dict[str, Any]], Any],
    ) -> None:
        given = extra or {}
        window = given.get("window", -1)
        self._executor = executor
        self._call = call  #: how user code is called where this runs: it may be interrupted there
        self._connection = connection
        self._template = template
        self._unique = unique
        self._credits = Credits(window, given.get("burst", 0)) if window >= 0 else None
        #: items that the generator's thread may make before it asks for more: only it looks at them
        self._ahead = sys.maxsize if window < 0 else 0
        self._index = 0
        self._items = Items(executor, connection, template, unique)
        #: where lost items are made again: which ones; it ends after the last of them
        self._only: set[int] | None = set(extra["only"]) if extra and "only" in extra else None
        self._closed = self._only == set()
        self._wake = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._async_wake: asyncio.Event | None = None

    def __enter__(self) -> Producer:
        """While it runs, its owner reaches it under the number of its task."""
        self._executor.producers[self._unique] = self
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.producers.pop(self._unique, None)

    def flush(self) -> None:
        """Any thread: send the items that wait for company."""
        self._items.flush()

    def credit(self, credits: int) -> None:
        """The consumer has taken items."""
        with self._wake:
            if self._credits is not None:
                self._credits.grant(credits)
            self._notify()

    def _drained(self) -> None:
        with self._wake:
            self._notify()

    def lost(self, connection: Connection) -> None:
        """A connection has ended: nobody will ever take these items, if it was the one to our consumer."""
        if connection is self._connection:
            self.close()

    def close(self) -> None:
        """The consumer wants no more."""
        with self._wake:
            self._closed = True
            self._notify()

    def _is_closed(self) -> bool:
        """As `_closed`, which type checkers think cannot change within a loop."""
        return self._closed

    def _notify(self) -> None:
        self._wake.notify_all()
        if self._loop is not None and self._async_wake is not None:
            self._loop.call_soon_threadsafe(self._async_wake.set)

    def _spend(self) -> bool:
        """With the lock: take all credits, if there are some and the consumer's process takes what it is
        sent."""
        if self._connection.full:
            self._connection.when_drained(self._drained)
            return False
        if self._ahead <= 0 and self._credits is not None:
            self._ahead = self._credits.take(time.monotonic_ns(), self._items.small)
            self._items.small = True
        if self._ahead <= 0:
            return False
        self._ahead -= 1
        return True

    def run(self, iterable: Iterator[Any]) -> int:
        """A plain generator; returns the number of its items."""
        unique = self._unique
        try:
            iterator = iter(iterable)
        except TypeError:
            raise self._not_iterable(iterable) from None
        done = object()
        call, arguments = self._call, [iterator, done]
        nothing: dict[str, Any] = {}
        connection = self._connection
        add = self._items.add if self._only is None else self._add_wanted
        try:
            while not self._closed:
                if self._ahead > 0 and not connection.full:
                    self._ahead -= 1
                elif not self._allowed():
                    break
                item = call(unique, next, arguments, nothing)
                if item is done or self._closed:
                    break
                add(self._index, item)
                self._index += 1
                del item
        finally:
            self._items.flush()
            close = getattr(iterator, "close", None)
            if close is not None:
                self._call(unique, close, [], {})
        return self._index

    def _not_iterable(self, result: object) -> TypeError:
        kind = "dynamic" if self._template.returns == DYNAMIC else "streaming"
        return TypeError(
            f'{self._template.name}() has num_returns="{kind}", so it must be a generator function or return '
            f"an iterable; it returned {type(result).__name__}"
        )

    def _allowed(self) -> bool:
        """Wait for a credit before the next item is made; False when the stream was closed."""
        with self._wake:
            if self._spend():
                return True
        self._items.flush()
        with self._wake:
            if self._is_closed():
                return False
            if self._spend():
                return True
            # (A consumer that keeps up has more by then, and the CPUs need not go to and fro for each lot.)
            self._call(self._unique, self._wake.wait, [limits.LEND_AFTER], {})
            if self._spend():
                return True
        # It waits for its consumer, who may need the CPUs of this worker.
        with self._executor.runtime.waiting.blocked(), self._wake:
            while not self._closed:
                if self._spend():
                    return True
                self._call(self._unique, self._wake.wait, [], {})
        return False

    def _add_wanted(self, index: int, item: Any) -> None:
        """Where lost items are made again."""
        only = self._only
        if only and index in only:
            self._items.alone(index, item)
            only.discard(index)
            self._closed = self._closed or not only

    async def run_async(self, iterable: AsyncIterator[Any]) -> int:
        """An async generator; returns the number of its items."""
        self._loop = asyncio.get_running_loop()
        self._async_wake = asyncio.Event()
        iterator = aiter(iterable)
        add = self._items.add if self._only is None else self._add_wanted
        try:
            while not self._closed:
                if self._ahead > 0 and not self._connection.full:
                    self._ahead -= 1
                elif not await self._allowed_async():
                    break
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    break
                if self._is_closed():  # in the meantime
                    break
                add(self._index, item)
                self._index += 1
                del item
        finally:
            self._items.flush()
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
        return self._index

    async def _allowed_async(self) -> bool:
        assert self._async_wake is not None
        while True:
            with self._wake:
                if self._closed:
                    return False
                if self._spend():
                    return True
                self._async_wake.clear()
            self._items.flush()
            with self._executor.runtime.waiting.blocked():
                await self._async_wake.wait()
