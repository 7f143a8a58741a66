"""The owner's side of a streaming generator: items that have arrived, those taken, and credits.

Credits bound how far the producer runs ahead: it may have made `window` items more than were taken. Each item taken gives
one credit back; credits are returned in lots of half a window, so that a fast consumer does not send a frame per item.
"""

from __future__ import annotations

from collections import deque
from typing import Any


class StreamState:
    """One stream. `items` holds references of items that nobody has taken yet."""

    __slots__ = ("arrived", "closed", "finished", "items", "owed", "waiters", "window")

    def __init__(self, window: int) -> None:
        self.window = window  #: -1: unbounded
        self.items: deque[Any] = deque()
        self.arrived = 0  #: items received so far, over all attempts of the task
        self.finished = False  #: no more will come
        self.closed = False  #: the consumer wants no more
        self.owed = 0  #: credits taken but not yet returned to the producer
        self.waiters: list[Any] = []

    def add(self, index: int, item: Any) -> bool:
        """Item number `index` (from 0) has arrived. False when it is a repetition by a second attempt, or unwanted."""
        if self.closed or index < self.arrived:
            return False
        self.arrived = index + 1
        self.items.append(item)
        return True

    def take(self) -> Any | None:
        """The next item, or None when there is none (yet: see `finished`)."""
        if not self.items:
            return None
        self.owed += 1
        return self.items.popleft()

    def credits_due(self) -> int:
        """Credits to return to the producer now (0: not worth a frame yet)."""
        if self.window < 0 or self.finished or self.closed:
            return 0
        if self.owed * 2 >= self.window:
            owed, self.owed = self.owed, 0
            return owed
        return 0
