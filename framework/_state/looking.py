"""Whether it is worth while to stay awake for what may come soon.

To be woken takes longer than a short call. So who expects an answer does not sleep for a moment, where the
last one came soon. That is in vain where the answer takes longer, or where the other side needs the very core
on which one looks: then it is done ever more seldom.
"""

from __future__ import annotations

from framework._base import limits


class Looking:
    """Of one who expects one thing after the other. Times are in nanoseconds, of any clock."""

    __slots__ = ("_asked", "_doubt", "_looks", "_pause", "_soon")

    def __init__(self) -> None:
        self._asked = 0  #: when something was expected last; 0: it has come
        self._soon = False  #: the last one came soon
        self._looks = False  #: it was looked for, this time
        self._pause = 0  #: so many have to come soon before it is done again
        self._doubt = 1  #: the same, when it was in vain once more

    def expects(self, now: int) -> bool:
        """Something may come from now on. Whether to stay awake for it."""
        self._asked = now
        self._looks = self._soon
        return self._soon

    def goes_on(self, now: int) -> bool:
        """Whether to stay awake still."""
        if not self._asked:
            return False
        if now - self._asked < limits.SPIN:
            return True
        self._soon = False
        self._pause = self._doubt
        self._doubt = min(2 * self._doubt, limits.SPIN_AGAIN)
        return False

    def has_come(self, now: int) -> None:
        """It is here."""
        asked, self._asked = self._asked, 0
        if not asked:
            return
        took = now - asked
        if self._looks:
            self._soon = self._soon and took < limits.SPIN
            if self._soon:
                self._doubt = 1
        elif took < limits.SPIN + limits.WAKE:
            if self._pause:
                self._pause -= 1
            self._soon = not self._pause
