"""Watches the machine's memory while workers run something, and ends one of them before the system's killer
comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from framework._base import limits
from framework._node.memory import memory_use, private_memory
from framework._state.memory import Candidate, choose, describe

log = logging.getLogger("framework.memory")


class MemoryMonitor:
    """A timer that runs only while `candidates()` has something to say: an idle node costs nothing.

    `candidates(rss)` lists the workers that run something, with `rss(pid)` to measure them; `end(worker_id,
    text)` ends one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threshold: float,
        candidates: Callable[[Callable[[int], int]], list[Candidate]],
        end: Callable[[bytes, str], None],
    ) -> None:
        self._loop = loop
        self._threshold = threshold
        self._candidates = candidates
        self._end = end
        self._timer: asyncio.TimerHandle | None = None
        self._wait_until = 0.0

    def wake(self) -> None:
        """A worker has got work: watch until all are idle again."""
        if self._timer is None and self._threshold < 1.0:
            self._timer = self._loop.call_later(limits.MEMORY_POLL, self._look)

    def ended(self) -> None:
        """The process that was ended is gone, and its memory is back: another one may be ended as soon as
        that turns out not to have been enough."""
        self._wait_until = 0.0

    def stop(self) -> None:
        """No more looking."""
        if self._timer is not None:
            self._timer.cancel()
        self._threshold = 1.0

    def _look(self) -> None:
        self._timer = None
        used, total = memory_use()
        if total == 0:
            return
        if used > total * self._threshold and self._loop.time() >= self._wait_until:
            candidates = self._candidates(private_memory)
            victim = choose(candidates, limits.MEMORY_VICTIM_FLOOR)
            if victim is not None:
                text = describe(victim, candidates, used, total, self._threshold)
                log.error("%s", text)
                # Its memory comes back in a moment: no second one before that (see `ended`).
                self._wait_until = self._loop.time() + limits.MEMORY_RECOVERY
                self._end(victim.worker_id, text)
        elif not self._candidates(lambda _: 0):
            return
        self.wake()
