"""A stream as its consumer sees it: items that have arrived, those taken, and credits for the producer
(`StreamState`); and the producer's use of them (`Credits`).

Credits bound how far the producer runs ahead: it may have made `window` items more than were taken. Each item
taken gives one credit back; credits are returned in lots of half a window, so that a fast consumer does not
send a frame per item.

Where nobody has asked for a certain window, a producer whose items are small and come quickly may borrow: it
then runs up to `burst` items ahead, since a window that is made in less time than a credit takes to come back
would have both sides wait for each other most of the time.

Every attempt of a task begins anew, with the credits of its window: it makes the items again that were taken
from an earlier attempt, and gets a credit for each, once its first item has shown that it runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from framework._base import limits


class StreamState:
    """One stream. `items` holds references of items that nobody has taken yet."""

    __slots__ = (
        "arrived",
        "burst",
        "closed",
        "finished",
        "granted",
        "items",
        "running",
        "taken",
        "waiters",
        "window",
    )

    def __init__(self, window: int, burst: int = 0) -> None:
        self.window = window  #: -1: unbounded
        self.burst = burst  #: how far a quick producer may run ahead; 0: no further than others
        self.items: deque[Any] = deque()
        self.arrived = 0  #: items received so far, over all attempts of the task
        self.taken = 0
        self.granted = 0  #: credits that the present attempt was given
        self.running = False  #: the present attempt has sent an item: credits reach it
        self.finished = False  #: no more will come
        self.closed = False  #: the consumer wants no more
        self.waiters: list[Any] = []

    def restart(self) -> None:
        """The task is to be tried again: credits would go astray until it runs."""
        self.running = False
        self.granted = 0

    def add(self, index: int, item: Any) -> bool:
        """Item number `index` (from 0) has arrived. False when it is a repetition by a second attempt, or
        unwanted."""
        if index == 0:
            self.running = True
            self.granted = 0
        if self.closed or index < self.arrived:
            return False
        self.arrived = index + 1
        self.items.append(item)
        return True

    def add_all(self, index: int, items: Sequence[Any]) -> None:
        """As `add`, for several from number `index` on, all of which are expected."""
        if index == 0:
            self.running = True
            self.granted = 0
        self.arrived = index + len(items)
        self.items.extend(items)

    def expects(self, index: int) -> bool:
        """Whether `add` would take this item."""
        return not self.closed and index >= self.arrived

    def take(self) -> Any | None:
        """The next item, or None when there is none (yet: see `finished`)."""
        if not self.items:
            return None
        self.taken += 1
        return self.items.popleft()

    def untake(self, items: Sequence[Any]) -> None:
        """Items that were taken have not arrived where they were to go: they come first again."""
        if not self.closed:
            self.items.extendleft(reversed(items))
            self.taken -= len(items)

    def owed(self) -> int:
        """Credits to return to the producer now (0: not worth a frame yet)."""
        if self.window < 0 or self.finished or self.closed or not self.running:
            return 0
        owed = self.taken - self.granted
        if owed <= 0 or owed * 2 < self.window:
            return 0
        if len(self.items) > self.window and owed * 4 < self.burst:
            return 0  # it has borrowed, and so much is here: larger lots will do
        return owed

    def credits_due(self) -> int:
        """The same; they count as given."""
        due = self.owed()
        self.granted += due
        return due

    @property
    def ended(self) -> bool:
        """There is no next item, and there never will be one."""
        return self.closed or (self.finished and not self.items)


class Credits:
    """What the producer of one attempt may make. Times are in nanoseconds, of any clock."""

    __slots__ = ("_given", "_granted", "_loan", "_lot", "_most", "_quick", "_window")

    def __init__(self, window: int, burst: int = 0) -> None:
        self._window = window
        self._granted = window  #: credits that were given and not yet used
        self._most = max(0, burst - window)  #: that may be borrowed
        self._loan = 0
        self._lot = 0  #: how many items may be made since `_given`; 0: they were made, and judged
        self._given = 0
        self._quick = False  #: the last lot was made quickly, and all of it was small

    def grant(self, credits: int) -> None:
        """The consumer has taken items."""
        self._granted += credits

    def take(self, now: int, small: bool) -> int:
        """All items that may be made now; they count as made. 0: it has to wait for credits. To be called
        when those of the last time have been made. `small`: all of these were."""
        if self._lot:
            self._quick = small and now - self._given <= self._lot * limits.QUICK_ITEM_NS
        repaid = min(self._loan, self._granted)
        self._loan -= repaid
        lot = self._granted - repaid
        self._granted = 0
        if not lot and self._quick:
            lot = min(self._window, self._most - self._loan)
            self._loan += lot
        self._lot, self._given = lot, now
        return lot
