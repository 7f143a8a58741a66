"""What an owner remembers of a task that it has submitted, and of the function it calls."""

from __future__ import annotations

from collections import deque
from typing import Any

#: values of `Template.returns` beside a plain number of returns
STREAMING = -1
DYNAMIC = -2

WAITING = 0  #: for the values of its arguments
QUEUED = 1  #: for a worker
SENT = 2
FINISHED = 3


class Function:
    """A function as it is sent to workers. `refs`: what it has captured, which lives as long as this.
    `ended`: hears of its end, by its hash."""

    __slots__ = ("__weakref__", "_ended", "function_hash", "payload", "refs")

    def __init__(self, function_hash: bytes, payload: bytes, refs: list[Any], ended: deque[Any]) -> None:
        self.function_hash = function_hash
        self.payload = payload
        self.refs = refs
        self._ended = ended

    def __del__(self) -> None:
        self._ended.append(self.function_hash)


class Template:
    """The constant part of many tasks: function, resources, name, retry policy. Sent once per connection,
    then named by its number. `mean_us` follows the measured run time, weighted towards the slow side: sending
    too little ahead costs a round trip, sending too much ahead of a slow task makes others wait.

    It lives as long as a task, or whoever may make one, has it; `ended` hears of its end, by its number."""

    __slots__ = (
        "_ended",
        "function",
        "function_hash",
        "key",
        "mean_us",
        "name",
        "options",
        "returns",
        "spec",
        "tid",
    )

    def __init__(
        self,
        tid: int,
        name: str,
        returns: int,
        function_hash: bytes,
        spec: dict[str, Any],
        options: Any,
        key: Any,
        function: Function | None = None,
        ended: deque[Any] | None = None,
    ) -> None:
        self._ended = ended
        self.function = function
        self.tid = tid
        self.name = name
        self.returns = returns
        self.function_hash = function_hash
        self.spec = spec
        self.options = options
        self.key = key
        self.mean_us: float | None = None

    def __del__(self) -> None:
        # Anywhere, also inside of the garbage collector.
        if self._ended is not None:
            self._ended.append(self.tid)

    def measured(self, micros: int) -> None:
        """Take in one measured run time."""
        mean = self.mean_us
        if mean is None:
            self.mean_us = float(micros)
        elif micros > mean:
            self.mean_us = mean * 0.5 + micros * 0.5
        else:
            self.mean_us = mean * 0.9 + micros * 0.1


class TaskRecord:
    """One submitted task, until it is done."""

    __slots__ = (
        "actor",
        "again",
        "alone",
        "app_failures",
        "args",
        "cancelled",
        "children",
        "cost",
        "deadline",
        "deps",
        "entries",
        "extra",
        "frame",
        "key",
        "kwargs",
        "lease",
        "lineage",
        "lost",
        "oom_failures",
        "parent",
        "refs",
        "retries",
        "stands_for",
        "state",
        "stored_deps",
        "stream",
        "strikes",
        "template",
        "timeout",
        "timer",
        "unique",
    )

    def __init__(
        self, unique: int, template: Template, args: list[Any], kwargs: dict[str, Any] | None
    ) -> None:
        self.unique = unique
        self.template = template
        self.args = args
        self.kwargs = kwargs
        self.frame: bytes | None = None  #: packed and ready to send; None until its arguments are known
        self.refs: list[Any] | None = None  #: references kept alive until the task is done
        self.deps: list[tuple[Any, Any]] | None = (
            None  #: (position or keyword, entry) of arguments still to come
        )
        self.stored_deps: list[Any] | None = None  #: entries of arguments that lie in the store
        self.entries: list[Any] = []  #: of its returns
        self.key: Any = None  #: its scheduling key, where that is not the template's
        self.alone: Any = None  #: the connection on which it was sent with no other task under way
        self.actor: Any = None  #: the client of the actor whose method it calls
        self.stream: Any = None
        self.retries = 0  #: system failures that it may still survive (-1: any number)
        self.app_failures = 0  #: attempts that have failed
        self.timeout: float | None = None  #: seconds of the option, if that is what sets the deadline
        self.oom_failures = 0  #: how often its worker was ended for want of memory
        self.strikes = 0  #: how often an actor has died in the middle of this call
        self.deadline: float | None = None
        self.timer: Any = None
        self.lease: Any = None
        self.cost = 0.0
        self.state = WAITING
        self.cancelled: str | None = None  #: why, once somebody has asked for it to end
        self.parent: int | None = None
        self.children: set[int] | None = None
        self.extra: dict[str, Any] | None = None
        self.lineage: Any = None  #: of a generator: what its items remember
        self.lost = False  #: an attempt was lost, after which its results may be anywhere
        self.stands_for = 0  #: the number of the task whose lost results it makes again
        self.again: Any = None  #: the lineage of the generator whose lost items it makes again
