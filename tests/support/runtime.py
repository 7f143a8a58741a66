"""A runtime without processes, for tests of what lives on its loop: what it posts runs when the test says so,
and its connections remember what was sent."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest import mock

from framework._runtime.lineage import Lineage
from framework._runtime.objects import Objects
from framework._state.objects import FAILED, READY, Entry
from framework._state.tasks import FINISHED, TaskRecord
from framework._wire.codec import new_packer
from framework.exceptions import ConnectionFailedError


class Ref:
    """A reference: counts while it lives."""

    def __init__(self, objects: Objects, entry: Entry) -> None:
        self._objects = objects
        self._entry = entry

    def __del__(self) -> None:
        self._objects.drops.append(self._entry)


class FakeConnection:
    """To another process, which answers when the test says so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False
        self.state = SimpleNamespace(address=name, borrows=False)
        self.casts: list[tuple[Any, ...]] = []
        self.replies: dict[int, Any] = {}
        self.calls: list[tuple[tuple[Any, ...], Future[Any]]] = []

    def cast(self, *fields: Any) -> None:
        self.casts.append(fields)

    def call(self, *fields: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.calls.append((fields, future))
        return future

    def reply(self, rid: int, value: Any) -> None:
        self.replies[rid] = value

    def fail(self, rid: int, error: BaseException) -> None:
        self.replies[rid] = error


class FakeRuntime:
    """One process; `peers` are the others, by address."""

    def __init__(self) -> None:
        self.address = "unix:me"
        self.posted: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self.connections: dict[str, FakeConnection] = {}
        self.gone: set[str] = set()
        self.discarded: list[Any] = []
        self.freed: list[bytes] = []
        self.task_runs = False
        self.timers: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self.loop = SimpleNamespace(call_later=self._call_later)
        self.over: set[str] = set()  #: processes that have ended
        self.present: set[str] = set()  #: those that have a connection to this one
        self.peers = SimpleNamespace(
            connect=self._connect,
            existing=self.connections.get,
            is_over=lambda connection: connection.name in self.over,
            is_present=self.present.__contains__,
        )
        self.streams, self.store = mock.Mock(), mock.Mock()
        self.pack = new_packer()
        self.uniques = itertools.count(1_000)
        self.objects: Any = Objects(self)  # type: ignore[arg-type]
        self.submitter = FakeSubmitter(self)
        self.lineage: Any = Lineage(self)  # type: ignore[arg-type]

    def _connect(self, address: str) -> FakeConnection | None:
        return None if address in self.gone else self.to(address)

    def _call_later(self, seconds: float, function: Callable[..., object], *args: object) -> Any:
        self.timers.append((function, args))
        return mock.Mock()

    def lose(self, address: str) -> FakeConnection:
        """The connection to this process is lost, which lives unless it is `over`."""
        connection = self.connections.pop(address)
        connection.closed = True
        if address in self.over:
            self.objects.process_lost(connection)
        else:
            self.objects.connection_lost(connection)
        for _, future in connection.calls:
            if not future.done():
                future.set_exception(ConnectionFailedError("the connection was lost"))
        return connection

    def to(self, address: str) -> FakeConnection:
        """The connection to this process."""
        return self.connections.setdefault(address, FakeConnection(address))

    def post(self, function: Callable[..., object], *args: object) -> None:
        self.posted.append((function, args))

    def turn(self) -> None:
        """Run what was posted, and take in what was dropped, until nothing is left of either."""
        while self.posted or self.objects.drops:
            while self.posted:
                function, args = self.posted.popleft()
                function(*args)
            self.objects.drain_drops()

    def in_task(self) -> bool:
        return self.task_runs

    def ref_of(self, entry: Entry) -> Ref:
        return Ref(self.objects, entry)

    def make_ref(self, object_id: bytes, owner: str, registered: bool = False) -> Ref:
        return Ref(self.objects, self.objects.handle(object_id, owner))

    def hold(self, entry: Entry) -> Ref:
        self.objects.keep(entry)
        return Ref(self.objects, entry)

    def new(self, object_id: bytes, value: Any = None) -> Ref:
        """A reference to an object of this process that has this wire value."""
        entry = self.objects.new(object_id)
        self.objects.complete(entry, value)
        return Ref(self.objects, entry)

    def discard(self, wire: Any) -> None:
        self.discarded.append(wire)

    def entries_freed(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.freed.append(entry.id)
            if entry.state == READY:
                entry.value = None

    def flush_soon(self) -> None:
        """Nothing is sent."""

    def wire_error(self, error: BaseException, name: str) -> list[Any]:
        return [2, 2, type(error).__name__, str(error)]


class FakeSubmitter:
    """Takes tasks; the test says what becomes of them."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime
        self.tasks: dict[int, TaskRecord] = {}
        self.ready_tasks: list[TaskRecord] = []

    def ready(self, task: TaskRecord) -> None:
        self.ready_tasks.append(task)

    def fail(self, task: TaskRecord, error: BaseException) -> None:
        self._end(task)
        if task.again is not None:
            self._runtime.lineage.ended(task, error)
        for entry in task.entries:
            self._runtime.objects.fail(entry, error)

    def done(self, task: TaskRecord, values: list[Any]) -> None:
        """The task has returned these."""
        if task.again is None:
            self._runtime.lineage.remember(task, values)
        self._end(task)
        if task.again is not None:
            self._runtime.lineage.ended(task, None)
            return
        for entry, value in zip(task.entries, values, strict=True):
            if not entry.freed or entry.state != FAILED:
                self._runtime.objects.replace(entry, value)

    def _end(self, task: TaskRecord) -> None:
        task.state = FINISHED
        task.refs = None
        self.tasks.pop(task.unique, None)
