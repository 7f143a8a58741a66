"""The actor behind a `Queue`. All of it runs on one event loop, so a step between two awaits is atomic."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import framework as fw
from framework._base import limits
from framework.exceptions import ActorDiedError

Taken = tuple[int, Any]
"""An item with its number: items are numbered in the order in which they came in."""

_GETTERS, _PUTTERS, _ATTENDING = "queue_get", "queue_put", "queue_attend"


class _Waiter:
    """A call that waits: its outcome is set once, by whoever comes first: an item or room, the end of its
    time, its caller's giving up."""

    __slots__ = ("future", "item", "timer")

    def __init__(self, item: Any = None) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.item = item
        self.timer: asyncio.TimerHandle | None = None

    def settle(self, outcome: Any) -> bool:
        """False when the call was cancelled just now, and does not know it yet."""
        if self.timer is not None:
            self.timer.cancel()
        if self.future.done():
            return False
        self.future.set_result(outcome)
        return True


_Waiters = OrderedDict[str, _Waiter]


class QueueActor:
    """Items, and the calls that wait for one or for room. There are never both items and waiting getters, nor
    both room and waiting putters.

    Blocking calls have concurrency groups of their own: however many there are, they keep nobody else out.
    """

    def __init__(self, maxsize: int = 0) -> None:
        self._maxsize = maxsize
        self._items: deque[Taken] = deque()
        self._next = 0
        self._getters: _Waiters = OrderedDict()
        self._putters: _Waiters = OrderedDict()
        self._attending: set[str] = set()  #: handles that are watched over

    @staticmethod
    def concurrency_groups() -> dict[str, int]:
        """What the actor has to be created with."""
        return dict.fromkeys((_GETTERS, _PUTTERS, _ATTENDING), limits.QUEUE_WAITING)

    async def qsize(self) -> int:
        return len(self._items)

    # ---- in ------------------------------------------------------------------------------------------

    @fw.method(concurrency_group=_PUTTERS)
    async def put(self, token: str, item: Any, timeout: float | None = None) -> bool:
        """Whether it was put before the time was up or the call abandoned."""
        if not self._putters and self._room():
            self._append(item)
            return True
        return bool(await self._wait(self._putters, token, _Waiter(item), timeout, False, None))

    async def put_now(self, item: Any) -> bool:
        if self._putters or not self._room():
            return False
        self._append(item)
        return True

    async def put_batch(self, items: list[Any]) -> int | None:
        """None; or the size of the queue, when they do not all fit."""
        if self._maxsize > 0 and len(self._items) + len(items) > self._maxsize:
            return len(self._items)
        for item in items:
            self._append(item)
        return None

    async def put_back(self, taken: list[Taken]) -> None:
        """Items that did not reach anybody: they are the next ones again."""
        for item in taken:
            self._restore(item)

    def _room(self) -> bool:
        return self._maxsize <= 0 or len(self._items) < self._maxsize

    def _append(self, item: Any) -> None:
        numbered = (self._next, item)
        self._next += 1
        if not self._hand_over(numbered):
            self._items.append(numbered)

    def _hand_over(self, taken: Taken) -> bool:
        """Whether there was somebody who waits for it."""
        while self._getters:
            if self._getters.popitem(last=False)[1].settle(taken):
                return True
        return False

    def _restore(self, taken: Taken) -> None:
        if self._hand_over(taken):
            return
        place = 0
        while place < len(self._items) and self._items[place][0] < taken[0]:
            place += 1
        self._items.insert(place, taken)

    # ---- out -----------------------------------------------------------------------------------------

    @fw.method(concurrency_group=_GETTERS)
    async def get(self, token: str, timeout: float | None = None) -> Taken | None:
        """An item; None when the time was up or the call was abandoned before there was one."""
        if self._items:
            return self._pop()
        taken: Taken | None = await self._wait(self._getters, token, _Waiter(), timeout, None, self._restore)
        return taken

    async def get_now(self) -> Taken | None:
        return self._pop() if self._items else None

    async def get_batch(self, count: int) -> list[Taken] | int:
        """The items; or the size of the queue, when there are fewer."""
        if count > len(self._items):
            return len(self._items)
        return [self._pop() for _ in range(count)]

    def _pop(self) -> Taken:
        taken = self._items.popleft()
        while self._putters and self._room():
            putter = self._putters.popitem(last=False)[1]
            if putter.settle(True):
                self._append(putter.item)
        return taken

    # ---- waiting -------------------------------------------------------------------------------------

    async def _wait(
        self,
        waiters: _Waiters,
        token: str,
        waiter: _Waiter,
        timeout: float | None,
        late: Any,
        undo: Callable[[Any], None] | None,
    ) -> Any:
        """Its outcome, or `late`. `undo`: what becomes of an outcome that this call has got but cannot
        return, because it was cancelled in between."""
        if timeout is not None:
            if timeout <= 0:
                return late
            loop = asyncio.get_running_loop()
            waiter.timer = loop.call_later(timeout, self._end, waiters, token, late)
        waiters[token] = waiter
        try:
            return await waiter.future
        except asyncio.CancelledError:
            waiters.pop(token, None)
            future = waiter.future
            if undo is not None and future.done() and not future.cancelled():
                if future.exception() is None and future.result() is not None:
                    undo(future.result())
            raise
        finally:
            if waiter.timer is not None:
                waiter.timer.cancel()

    def _end(self, waiters: _Waiters, token: str, outcome: Any) -> None:
        waiter = waiters.pop(token, None)
        if waiter is not None:
            waiter.settle(outcome)

    async def abandon(self, token: str) -> None:
        """The caller of a blocking call has gone. (If it is served already, this comes too late.)"""
        self._end(self._getters, token, None)
        self._end(self._putters, token, False)

    @fw.method(concurrency_group=_ATTENDING, generator_window=1)
    async def attend(self, holder: str) -> AsyncIterator[None]:
        """A stream whose consumer takes nothing from it. It ends when the consumer does, with its process or
        otherwise, and with it what that still waits for."""
        self._attending.add(holder)
        try:
            while True:
                yield None
        finally:
            self._attending.discard(holder)
            for waiters, outcome in ((self._getters, None), (self._putters, False)):
                for token in [token for token in waiters if token.startswith(holder)]:
                    self._end(waiters, token, outcome)

    async def close(self) -> None:
        """Whoever waits fails."""
        for waiters in (self._getters, self._putters):
            while waiters:
                waiter = waiters.popitem(last=False)[1]
                if not waiter.future.done():
                    waiter.future.set_exception(ActorDiedError("the queue was shut down"))
