"""What a random program expects and sees: plain data, from which the oracles judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from framework.exceptions import FrameworkError, TaskError


class _Nothing:
    def __repr__(self) -> str:
        return "no value"


NOTHING: Final = _Nothing()


class Risk:
    """What stands between the loss of a process, or of a copy, and an error that the program sees.

    kind: "task", "call" (of an actor), "object" (a value that lies somewhere), "group", "node" (it is bound
    to a node that may go), "control" (something is asked of the head or node).
    since: when it became exposed.
    retries: losses that it survives (-1: any number). Of an object: how often it may be made again.
    restarts: of its actor.
    owner: "driver", "worker" or "actor": whose end takes an object along.
    stored: whether it lies in an object store.
    """

    __slots__ = ("kind", "owner", "restarts", "retries", "since", "stored")

    def __init__(
        self,
        kind: str,
        since: float,
        *,
        retries: int = 0,
        restarts: int = 0,
        owner: str = "driver",
        stored: bool = False,
    ) -> None:
        self.kind = kind
        self.since = since
        self.retries = retries
        self.restarts = restarts
        self.owner = owner
        self.stored = stored

    def __repr__(self) -> str:
        words = [self.kind, f"since={self.since:.3f}", f"retries={self.retries}"]
        words += [f"restarts={self.restarts}"] if self.kind == "call" else []
        words += [f"owner={self.owner}"] if self.owner != "driver" else []
        return f"Risk({', '.join(words + ['stored'] * self.stored)})"


class Expect:
    """What may come of one wait. `value`: the only right one, as `digest` has it (`NOTHING`: none is right);
    with `any_value`, whatever comes is. `errors`: names of exception classes that are right although nothing
    has gone wrong. `risks`: what may go wrong."""

    __slots__ = ("any_value", "errors", "risks", "value")

    def __init__(
        self,
        value: Any = NOTHING,
        *,
        errors: Iterable[str] = (),
        risks: Sequence[Risk] = (),
        any_value: bool = False,
    ) -> None:
        self.value = value
        self.errors = frozenset(errors)
        self.risks = tuple(risks)
        self.any_value = any_value

    def __repr__(self) -> str:
        value = "any value" if self.any_value else repr(self.value)
        return f"{value}, errors {sorted(self.errors)}, {list(self.risks)}"


class Observation:
    """What became of one wait.

    outcome: "value", "error", "hung" (there was no answer in all the world's patience) or "open" (the program
    ended before).
    error: the names of the error's class and its bases, the most special first: of what a task raised, those
    of the cause.
    """

    __slots__ = ("began", "ended", "error", "expect", "op", "outcome", "task", "text", "value", "what")

    def __init__(self, op: int, what: str, expect: Expect, began: float, task: int = 0) -> None:
        self.op = op
        self.what = what
        self.expect = expect
        self.began = began
        self.ended = began
        self.outcome = "open"
        self.value: Any = NOTHING
        self.error: tuple[str, ...] = ()
        self.text = ""
        self.task = task  #: logical id of the task that it is about; 0: of none

    @property
    def ok(self) -> bool:
        """There was a value (right or wrong)."""
        return self.outcome == "value"

    def got(self, value: Any, now: float) -> None:
        self.outcome, self.value, self.ended = "value", digest(value), now

    def failed(self, error: BaseException, now: float) -> None:
        self.outcome, self.ended = "error", now
        self.error, self.text = error_names(error), f"{type(error).__name__}: {error}"[:2000]

    def hung(self, now: float) -> None:
        self.outcome, self.ended = "hung", now

    def __repr__(self) -> str:
        came = self.value if self.outcome == "value" else f"{'/'.join(self.error[:2])} {self.text[:300]}"
        return (
            f"operation {self.op}, {self.what}, {self.began:.6f} to {self.ended:.6f}: "
            f"{self.outcome} {came!r}; expected {self.expect!r}"
        )


class TaskFacts:
    """What the program asked of one task. `retries`: of both kinds (-1: without end); `parent`: logical id of
    the task that submits it, 0: the driver; `stored`: its result may be lost and made again; `cancelled`: it
    was to end, or may never have begun."""

    __slots__ = ("cancelled", "parent", "retries", "stored")

    def __init__(self, retries: int, parent: int = 0, stored: bool = False) -> None:
        self.retries = retries
        self.parent = parent
        self.stored = stored
        self.cancelled = False


class ActorFacts:
    """What the program asked of one actor. kind: "sync", "async" or "threads"; `retries`: max_task_retries;
    `name`: if it has one, with its namespace."""

    __slots__ = ("kind", "name", "restarts", "retries", "unordered")

    def __init__(
        self, kind: str, restarts: int, retries: int, name: str = "", unordered: bool = False
    ) -> None:
        self.kind = kind
        self.restarts = restarts
        self.retries = retries
        self.name = name
        self.unordered = unordered


class Record:
    """All that one program has seen."""

    def __init__(self) -> None:
        self.observations: list[Observation] = []
        self.tasks: dict[int, TaskFacts] = {}
        self.actors: dict[int, ActorFacts] = {}
        #: what an operation found wrong by itself: (number of the operation, kind, text)
        self.complaints: list[tuple[int, str, str]] = []
        self.kinds: dict[int, str] = {}  #: kind of each operation that was begun
        self.unfinished: set[int] = set()  #: operations that have begun and not ended
        self.finished = False  #: the program came to its end

    def open(self, op: int, what: str, expect: Expect, now: float, task: int = 0) -> Observation:
        observation = Observation(op, what, expect, now, task)
        self.observations.append(observation)
        return observation

    def complain(self, op: int, kind: str, text: str) -> None:
        self.complaints.append((op, kind, text))


def error_names(error: BaseException) -> tuple[str, ...]:
    """The names of its class and bases; of what a task raised, those of the cause."""
    if isinstance(error, TaskError):
        error = error.cause
    too_general = (object, BaseException, Exception, FrameworkError)
    return tuple(cls.__name__ for cls in type(error).__mro__ if cls not in too_general)


def digest(value: Any) -> Any:
    """Something small that equal values share: of arrays and long bytes, their length and a checksum."""
    if isinstance(value, list | tuple):
        return [digest(item) for item in value]
    if isinstance(value, dict):
        return {key: digest(item) for key, item in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return _sums(value) if len(value) > 64 else bytes(value)
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        return _sums(value.tobytes())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"a {type(value).__name__}"  # (not the thing itself: that may keep others alive)


def _sums(data: Any) -> str:
    import zlib

    return f"{len(data)} bytes, crc {zlib.crc32(data):08x}"
