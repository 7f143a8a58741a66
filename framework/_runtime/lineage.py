"""How lost objects come back: the tasks that made them are run again.

The owner of a stored result keeps what it needs to run its task once more: the packed frame and the entries
of its stored arguments. Not the values of these arguments: an argument that nobody refers to any more is
freed as usual, and made again, by its own lineage, when it is needed. Frames are kept up to
`limits.LINEAGE_BYTES`; beyond that the oldest are forgotten. Objects made by `put` have no task that could
make them again.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection, Frame
from framework._runtime.waiters import register
from framework._serial import values
from framework._state.objects import PENDING, Entry
from framework._state.tasks import TaskRecord, Template
from framework._wire import messages as m
from framework.exceptions import (
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectReconstructionFailedLineageEvictedError,
    ObjectReconstructionFailedMaxAttemptsExceededError,
)

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class LineageRecord:
    """What it takes to run one finished task again. It lives as long as an entry of its results, or the
    record of a task that took one of them as an argument."""

    __slots__ = ("__weakref__", "deps", "entries", "frame", "retries", "size", "template", "unique")

    def __init__(
        self,
        unique: int,
        template: Template,
        frame: bytes,
        entries: list[Entry],
        deps: list[Entry],
        retries: int,
    ) -> None:
        self.unique = unique
        self.template = template
        self.frame: bytes | None = frame  #: None when it was forgotten for want of room
        self.entries = [weakref.ref(entry) for entry in entries]
        self.deps = deps
        self.retries = retries
        self.size = len(frame) + 200 + 100 * (len(entries) + len(deps))


class Lineage:
    """The records of this process. Methods run on the loop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._kept: deque[tuple[weakref.ref[LineageRecord], int]] = deque()
        self._ended: deque[int] = deque()
        self.bytes = 0
        self.handlers = {m.RECOVER: self._recover_for}

    def remember(self, task: TaskRecord, results: list[Any]) -> None:
        """A task is done. If a result lies in the store, keep what it takes to make it again."""
        if task.retries == 0 or task.actor is not None or task.frame is None:
            return
        stored = [
            entry
            for entry, wire in zip(task.entries, results, strict=False)
            if type(wire) is list and wire[0] == values.FORM_STORED and not entry.freed
        ]
        if not stored:
            return
        deps = task.stored_deps or []
        record = LineageRecord(task.unique, task.template, task.frame, task.entries, deps, task.retries)
        for entry in stored:
            entry.lineage = record
        size, ended = record.size, self._ended
        self._kept.append((weakref.ref(record, lambda _: ended.append(size)), size))
        self.bytes += size
        while self._ended:
            self.bytes -= self._ended.popleft()
        self._bound()

    def _bound(self) -> None:
        while self._kept and (self.bytes > limits.LINEAGE_BYTES or self._kept[0][0]() is None):
            ref, size = self._kept.popleft()
            record = ref()
            if record is not None:
                record.frame, record.deps = None, []
                self.bytes -= size
                self._ended.append(-size)  # its end must not be counted again

    # ---- recovery ------------------------------------------------------------------------------------

    def recover(self, entry: Entry) -> None:
        """The value of an object of this process cannot be found: have it made again, or fail it with the
        reason.
        """
        if not entry.state:
            return  # it is being made
        record = entry.lineage
        object_id = entry.id.hex()
        if record is None:
            self._fail(entry, ObjectLostError(object_id, self._why_not(entry)))
        elif record.frame is None:
            self._fail(
                entry,
                ObjectReconstructionFailedLineageEvictedError(
                    object_id, "The record of the task that made it was dropped to bound memory"
                ),
            )
        elif record.retries == 0:
            self._fail(
                entry,
                ObjectReconstructionFailedMaxAttemptsExceededError(
                    object_id, f"{record.template.name}() was run again as often as its max_retries allows"
                ),
            )
        else:
            self._run_again(entry, record)

    @staticmethod
    def _why_not(entry: Entry) -> str:
        if entry.made_by_put:
            return "An object made by put() has no task that could make it again"
        return "Its task may not be run again (max_retries=0, or a method of an actor)"

    def _fail(self, entry: Entry, error: ObjectLostError) -> None:
        entry.state = PENDING
        self._runtime.objects.fail(entry, error)

    def _run_again(self, entry: Entry, record: LineageRecord) -> None:
        assert record.frame is not None
        if record.retries > 0:
            record.retries -= 1
        entry.state = PENDING
        entry.value = None
        running = self._runtime.submitter.tasks.get(record.unique)
        if running is not None:
            return  # a sibling is being made again by the same task
        task = TaskRecord(record.unique, record.template, [], None)
        task.frame = record.frame
        task.retries = record.retries
        task.stored_deps = record.deps
        task.entries = [found if (found := ref()) is not None else _nobody(entry) for ref in record.entries]
        task.refs = []
        for other in task.entries:
            other.task = task
        self._runtime.submitter.tasks[record.unique] = task
        missing = 0

        def arrived(dep: Entry) -> None:
            nonlocal missing
            missing -= 1
            if dep.state == 2 and not entry.state:
                error = ObjectReconstructionFailedError(
                    entry.id.hex(), f"An argument of its task is lost: {dep.value}"
                )
                self._runtime.submitter.fail(task, error)
            elif missing == 0:
                self._runtime.submitter.ready(task)
                self._runtime.flush_soon()

        waiting = []
        for dep in record.deps:
            if dep.freed:
                self._resurrect(dep)
            task.refs.append(self._runtime.hold(dep))
            if not dep.state:
                waiting.append(dep)
        missing = len(waiting)
        if not waiting:
            self._runtime.submitter.ready(task)
            self._runtime.flush_soon()
        for dep in waiting:
            register(dep, arrived)

    def _resurrect(self, dep: Entry) -> None:
        """An argument that was freed since: it is needed once more."""
        dep.freed = False
        dep.local = 0
        self._runtime.objects.table.add(dep)
        self.recover(dep)

    # ---- for others ----------------------------------------------------------------------------------

    def lost_argument(self, task: TaskRecord, object_id: bytes) -> bool:
        """A worker could not find an argument: have it made again, then the task runs. False when it is not
        ours to make.
        """
        for dep in task.stored_deps or ():
            if type(dep.value) is list and dep.value[1] == object_id and dep.owner is None:
                self.recover(dep)
                self._when_there(dep, task)
                return True
        return False

    def _when_there(self, dep: Entry, task: TaskRecord) -> None:
        def arrived(_: Entry) -> None:
            if dep.state == 2:
                dep.seen = True
                self._runtime.submitter.fail_wire(task, dep.value)
            else:
                self._runtime.submitter.ready(task)
                self._runtime.flush_soon()

        register(dep, arrived)

    def _recover_for(self, connection: Connection, frame: Frame) -> None:
        """A borrower could not find an object of ours."""
        _, rid, object_id = frame
        entry = self._runtime.objects.table.get(object_id)
        if entry is None or entry.owner is not None:
            connection.fail(rid, ObjectLostError(reason="the object has been freed by its owner"))
            return
        self.recover(entry)

        def answer(entry: Entry) -> None:
            if not connection.closed:
                connection.reply(rid, self._runtime.objects.wire(entry))

        register(entry, answer)

    async def recover_and_wait(self, entry: Entry, wire: Any) -> None:
        """On the loop: the object, which could not be found as `wire` says, is there again or has failed when
        this returns.
        """
        if entry.state and entry.value is not wire:
            return  # somebody else has seen to it
        loop = self._runtime.loop
        future: Any = loop.create_future()

        def done(_: Entry) -> None:
            if not future.done():
                future.set_result(None)

        if entry.owner is None:
            self.recover(entry)
        else:
            self._ask_owner(entry)
        register(entry, done)
        await future

    def _ask_owner(self, entry: Entry) -> None:
        if not entry.state:
            return
        assert entry.owner is not None
        entry.state, entry.value = PENDING, None
        self._runtime.objects.ask(entry, m.RECOVER)


def _nobody(like: Entry) -> Entry:
    """Stands for a sibling result that nobody refers to: whatever it becomes is dropped."""
    entry = Entry(like.id)
    entry.local = 0
    entry.freed = True
    return entry
