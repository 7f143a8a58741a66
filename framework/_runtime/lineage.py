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
from framework._state.objects import FAILED, PENDING, READY, Entry
from framework._state.tasks import WAITING, TaskRecord, Template
from framework._wire import messages as m
from framework._wire.codec import unpack_frame
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
        self._kept: deque[tuple[weakref.ref[LineageRecord], list[int]]] = deque()  #: with [its size]
        self._ended: deque[list[int]] = deque()
        self._lost: deque[Entry] = deque()  #: to be made again; a queue, for chains may be thousands long
        self._recovering = False
        self.bytes = 0
        self.handlers = {m.RECOVER: self._recover_for}

    def remember(self, task: TaskRecord, results: list[Any]) -> None:
        """A task is done. If a result lies in the store, keep what it takes to make it again."""
        if task.template.options.max_retries == 0 or task.actor is not None or task.frame is None:
            return
        stored = [
            entry
            for entry, wire in zip(task.entries, results, strict=False)
            if type(wire) is list and wire[0] == values.FORM_STORED and not entry.freed
        ]
        if not stored:
            return
        # Without attempts left, all there is to keep is the reason why it cannot be made again.
        frame, deps = (task.frame, task.stored_deps or []) if task.retries else (b"", [])
        record = LineageRecord(task.unique, task.template, frame, task.entries, deps, task.retries)
        for entry in stored:
            entry.lineage = record
        size, ended = [record.size], self._ended
        self._kept.append((weakref.ref(record, lambda _: ended.append(size)), size))
        self.bytes += record.size
        while ended:
            self.bytes -= ended.popleft()[0]
        self._bound()

    def _bound(self) -> None:
        while self._kept and (self.bytes > limits.LINEAGE_BYTES or self._kept[0][0]() is None):
            ref, size = self._kept.popleft()
            record = ref()
            if record is not None:
                record.frame, record.deps = None, []
                self.bytes -= size[0]
                size[0] = 0  # its end is counted now

    # ---- recovery ------------------------------------------------------------------------------------

    def recover(self, entry: Entry) -> None:
        """The value of an object of this process cannot be found: have it made again, or fail it with the
        reason.
        """
        if not entry.state:
            return  # it is being made
        # (The old value stays: a thread that has just seen it READY finds it, and asks again.)
        entry.state = PENDING
        self._lost.append(entry)
        if self._recovering:
            return
        self._recovering = True
        try:
            while self._lost:
                self._recover(self._lost.popleft())
        finally:
            self._recovering = False

    def _recover(self, entry: Entry) -> None:
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
            most = record.template.options.max_retries
            self._fail(
                entry,
                ObjectReconstructionFailedMaxAttemptsExceededError(
                    object_id,
                    f"{record.template.name}() was run again as often as it may be (max_retries={most})",
                ),
            )
        else:
            self._run_again(entry, record)

    @staticmethod
    def _why_not(entry: Entry) -> str:
        if entry.made_by_put:
            return "An object made by put() has no task that could make it again"
        return "What made it is not run again (max_retries=0, a method of an actor, or a generator)"

    def _fail(self, entry: Entry, error: ObjectLostError) -> None:
        self._runtime.objects.fail(entry, error)

    def _run_again(self, entry: Entry, record: LineageRecord) -> None:
        assert record.frame is not None
        running = self._runtime.submitter.tasks.get(record.unique)
        if running is not None:
            return  # a sibling is being made again by the same task
        if record.retries > 0:
            record.retries -= 1
        task = TaskRecord(record.unique, record.template, [], None)
        task.frame = record.frame
        task.retries = record.retries
        task.stored_deps = record.deps
        task.entries = [found if (found := ref()) is not None else _nobody(entry) for ref in record.entries]
        task.refs = []
        for other in task.entries:
            other.task = task
        self._runtime.submitter.tasks[record.unique] = task
        missing = set()
        for dep in record.deps:
            task.refs.append(self._runtime.hold(dep))
            if dep.freed:
                self._resurrect(dep)
            if dep.state != READY:
                missing.add(dep)

        def arrived(dep: Entry) -> None:
            missing.discard(dep)
            if task.state != WAITING:
                return
            if dep.state == FAILED:
                dep.seen = True
                error = ObjectReconstructionFailedError(
                    entry.id.hex(),
                    f"An argument of {task.template.name}(), which made it, is lost: {dep.value}",
                )
                self._runtime.submitter.fail(task, error)
            elif not missing:
                self._send(task)

        if not missing:
            self._send(task)
        for dep in list(missing):
            register(dep, arrived)

    def _send(self, task: TaskRecord) -> None:
        """All arguments are there again: their places in the store may have new names."""
        failed = next((dep for dep in task.stored_deps or () if dep.state == FAILED), None)
        if failed is not None:
            failed.seen = True
            self._runtime.submitter.fail_wire(task, failed.value)
            return
        assert task.frame is not None
        frame = unpack_frame(task.frame)
        deps = iter(task.stored_deps or ())
        for arguments in frame[3:5]:
            for place, wire in _stored_arguments(arguments):
                dep = next(deps)
                arguments[place] = dep.value if dep.state else wire
        if frame[5]:
            frame[5].pop("deadline", None)  # it was for the first time
        task.frame = self._runtime.pack(frame)
        self._runtime.submitter.ready(task)
        self._runtime.flush_soon()

    def _resurrect(self, dep: Entry) -> None:
        """An argument that was freed since: it is needed once more."""
        dep.freed = False
        if dep.owner is None:
            self._runtime.objects.table.add(dep)
            if dep.state == FAILED:
                dep.state = PENDING
                self._fail(dep, ObjectLostError(dep.id.hex(), "It had failed before"))
            else:
                self.recover(dep)
        else:
            self._runtime.objects.borrow_again(dep)

    # ---- for others ----------------------------------------------------------------------------------

    def lost_argument(self, task: TaskRecord, object_id: bytes) -> bool:
        """A worker could not find an argument: have it made again, then the task runs. False when it is not
        ours to make.
        """
        assert task.frame is not None
        names = [w[1] for arguments in unpack_frame(task.frame)[3:5] for _, w in _stored_arguments(arguments)]
        for name, dep in zip(names, task.stored_deps or (), strict=True):
            if name != object_id:
                continue
            # (Else it has been made again meanwhile, under another name.)
            if type(dep.value) is list and dep.value[0] == values.FORM_STORED and dep.value[1] == object_id:
                if dep.owner is None:
                    self.recover(dep)
                else:
                    self._ask_owner(dep)
            self._when_there(dep, task)
            return True
        return False

    def _when_there(self, dep: Entry, task: TaskRecord) -> None:
        def arrived(_: Entry) -> None:
            if task.state != WAITING:
                return  # it was cancelled
            if dep.state == FAILED:
                dep.seen = True
                self._runtime.submitter.fail_wire(task, dep.value)
            else:
                self._send(task)

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
        entry.state = PENDING
        self._runtime.objects.ask(entry, m.RECOVER)


def _stored_arguments(arguments: Any) -> list[tuple[Any, list[Any]]]:
    """(place, wire value) of those that lie in the store, in the order of `TaskRecord.stored_deps`."""
    pairs = enumerate(arguments) if type(arguments) is list else (arguments or {}).items()
    return [(p, w) for p, w in pairs if type(w) is list and w[0] == values.FORM_STORED]


def _nobody(like: Entry) -> Entry:
    """Stands for a sibling result that nobody refers to: whatever it becomes is dropped."""
    entry = Entry(like.id)
    entry.local = 0
    entry.freed = True
    return entry
