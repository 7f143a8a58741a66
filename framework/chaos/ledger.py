"""What was asked, what was answered, and which errors were permitted instead. Pure."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from framework import exceptions


class Wrong(AssertionError):
    """The framework has broken a promise: the text says which."""


class Hung(Wrong):
    """No answer in all the time that there was. `refs`: what has been waited for."""

    def __init__(self, text: str, refs: Sequence[Any] = ()) -> None:
        super().__init__(text)
        self.refs = list(refs)


@dataclass(frozen=True, slots=True)
class Rule:
    """A documented reason for an error instead of a value."""

    name: str
    errors: tuple[type[BaseException], ...]
    why: str


AT_MOST_ONCE: Final = Rule(
    "task, max_retries=0",
    (exceptions.WorkerCrashedError, exceptions.NodeDiedError),
    "a task that may not be repeated is lost with the worker that runs it",
)
RETRIES_USED: Final = Rule(
    "task, max_retries=3",
    (exceptions.WorkerCrashedError, exceptions.NodeDiedError),
    "a task whose workers have died four times in a row",
)
OWNER_GONE: Final = Rule(
    "ref of a dead owner",
    (exceptions.OwnerDiedError,),
    "objects end with the process that has made their references",
)
CALL_UNSURE: Final = Rule(
    "call, max_task_retries=0",
    (exceptions.ActorUnavailableError,),
    "a call that was under way when its actor died may or may not have run; the actor is restarted",
)
ACTOR_GONE: Final = Rule(
    "call, max_restarts=0",
    (exceptions.ActorDiedError,),
    "an actor that may not be restarted is lost with its process, and all its calls",
)
RULES: Final = (AT_MOST_ONCE, RETRIES_USED, OWNER_GONE, CALL_UNSURE, ACTOR_GONE)


class Ledger:
    """Of one workload. All its figures are written by one thread."""

    def __init__(self, lenient: bool = True) -> None:
        """`lenient`: whether processes that run tasks are struck at all. If not, no error is permitted."""
        self._lenient = lenient
        self.asked = 0
        self.answered = 0
        self.rounds = 0
        self.repeated = 0  #: executions beyond the first of each task or call, as far as they were counted
        self.permitted: Counter[str] = Counter()  #: by the name of the rule
        self.notes: Counter[str] = Counter()  #: other things that were seen, such as restarts
        self.seconds = array("d")  #: of each round

    @property
    def open(self) -> int:
        """What was asked and has neither been answered nor been excused."""
        return self.asked - self.answered - self.permitted.total()

    def excuse(self, rule: Rule, error: BaseException) -> None:
        """An error in place of an answer. `Wrong` if the rule does not permit it."""
        if not isinstance(error, rule.errors):
            raise Wrong(f"{type(error).__name__} is not permitted for {rule.name}: {error}") from error
        if not self._lenient:
            raise Wrong(f"{rule.name}: no process that runs tasks was struck, and still: {error}") from error
        self.permitted[rule.name] += 1

    def count_runs(self, asked: Iterable[str], runs: Counter[str], most: int | None = None) -> None:
        """`runs`: how often each task of a batch has begun. `Wrong` if one that nobody asked for has, or one
        more often than it may (`most`, None for any number)."""
        known = set(asked)
        for key, count in runs.items():
            if key not in known:
                raise Wrong(f"{key!r} has run, which was not asked for")
            if most is not None and count > most:
                raise Wrong(f"{key!r} has run {count} times; it may {most}")
            self.repeated += count - 1

    def round_done(self, seconds: float) -> None:
        """All that one round has asked is answered or excused; `Wrong` if not."""
        self.rounds += 1
        self.seconds.append(seconds)
        if self.open:
            raise Wrong(f"{self.open} of {self.asked} answers are missing after round {self.rounds}")


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed; NaN of none."""
    if not sorted_values:
        return math.nan
    return sorted_values[max(0, math.ceil(share * len(sorted_values)) - 1)]


def latencies(seconds: Iterable[float]) -> dict[str, float]:
    """p50, p99 and max, in seconds; empty of none."""
    found = sorted(seconds)
    if not found:
        return {}
    return {"p50": percentile(found, 0.5), "p99": percentile(found, 0.99), "max": found[-1]}
