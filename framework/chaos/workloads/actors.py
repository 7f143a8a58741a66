"""Actors with restarts: every report is accounted for."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import Any

import framework as fw
from framework.chaos.ledger import ACTOR_GONE, CALL_UNSURE, Wrong
from framework.chaos.marks import mark
from framework.chaos.workload import Setting, Workload

_REPORTERS, _REPORTS, _ONCE, _MORTALS, _ECHOES = 8, 80, 15, 2, 20
_LATE = 30.0  # seconds after which no second run of a call is expected any more
_REPLACED_EVERY = 10  # rounds after which a reporter is let go of, and a new one is made


class _Book:
    """Takes reports; it may be restarted at any time, so they are in a file."""

    def add(self, path: str, key: str) -> str:
        """One report."""
        mark(path, key)
        return key


class _Reporter:
    """Reports to the book, in calls of its own. Says, with each answer, which process has given it, and as
    which of its calls."""

    def __init__(self, book: Any) -> None:
        self._book = book
        self._count = 0
        self._incarnation = f"{os.getpid()}-{time.monotonic_ns()}"

    def report(self, path: str, key: str) -> tuple[str, str, int]:
        """Done when the report is in the book."""
        self._count += 1
        return fw.get(self._book.add.remote(path, key)), self._incarnation, self._count


class _Careful:
    """Its calls are never repeated."""

    def call(self, path: str, key: str) -> str:
        """One of them."""
        mark(path, key)
        time.sleep(0.03)
        return key


class _Mortal:
    """Has one life."""

    def call(self, x: int) -> int:
        """Its answer."""
        return x


class _Echo:
    """Answers many at a time."""

    async def call(self, x: int) -> int:
        """Its answer."""
        await asyncio.sleep(0.001)
        return x


_restarted = fw.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
Book: Any = _restarted(_Book)
Reporter: Any = _restarted(_Reporter)
Echo: Any = _restarted(_Echo)
Careful: Any = fw.remote(num_cpus=0, max_restarts=-1)(_Careful)
Mortal: Any = fw.remote(num_cpus=0)(_Mortal)


class Actors(Workload):
    """Reporters that are restarted and whose calls are repeated: each report must be in the book. Actors that
    are restarted and whose calls are not repeated: none may run twice. Actors that are not restarted, async
    actors, named actors."""

    name = "actors"
    text = "actors that are restarted, every report of theirs accounted for; at most once; async; named"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.reports = 0  #: calls of reporters that were answered
        self._reporters: list[Any] = []
        self._seen: list[str] = []  # of each reporter, the process that has answered last
        self._past: deque[tuple[float, str, list[str]]] = deque()
        self._book: Any = None
        self._careful: Any = None
        self._echo: Any = None

    def start(self) -> None:
        """The actors that last."""
        self._book = Book.options(name="book").remote()
        self._reporters = [Reporter.remote(self._book) for _ in range(_REPORTERS)]
        self._seen = [""] * _REPORTERS
        self._careful = Careful.remote()
        self._echo = Echo.remote()

    def round(self, number: int) -> None:
        """See the class."""
        path, once = self.marks.new(f"book-{number}"), self.marks.new(f"once-{number}")
        reports = [
            [reporter.report.remote(path, f"{index} {count}") for count in range(_REPORTS)]
            for index, reporter in enumerate(self._reporters)
        ]
        keys = [str(count) for count in range(_ONCE)]
        careful = [self._careful.call.remote(once, key) for key in keys]
        echoes = [self._echo.call.remote(count) for count in range(_ECHOES)]
        mortals = [Mortal.remote() for _ in range(_MORTALS)]
        last_words = [mortal.call.remote(count) for mortal in mortals for count in range(5)]
        for index, refs in enumerate(reports):
            self._check_reports(index, refs)
        self._check_book(path)
        self.expect(echoes, range(_ECHOES), "async call")
        self.expect_or(ACTOR_GONE, last_words, [*range(5)] * _MORTALS, "call of an actor with one life")
        self._check_once(once, keys, careful)
        self._meet_by_name()
        if number % _REPLACED_EVERY == 0:
            index = self.random.randrange(_REPORTERS)
            self._reporters[index] = Reporter.remote(self._book)
            self._seen[index] = ""

    def _check_reports(self, index: int, refs: list[Any]) -> None:
        """One process answers its calls in their order, and each of them once."""
        self.ledger.asked += len(refs)
        last: dict[str, int] = {}
        for count, (key, incarnation, place) in enumerate(self.get(refs)):
            if key != f"{index} {count}":
                raise Wrong(f"report {index} {count} was answered as {key}")
            if place <= last.get(incarnation, 0):
                raise Wrong(f"reporter {index} has run call {count} as its {place}th, after another one")
            last[incarnation] = place
            if incarnation != self._seen[index]:
                self.ledger.notes["restarts of reporters seen"] += bool(self._seen[index])
                self._seen[index] = incarnation
            self.ledger.answered += 1
            self.reports += 1

    def _check_book(self, path: str) -> None:
        keys = [f"{index} {count}" for index in range(_REPORTERS) for count in range(_REPORTS)]
        found = self.marks.take(path)
        if lost := [key for key in keys if not found[key]]:
            raise Wrong(f"{len(lost)} reports were answered and are not in the book: {lost[:5]}")
        self.ledger.count_runs(keys, found)

    def _check_once(self, path: str, keys: list[str], refs: list[Any]) -> None:
        good = self.expect_or(CALL_UNSURE, refs, keys, "call without retries")
        runs = self.marks.read(path)
        for key, answered in zip(keys, good, strict=True):
            if answered and runs[key] != 1:
                raise Wrong(f"a call that may run once was answered and has run {runs[key]} times")
        self._past.append((time.monotonic(), path, keys))
        self._look_back(time.monotonic() - _LATE)

    def _look_back(self, before: float) -> None:
        while self._past and self._past[0][0] <= before:
            _, path, keys = self._past.popleft()
            self.ledger.count_runs(keys, self.marks.take(path), 1)

    def _meet_by_name(self) -> None:
        """The book's name leads to the book."""
        if fw.get_actor("book") != self._book:
            raise Wrong("the name of an actor leads to another one")

    def finish(self) -> None:
        """The last rounds are counted, and all actors let go of."""
        self._look_back(float("inf"))
        self._reporters.clear()
        self._book = self._careful = self._echo = None
