"""What an owner remembers of a task that it has submitted, and of the function it calls."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

#: values of `Template.returns` beside a plain number of returns
STREAMING = -1
DYNAMIC = -2

DEFAULT_WINDOW = 0  #: of a stream for which nobody has asked for another

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


class Rare:
    """What few tasks have, or have need of: see the attributes of `TaskRecord` that are made by `_rare`."""

    __slots__ = (
        "again",
        "app_failures",
        "cancelled",
        "children",
        "deadline",
        "key",
        "lineage",
        "lost",
        "oom_failures",
        "parent",
        "stands_for",
        "stored_deps",
        "timeout",
        "timer",
    )

    def __init__(self) -> None:
        self.again: Any = None
        self.app_failures = 0
        self.cancelled: str | None = None
        self.children: set[int] | None = None
        self.deadline: float | None = None
        self.key: Any = None
        self.lineage: Any = None
        self.lost = False
        self.oom_failures = 0
        self.parent: int | None = None
        self.stands_for = 0
        self.stored_deps: list[Any] | None = None
        self.timeout: float | None = None
        self.timer: Any = None


_USUAL = Rare()


class _Rare(Protocol[T]):
    """What type checkers see of such an attribute."""

    def __get__(self, task: Any, owner: type | None = None) -> T: ...

    def __set__(self, task: Any, value: T) -> None: ...


def _rare(name: str) -> Any:
    """An attribute that is kept in `TaskRecord.rare`. What is not there has the value that it has in most
    tasks; to give it that value changes nothing."""
    usual = getattr(_USUAL, name)

    def get(self: TaskRecord) -> Any:
        rare = self.rare
        return usual if rare is None else getattr(rare, name)

    def put(self: TaskRecord, value: Any) -> None:
        rare = self.rare
        if rare is None:
            if value is usual:
                return
            rare = self.rare = Rare()
        setattr(rare, name, value)

    return property(get, put)


class TaskRecord:
    """One submitted task, until it is done."""

    __slots__ = (
        "actor",
        "alone",
        "args",
        "cost",
        "deps",
        "entry",
        "extra",
        "frame",
        "kwargs",
        "lease",
        "rare",
        "refs",
        "retries",
        "several",
        "state",
        "stream",
        "strikes",
        "template",
        "unique",
    )

    def __init__(
        self,
        unique: int,
        template: Template,
        args: list[Any],
        kwargs: dict[str, Any] | None,
        retries: int = 0,
        actor: Any = None,
        refs: Any = None,
    ) -> None:
        self.unique = unique
        self.template = template
        self.args = args  #: may be shared with other tasks, unless `deps` are still to be put in
        self.kwargs = kwargs
        #: packed and ready to send, if it is; else `args` and `kwargs` are still here
        self.frame: bytes | None = None
        self.refs = refs  #: what is kept until the task is done: references in its arguments
        self.deps: list[tuple[Any, Any]] | None = (
            None  #: (position or keyword, entry) of arguments still to come
        )
        self.entry: Any = None  #: of its return, if it has one; None: see `several`
        self.several: list[Any] | None = None
        self.alone: Any = None  #: the connection on which it was sent with no other task under way
        self.actor = actor  #: the client of the actor whose method it calls
        self.stream: Any = None
        self.retries = retries  #: system failures that it may still survive (-1: any number)
        self.strikes = 0  #: how often an actor has died in the middle of this call
        self.lease: Any = None
        self.cost = 0.0
        self.state = WAITING
        self.extra: dict[str, Any] | None = None
        self.rare: Rare | None = None  #: None: there is nothing about it that most tasks do not have

    @property
    def entries(self) -> list[Any]:
        """Those of its returns. (Not to be changed, but to be replaced.)"""
        if self.entry is not None:
            return [self.entry]
        return self.several or []

    @entries.setter
    def entries(self, entries: list[Any]) -> None:
        self.entry, self.several = None, entries

    stored_deps: _Rare[list[Any] | None] = _rare("stored_deps")  #: entries of arguments that lie in the store
    key: _Rare[Any] = _rare("key")  #: its scheduling key, where that is not the template's
    app_failures: _Rare[int] = _rare("app_failures")  #: attempts that have failed
    timeout: _Rare[float | None] = _rare("timeout")  #: seconds of the option, if that sets the deadline
    oom_failures: _Rare[int] = _rare("oom_failures")  #: how often its worker was ended for want of memory
    deadline: _Rare[float | None] = _rare("deadline")
    timer: _Rare[Any] = _rare("timer")
    cancelled: _Rare[str | None] = _rare("cancelled")  #: why, once somebody has asked for it to end
    parent: _Rare[int | None] = _rare("parent")
    children: _Rare[set[int] | None] = _rare("children")
    lineage: _Rare[Any] = _rare("lineage")  #: of a generator: what its items remember
    lost: _Rare[bool] = _rare("lost")  #: an attempt was lost, after which its results may be anywhere
    stands_for: _Rare[int] = _rare("stands_for")  #: the number of the task whose lost results it makes again
    again: _Rare[Any] = _rare("again")  #: the lineage of the generator whose lost items it makes again
