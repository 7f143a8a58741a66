"""Memory for the store, provided ahead of its use.

A page of the arena costs most when it is first touched: the system has to find and clear it (about 1 GB/s;
copying into pages that exist runs at 6 GB/s and more on the same machine). While a store grows, a thread of
the node therefore provides what will be used next. A store that is not used takes nothing, one that stops
growing keeps a bounded reserve and costs no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from framework._base import limits
from framework._node.memory import memory_use
from framework._store.arena import Arena


def reserve(high: int, free: int) -> int:
    """How many bytes beyond `high`, the end of what has been used, are to be ready: as many as have been
    used, within bounds, and a small part of what is free on the machine."""
    return max(0, min(high, limits.STORE_WARM_RESERVE, free // limits.STORE_WARM_FREE_PART))


def free_memory() -> int:
    """Bytes that are not in use on this machine, or in this control group."""
    used, total = memory_use()
    return total - used


def _stand_back() -> None:
    """This thread runs when nobody else wants to. (On Linux a priority is that of one thread.)"""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), limits.STORE_WARM_NICENESS)


class Warmer:
    """Lives on the node's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        capacity: int,
        arena: Callable[[], Arena],
        free: Callable[[], int] = free_memory,
    ) -> None:
        self._loop = loop
        self._capacity = capacity
        self._arena = arena
        self._free = free
        self._thread: ThreadPoolExecutor | None = None
        self._busy = False
        self._closed = False
        self._high = 0
        self._target = 0
        self.ready = 0  #: below this offset there is memory
        self._held = False

    def hold(self) -> None:
        """Provide nothing for now: what is being done needs the machine more (first use of memory, by several
        nodes of one machine even, while they receive objects, took three times as long with this)."""
        self._held = True

    def resume(self) -> None:
        """Go on."""
        if self._held:
            self._held = False
            self.used(self._high)

    def used(self, high: int) -> None:
        """The store uses memory up to `high` now."""
        self._high = high
        self.ready = max(self.ready, high)
        # Not each time that a little is taken: what is ready lasts until half of it is gone.
        if (
            self._held
            or self._busy
            or self._closed
            or 2 * (self.ready - high) > min(high, limits.STORE_WARM_RESERVE)
        ):
            return
        if self.ready < self._capacity:
            self._target = min(self._capacity, high + reserve(high, self._free()))
            self._next()

    def _next(self) -> None:
        if self._closed or self._held or self.ready >= self._target:
            self._busy = False
            return
        self._busy = True
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "warming", initializer=_stand_back)
        start = self.ready
        size = min(limits.STORE_WARM_STEP, self._target - start)
        future = self._loop.run_in_executor(self._thread, self._arena().populate, start, size)

        def done(future: asyncio.Future[bool]) -> None:
            if self._closed or future.cancelled():
                return
            if future.exception() is not None or not future.result():
                self._busy = self._closed = True  # the system does not do this, or has no memory to give
                return
            self.ready = max(self.ready, start + size)
            self._next()

        future.add_done_callback(done)

    def close(self) -> None:
        """Stop; a step that is under way ends in a moment."""
        self._closed = True
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
