"""How lost objects come back: the tasks that made them are run again.

The owner of a stored result keeps what it needs to run its task once more: the packed frame and the entries
of its stored arguments. Not the values of these arguments: an argument that nobody refers to any more is
freed as usual, and made again, by its own lineage, when it is needed. Frames are kept up to
`limits.LINEAGE_BYTES`; beyond that the oldest are forgotten. Objects made by `put` have no task that could
make them again.

A generator is run again from its beginning up to the last of its items that is alive, also while it is still
producing; items that nobody holds are skipped there. The method of an actor is called again if
`max_task_retries` allows and the actor lives.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection, Frame
from framework._runtime.frames import frame_of
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


ENTRY_SIZE = 100  #: bytes that a record is taken to use for each object that it names


class LineageRecord:
    """What it takes to run one finished task again. It lives as long as an entry of its results, or the
    record of a task that took one of them as an argument."""

    __slots__ = (
        "__weakref__",
        "actor",
        "deps",
        "entries",
        "frame",
        "items",
        "latest",
        "retries",
        "size",
        "template",
        "unique",
    )

    def __init__(self, task: TaskRecord, retries: int, entries: list[Entry]) -> None:
        #: of the first run: the ids of what it made are derived from it
        self.unique: int = task.stands_for or task.unique
        self.latest = self.unique  #: of the last run
        self.template: Template = task.template
        self.actor = task.actor  #: the client of the actor that has to do it
        # Without attempts left, all there is to keep is the reason why it cannot be made again.
        self.frame: bytes | None = task.frame if retries else b""  #: None: forgotten for want of room
        self.deps: list[Entry] = (task.stored_deps or []) if retries else []
        self.entries = [weakref.ref(entry) for entry in entries]
        self.items: dict[int, weakref.ref[Entry]] | None = None  #: of a generator: those in the store
        self.retries = retries
        #: [bytes that it is taken to use]
        self.size = [len(self.frame or b"") + 200 + ENTRY_SIZE * (len(entries) + len(self.deps))]


class Lineage:
    """The records of this process. Methods run on the loop."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._kept: deque[weakref.ref[LineageRecord]] = deque()  #: the oldest first
        self._ended: deque[list[int]] = deque()  #: sizes of records that are gone
        self._lost: deque[Entry] = deque()  #: to be made again; a queue, for chains may be thousands long
        self._recovering = False
        self.bytes = 0
        self.handlers = {m.RECOVER: self._recover_for}

    def remember(self, task: TaskRecord, results: list[Any]) -> None:
        """A task is done. If a result lies in the store, keep what it takes to make it again."""
        if list not in set(map(type, results)):
            return
        stored = [
            entry
            for entry, wire in zip(task.entries, results, strict=False)
            if values.is_stored(wire) and not entry.freed
        ]
        if not stored:
            return
        record = self._record(task, task.entries)
        for entry in stored:
            entry.lineage = record

    def remember_item(self, task: TaskRecord, index: int, entry: Entry) -> None:
        """A generator task has made an item that lies in the store."""
        record = task.lineage
        if record is None:
            record = task.lineage = self._record(task, [])
            if type(record) is LineageRecord:
                record.items = {}
        entry.lineage = record
        if type(record) is LineageRecord and record.items is not None:
            record.items[index] = weakref.ref(entry)
            if record.frame:
                record.size[0] += ENTRY_SIZE
                self.bytes += ENTRY_SIZE

    def _record(self, task: TaskRecord, entries: list[Entry]) -> LineageRecord | Template:
        """What its results remember: how to make them again, or else what made them."""
        if task.template.options.max_retries == 0:
            return task.template
        frame_of(task, self._runtime.pack)
        record = LineageRecord(task, task.retries, entries)
        size, ended = record.size, self._ended
        self._kept.append(weakref.ref(record, lambda _: ended.append(size)))
        self.bytes += size[0]
        while ended:
            self.bytes -= ended.popleft()[0]
        self._bound()
        return record

    def _bound(self) -> None:
        while self._kept and (self.bytes > limits.LINEAGE_BYTES or self._kept[0]() is None):
            record = self._kept.popleft()()
            if record is not None:
                record.frame, record.deps = None, []
                self.bytes -= record.size[0]
                record.size[0] = 0  # its end is counted now

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
        record: LineageRecord | Template | None = entry.lineage
        object_id = entry.id.hex()
        if not isinstance(record, LineageRecord):
            self._fail(entry, ObjectLostError(object_id, _why_not(entry, record)))
        elif record.frame is None:
            self._fail(
                entry,
                ObjectReconstructionFailedLineageEvictedError(
                    object_id, "The record of the task that made it was dropped to bound memory"
                ),
            )
        elif self._runtime.submitter.tasks.get(record.latest) is not None and record.latest != record.unique:
            return  # it, or a sibling, is being made again by the same task
        elif record.retries == 0:
            most = f"{_option(record)}={record.template.options.max_retries}"
            self._fail(
                entry,
                ObjectReconstructionFailedMaxAttemptsExceededError(
                    object_id, f"{record.template.name}() was run again as often as it may be ({most})"
                ),
            )
        elif record.actor is not None and record.actor.ended:
            reason = f"The actor whose method {record.template.name}() made it is dead"
            self._fail(entry, ObjectReconstructionFailedError(object_id, f"{reason}: {record.actor.death()}"))
        else:
            self._run_again(entry, record)

    def _fail(self, entry: Entry, error: ObjectLostError) -> None:
        self._runtime.objects.fail(entry, error)

    def _run_again(self, entry: Entry, record: LineageRecord) -> None:
        """Under a number of its own: the task may still be running (a generator), and an actor takes numbers
        for the order of its calls. What it makes has the ids that it had."""
        if record.retries > 0:
            record.retries -= 1
        unique = record.latest = next(self._runtime.uniques)
        task = TaskRecord(unique, record.template, [], None)
        task.stands_for = record.unique
        task.frame = record.frame
        task.retries = record.retries
        task.stored_deps = record.deps
        task.actor = record.actor
        if record.items is None:
            task.entries = [
                found if (found := ref()) is not None else _nobody(entry) for ref in record.entries
            ]
        else:
            task.again = record
            task.entries = [entry]
        task.refs = []
        for other in task.entries:
            other.task = task
            if values.is_stored(other.value):
                self._runtime.store.made_again(other.value[1])
        self._runtime.submitter.tasks[unique] = task
        missing: dict[Entry, None] = {}
        for dep in record.deps:
            task.refs.append(self._runtime.hold(dep))
            if dep.freed:
                self._resurrect(dep)
            if dep.state != READY:
                missing[dep] = None

        def arrived(dep: Entry) -> None:
            missing.pop(dep, None)
            if task.state != WAITING:
                return
            if dep.state == FAILED:
                dep.seen = True
                error = ObjectReconstructionFailedError(
                    entry.id.hex(),
                    f"An argument of {task.template.name}(), which made it, is lost: "
                    f"{self._runtime.objects.error(dep)}",
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
            self._runtime.submitter.argument_failed(task, failed)
            return
        frame = unpack_frame(frame_of(task, self._runtime.pack))
        frame[1] = task.unique
        deps = iter(task.stored_deps or ())
        for arguments in frame[3:5]:
            for place, wire in _stored_arguments(arguments):
                dep = next(deps)
                arguments[place] = dep.value if dep.state else wire
        if task.stands_for:
            # Without the deadline, which was for the first time.
            frame[5] = {"as": task.stands_for}
            if task.again is not None:
                frame[5]["only"] = self._wanted(task, task.again)
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

    # ---- items of generators -------------------------------------------------------------------------

    @staticmethod
    def _wanted(task: TaskRecord, record: LineageRecord) -> list[int]:
        """The items that a generator is to make again: all that are alive. Some may be lost that nobody has
        missed yet; what is not lost is replaced by its like."""
        wanted, lost = [], []
        for index, ref in list((record.items or {}).items()):
            entry = ref()
            if entry is not None and not entry.freed:
                wanted.append(index)
                if not entry.state:
                    lost.append(entry)
        task.entries = lost
        for entry in lost:
            entry.task = task
        return sorted(wanted)

    def made_item(self, task: TaskRecord, index: int, value: Any) -> None:
        """A generator that runs again for its lost items has made one."""
        ref = (task.again.items or {}).get(index)
        entry = ref() if ref is not None else None
        if entry is None or entry.freed:
            self._runtime.discard(value)
        else:
            self._runtime.objects.replace(entry, value)

    def ended(self, task: TaskRecord, error: Any) -> None:
        """It has ended (error: in wire form, an exception, or None). What it has not made is lost for good;
        what was lost behind its back is tried once more."""
        record: LineageRecord = task.again
        asked = set(task.entries)
        for ref in list((record.items or {}).values()):
            entry = ref()
            if entry is None or entry.freed or entry.state:
                continue
            if error is None and entry not in asked:
                self._recover(entry)
            elif error is None:
                reason = f"{record.template.name}() did not make this item when it was run again"
                self._fail(entry, ObjectReconstructionFailedError(entry.id.hex(), reason))
            elif isinstance(error, BaseException):
                self._runtime.objects.fail(entry, error)
            else:
                self._runtime.objects.complete(entry, error)

    # ---- for others ----------------------------------------------------------------------------------

    def lost_argument(self, task: TaskRecord, object_id: bytes) -> bool:
        """A worker could not find an argument: have it made again, then the task runs. False when it is not
        ours to make.
        """
        frame = unpack_frame(frame_of(task, self._runtime.pack))
        wires = [w for arguments in frame[3:5] for _, w in _stored_arguments(arguments)]
        for wire, dep in zip(wires, task.stored_deps or (), strict=True):
            if wire[1] != object_id:
                continue
            # (Else it has been made again meanwhile, under another name or on another node.)
            if values.is_stored(dep.value) and dep.value[1] == object_id and dep.value[5] == wire[5]:
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
                self._runtime.submitter.argument_failed(task, dep)
            else:
                self._send(task)

        register(dep, arrived)

    def _recover_for(self, connection: Connection, frame: Frame) -> None:
        """A borrower could not find an object of ours."""
        _, rid, object_id, stored, node = frame
        entry = self._runtime.objects.table.get(object_id)
        if entry is None or entry.owner is not None:
            connection.fail(rid, ObjectLostError(reason="the object has been freed by its owner"))
            return
        wire = entry.value
        if values.is_stored(wire) and wire[1] == stored and wire[5] == node:
            self.recover(entry)  # (else it has been made again, under another name or on another node)

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
        self._runtime.objects.ask(entry, m.RECOVER, entry.value[1], entry.value[5])


def _stored_arguments(arguments: Any) -> list[tuple[Any, list[Any]]]:
    """(place, wire value) of those that lie in the store, in the order of `TaskRecord.stored_deps`."""
    pairs = enumerate(arguments) if type(arguments) is list else (arguments or {}).items()
    return [(p, w) for p, w in pairs if values.is_stored(w)]


def _nobody(like: Entry) -> Entry:
    """Stands for a sibling result that nobody refers to: whatever it becomes is dropped."""
    entry = Entry(like.id)
    entry.local = 0
    entry.freed = True
    return entry


def _option(what: LineageRecord | Template) -> str:
    """The name of the option that says how often it may be run again."""
    template = what if isinstance(what, Template) else what.template
    return "max_task_retries" if template.key is None else "max_retries"


def _why_not(entry: Entry, template: Template | None) -> str:
    if entry.made_by_put:
        return "An object made by put() has no task that could make it again"
    if template is None:
        return "Nothing is known that could make it again"
    if template.key is None:
        return (
            f"It was made by {template.name}(), a method of an actor, which is not called again for that "
            "(max_task_retries=0)"
        )
    return f"It was made by {template.name}(), which is not run again (max_retries=0)"
