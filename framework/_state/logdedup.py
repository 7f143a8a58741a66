"""The same line from many processes is shown once. Pure: time comes in as an argument.

The rules are those that Ray documents for its driver's output ("Log deduplication" in "Configuring
Logging"):

- Lines are the same when they agree without the words that hold a digit.
- The first instance is shown at once. While only one process writes it, so is every further one.
- From the moment a second process writes it too, instances are held back and counted, until `window`
  seconds after the first. Then the latest of them is shown with the count; a single one is shown as it is.
- A pattern that repeated is held for one window more, from whichever process its next instance comes.
- What `allow` matches is never held back; what `skip` matches is never shown; `allow` goes first.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from framework._base.limits import DEDUP_LINE, DEDUP_PATTERNS, DEDUP_WINDOW

_HAS_DIGIT = re.compile(r"\d")


def canonical(line: str) -> str:
    """The line without its words that hold a digit; lines with the same result are the same."""
    if _HAS_DIGIT.search(line) is None:
        return " ".join(line.split())
    return " ".join(word for word in line.split() if _HAS_DIGIT.search(word) is None)


class Output(NamedTuple):
    """A line to show. `repeats` is 0 for a line as it came, else how many (2 or more) it stands for."""

    source: tuple[str, int]
    name: str
    is_err: bool
    line: str
    repeats: int

    @property
    def text(self) -> str:
        """The line, with ``[repeated 7x across cluster]`` when it stands for several."""
        return f"{self.line} [repeated {self.repeats}x across cluster]" if self.repeats else self.line


class _Pattern:
    """A pattern seen in the present window."""

    __slots__ = ("count", "deadline", "first", "last", "shared")

    def __init__(self, first: tuple[str, int], deadline: float, last: Output) -> None:
        self.first = first  # the only source so far, unless shared
        self.shared = False
        self.deadline = deadline
        self.count = 0  # instances held back
        self.last = last  # the latest of them

    def held(self) -> Output | None:
        if self.count == 0:
            return None
        return self.last if self.count == 1 else self.last._replace(repeats=self.count)


class Deduplicator:
    """Decides which lines are shown, and when.

    `window` is in seconds. At most `max_entries` patterns are remembered: for more, the oldest is given out
    and forgotten early. Lines of more than `max_line` characters are always shown. `now` must never decrease.
    After `feed`, call `due` at `next_due`, and `drain` at the end.
    """

    __slots__ = ("_allow", "_held", "_max_entries", "_max_line", "_patterns", "_skip", "_window")

    def __init__(
        self,
        window: float = DEDUP_WINDOW,
        allow: re.Pattern[str] | None = None,
        skip: re.Pattern[str] | None = None,
        max_entries: int = DEDUP_PATTERNS,
        max_line: int = DEDUP_LINE,
    ) -> None:
        if not window > 0:
            raise ValueError(f"window must be a positive number of seconds, got {window!r}")
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, got {max_entries!r}")
        self._window = window
        self._allow = allow
        self._skip = skip
        self._max_entries = max_entries
        self._max_line = max_line
        # Every entry gets the same window when it enters, hence the order is that of the deadlines.
        self._patterns: dict[tuple[bool, str], _Pattern] = {}
        self._held = 0  # patterns with a count

    def feed(
        self, now: float, source: tuple[str, int], line: str, *, name: str = "", is_err: bool = False
    ) -> list[Output]:
        """Take a line of process `source` (ip, pid); returns what is to be shown now, oldest first.

        Standard output and standard error are deduplicated apart from each other.
        """
        out = self.due(now)
        this = Output(source, name, is_err, line, 0)
        if self._allow is not None and self._allow.search(line):
            out.append(this)
            return out
        if self._skip is not None and self._skip.search(line):
            return out
        key = (is_err, canonical(line)) if len(line) <= self._max_line else (is_err, "")
        if not key[1]:
            out.append(this)
            return out
        pattern = self._patterns.get(key)
        if pattern is None:
            if len(self._patterns) >= self._max_entries:
                self._evict(out)
            self._patterns[key] = _Pattern(source, now + self._window, this)
            out.append(this)
            return out
        pattern.shared = pattern.shared or source != pattern.first
        if not pattern.shared:
            out.append(this)
            return out
        self._held += pattern.count == 0
        pattern.count += 1
        pattern.last = this
        return out

    def due(self, now: float) -> list[Output]:
        """End the windows that are over; returns what they held back."""
        out: list[Output] = []
        while self._patterns:
            key, pattern = next(iter(self._patterns.items()))
            if pattern.deadline > now:
                break
            del self._patterns[key]
            self._held -= pattern.count > 0
            if (held := pattern.held()) is not None:
                out.append(held)
            if pattern.count > 1:
                # It is likely to go on: do not show its next instance as if it were the first.
                pattern.count = 0
                pattern.deadline = now + self._window
                self._patterns[key] = pattern
        return out

    def next_due(self) -> float | None:
        """When to call `due` next; None while nothing is held back. May be early, never late."""
        if not self._held:
            return None
        return next(iter(self._patterns.values())).deadline

    def drain(self) -> list[Output]:
        """Give out everything that is held back, and forget all patterns."""
        held = [pattern.held() for pattern in self._patterns.values()]
        self._patterns.clear()
        self._held = 0
        return [output for output in held if output is not None]

    def _evict(self, out: list[Output]) -> None:
        pattern = self._patterns.pop(next(iter(self._patterns)))
        self._held -= pattern.count > 0
        if (held := pattern.held()) is not None:
            out.append(held)
