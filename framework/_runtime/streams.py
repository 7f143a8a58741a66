"""Streaming generators, the consumer's side: items as they arrive, the next one for whoever asks, credits
back.

A stream lives as long as the reference that stands for its task (`ObjectRefGenerator` holds it): when the
last one goes, here or in another process, the producer is stopped.

A process that was handed a generator has a `_Mirror` of it: it asks the owner for one item per consumer that
waits, and what comes for a consumer that has given up is for the next. It says with that how many items it
has received: when the connection is lost, the owner takes back those that have not arrived (`_Reader`).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import TASK_ID_SIZE, object_id_bytes
from framework._net.connection import Connection, Frame
from framework._runtime.waiters import FutureWaiter, ThreadWaiter, mailbox_of
from framework._serial import values
from framework._state.objects import READY, Entry
from framework._state.streams import StreamState
from framework._state.tasks import DYNAMIC, SENT, TaskRecord
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import OwnerDiedError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

FIRST_ITEM_INDEX = 2  #: index 1 is the generator itself

Waiter = Callable[[Any], object]


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.pack = new_packer()


class _Mirror:
    """A stream of another process."""

    __slots__ = ("asked", "error", "id", "number", "owner", "stream")

    def __init__(self, entry: Entry, number: int) -> None:
        assert entry.owner is not None
        self.id = entry.id
        self.number = number  #: of those that this process has had
        self.owner: str = entry.owner
        self.stream = StreamState(-1)
        self.asked = 0  #: calls for an item that are on their way
        self.error: BaseException | None = None  #: why there are no more


class _Reader:
    """What the mirror of another process was sent."""

    __slots__ = ("items", "number", "received")

    def __init__(self, number: int) -> None:
        self.number = number  #: of that mirror
        self.received = 0  #: items that have arrived there, as far as is known
        self.items: deque[bytes] = deque()  #: those after them

    def has_received(self, count: int) -> None:
        while self.received < count and self.items:
            self.received += 1
            self.items.popleft()


class Streams:
    """All streams that this process owns, and access to those of others."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.RLock()  #: (a signal handler may come back to it)
        self._thread = _PerThread()
        self._streams: dict[bytes, tuple[StreamState, TaskRecord]] = {}
        self._mirrors: dict[bytes, _Mirror] = {}
        self._mirrors_made = itertools.count()
        #: by generator, and by process (as a borrower)
        self._readers: dict[bytes, dict[Hashable, _Reader]] = {}
        #: where `freed` looks: there is nothing to be told while they are empty
        self.tables: tuple[dict[bytes, Any], ...] = (self._streams, self._mirrors, self._readers)
        self.handlers = {m.NEXT_ITEM: self._next_item, m.CLOSE_STREAM: self._close_stream}

    def add(self, task: TaskRecord) -> None:
        """Any thread: a streaming task has been made."""
        self._streams[task.entries[0].id] = (task.stream, task)

    # ---- from the producer (loop) --------------------------------------------------------------------

    def arrived(self, task: TaskRecord, connection: Connection, index: int, value: Any) -> None:
        """An item has come."""
        stream: StreamState = task.stream
        if task.lost and values.is_stored(value):  # an earlier attempt may have put it elsewhere
            self._runtime.store.made_again(value[1])
        if stream.expects(index):
            entry, ref = self._item(task, index)
            stream.add(index, ref)
            self._runtime.objects.complete(entry, value)
            if values.is_stored(value):
                self._runtime.lineage.remember_item(task, index, entry)
        else:
            stream.add(index, None)  # made again by a second attempt, or no longer wanted
            item_id = object_id_bytes(task.entries[0].id[:TASK_ID_SIZE], index + FIRST_ITEM_INDEX)
            known = self._runtime.objects.table.get(item_id)
            if known is None:
                self._runtime.discard(value)
            else:
                self._runtime.objects.complete(known, value)  # it may have been lost meanwhile
        self.release(connection, task.unique, index, value)
        if index == 0:
            self._send_credit(task)
        self._wake(stream)

    def all_arrived(self, task: TaskRecord, index: int, wires: list[Any]) -> bool:
        """Items that follow on each other have come. False when some are not new, or not plain values: then
        they are to be taken in one by one."""
        stream: StreamState = task.stream
        if task.lost or not stream.expects(index) or list in set(map(type, wires)):
            return False
        runtime, entries = self._runtime, self._runtime.objects.table.entries
        new, ref_class = object.__new__, runtime.ref_class
        task_id = task.entries[0].id[:TASK_ID_SIZE]
        number = index + FIRST_ITEM_INDEX
        refs = []
        for wire in wires:
            item_id = task_id + number.to_bytes(4, "little")
            number += 1
            entry = entries[item_id] = Entry(item_id)
            entry.value = wire
            entry.state = READY
            ref = new(ref_class)  # as `ref_of`, which finds the runtime each time
            ref._entry = entry
            ref._runtime = runtime
            refs.append(ref)
        stream.add_all(index, refs)
        if index == 0:
            self._send_credit(task)
        self._wake(stream)
        return True

    def unwanted(self, connection: Connection, unique: int, index: int, value: Any) -> None:
        """An item of a task that has been given up."""
        self._runtime.discard(value)
        self.release(connection, unique, index, value)

    def release(self, connection: Connection, unique: int, index: int, value: Any) -> None:
        """The producer need not keep the references in an item any more."""
        if type(value) is list and values.nested_refs(value):
            place = index + FIRST_ITEM_INDEX
            self._runtime.objects.release_when_registered(connection, unique, place)

    def _item(self, task: TaskRecord, index: int) -> tuple[Entry, Any]:
        task_id = task.entries[0].id[:TASK_ID_SIZE]
        entry = self._runtime.objects.new(object_id_bytes(task_id, index + FIRST_ITEM_INDEX))
        return entry, self._runtime.ref_of(entry)

    def finished(self, task: TaskRecord, count: Any) -> None:
        """The generator has returned."""
        stream: StreamState = task.stream
        stream.finished = True
        self._runtime.submitter.settle(task)
        completion = task.entries[0]
        if task.template.returns == DYNAMIC:
            items = list(stream.items)
            stream.items.clear()
            encoded = values.encode(self._runtime.dynamic_class(items))
            self._runtime.objects.complete(completion, encoded.wire)
        else:
            self._runtime.objects.complete(completion, None)
        self._wake(stream)

    def failed(self, task: TaskRecord, error: Any) -> None:
        """It has raised: the error takes the place of the next item."""
        stream: StreamState = task.stream
        completion = task.entries[0]
        if task.template.returns == DYNAMIC:
            stream.items.clear()
        else:
            completion.seen = True
            if not stream.closed and not stream.finished:
                entry, ref = self._item(task, stream.arrived)
                stream.add(stream.arrived, ref)
                self._set(entry, error)
        stream.finished = True
        self._runtime.submitter.settle(task)
        self._set(completion, error)
        self._wake(stream)

    def _set(self, entry: Entry, error: Any) -> None:
        if isinstance(error, BaseException):
            self._runtime.objects.fail(entry, error)
        else:
            self._runtime.objects.complete(entry, error)

    def _wake(self, stream: StreamState) -> None:
        if stream.waiters:
            with self._lock:
                waiters, stream.waiters = stream.waiters, []
            for waiter in waiters:
                waiter(None)

    def _send_credit(self, task: TaskRecord) -> None:
        """Any thread: give the producer the credits that are due. (A thread that takes items says so itself:
        the loop would only get the interpreter when that one has nothing left to take.)

        With the lock, under which attempts change too (`restart`): what is sent here reaches the attempt that
        it is for, or nobody. Ctrl-C may strike at any line, and credits that are lost would be a producer
        that waits for ever: they count as given after they have been buffered, and are written by the loop if
        not by this thread."""
        stream: StreamState = task.stream
        due = stream.owed()
        if not due:
            return
        frame = self._thread.pack((m.CREDIT, task.unique, due))
        connection = None
        try:
            with self._lock:
                if stream.owed() == due:  # else whoever has changed that sees to it
                    connection = self._producer_of(task)
                    if connection is not None:
                        connection.buffer(frame)
                    stream.granted += due
            if connection is not None:
                connection.flush()
        except BaseException:
            if connection is not None:
                self._runtime.post(connection.flush)
            raise

    def restart(self, stream: StreamState) -> None:
        """Loop: its task is to be tried again."""
        with self._lock:
            stream.restart()

    @staticmethod
    def _producer_of(task: TaskRecord) -> Connection | None:
        connection = None
        lease, actor = task.lease, task.actor
        if lease is not None:
            connection = lease.connection
        elif actor is not None:
            connection = actor.connection_of(task)
        return connection if connection is not None and not connection.closed else None

    # ---- to the consumer (any thread) ----------------------------------------------------------------

    def _find(self, generator_ref: Any) -> tuple[StreamState | None, TaskRecord | _Mirror | None]:
        entry: Entry = generator_ref._entry
        found = self._streams.get(entry.id)
        if found is not None:
            return found
        if entry.owner is None:
            return None, None
        with self._lock:
            mirror = self._mirrors.get(entry.id)
            if mirror is None:
                mirror = self._mirrors[entry.id] = _Mirror(entry, next(self._mirrors_made))
        return mirror.stream, mirror

    def _take(self, stream: StreamState, source: TaskRecord | _Mirror | None) -> Any | None:
        with self._lock:
            ref = stream.take()
        if isinstance(source, _Mirror):
            if ref is None and stream.ended and source.error is not None:
                raise source.error
        elif ref is not None and source is not None and stream.owed():
            self._send_credit(source)
        return ref

    def take_here(self, entry: Entry) -> Any | None:
        """The next item of a generator of this process, if it is here. Any thread."""
        found = self._streams.get(entry.id)
        if found is None:
            return None
        stream, task = found
        with self._lock:  # `StreamState.take`
            if not stream.items:
                return None
            stream.taken += 1
            ref = stream.items.popleft()
        # (What most items end at without a call; the rule is in `owed`.)
        if (stream.taken - stream.granted) * 2 >= stream.window >= 0 and stream.owed():
            self._send_credit(task)
        return ref

    def _listen(self, stream: StreamState, source: TaskRecord | _Mirror | None, waiter: Waiter) -> None:
        """Register first, then look: see `Entry`."""
        with self._lock:
            stream.waiters.append(waiter)
        if stream.items or stream.finished or stream.closed:
            waiter(None)
        elif isinstance(source, _Mirror):
            self._runtime.post(self._ask, source)

    def _forget(self, stream: StreamState, waiter: Waiter) -> None:
        with self._lock:
            if waiter in stream.waiters:
                stream.waiters.remove(waiter)

    def ready(self, generator_ref: Any) -> bool:
        """Whether the next item is here, or there will be none. A generator of another process is asked: look
        again later."""
        stream, source = self._find(generator_ref)
        if stream is None or stream.items or stream.ended:
            return True
        if isinstance(source, _Mirror):
            self._runtime.post(self._ask, source, 1)
        return False

    def ended(self, generator_ref: Any) -> bool:
        """Whether there is no next item and never will be one."""
        stream, _ = self._find(generator_ref)
        return stream is None or stream.ended

    def readiness(self, generator_ref: Any) -> Entry:
        """An entry of no object, which is done when the next item is here or there will be none: for
        `wait`."""
        entry = Entry(generator_ref._entry.id)
        stream, source = self._find(generator_ref)
        if stream is None or stream.items or stream.ended:
            self._runtime.objects.complete(entry, None)
        else:
            complete = self._runtime.objects.complete
            self._listen(stream, source, lambda _: self._runtime.post(complete, entry, None))
        return entry

    def next_blocking(self, generator_ref: Any) -> Any | None:
        """The next item; None at the end. Blocks this thread."""
        stream, source = self._find(generator_ref)
        while stream is not None:
            ref = self._take(stream, source)
            if ref is not None:
                return ref
            if stream.ended:
                return self._take(stream, source)
            waiter = ThreadWaiter((), 0, False)
            self._listen(stream, source, waiter)
            try:
                with self._runtime.waiting.blocked():
                    waiter.wait(None)
            finally:
                self._forget(stream, waiter)
        return None

    async def next_async(self, generator_ref: Any) -> Any | None:
        """The next item; None at the end. On any loop."""
        stream, source = self._find(generator_ref)
        while stream is not None:
            ref = self._take(stream, source)
            if ref is not None:
                return ref
            if stream.ended:
                return self._take(stream, source)
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            waiter = FutureWaiter(mailbox_of(loop), future)
            self._listen(stream, source, waiter)
            try:
                with self._runtime.waiting.blocked():
                    await future
            finally:
                self._forget(stream, waiter)
        return None

    # ---- the end -------------------------------------------------------------------------------------

    def close(self, generator_ref: Any) -> None:
        """Any thread: no more items are wanted: the producer is stopped."""
        self._runtime.post(self._close, generator_ref._entry)

    def _close(self, entry: Entry) -> None:
        if entry.owner is None:
            self.freed(entry.id)
            return
        connection = self._runtime.peers.connect(entry.owner)
        if connection is not None:
            connection.cast(m.CLOSE_STREAM, entry.id)
        self.freed(entry.id)

    def freed(self, object_id: bytes) -> None:
        """Loop: the last reference to a generator in this process is gone, or it was closed."""
        mirror = self._mirrors.pop(object_id, None)
        if mirror is not None:
            self._discard(mirror.stream)
        self._readers.pop(object_id, None)
        found = self._streams.pop(object_id, None)
        if found is None:
            return
        stream, task = found
        self._discard(stream)
        if not stream.finished:
            self._runtime.submitter.cancel(task, False, False, "closed")
            self._runtime.loop.call_later(limits.STREAM_CLOSE_GRACE, self._interrupt, task)

    def _discard(self, stream: StreamState) -> None:
        stream.closed = True
        stream.items.clear()
        self._wake(stream)

    def _interrupt(self, task: TaskRecord) -> None:
        """The producer was told to stop at its next `yield` and has not come to one: as `cancel` does."""
        connection = self._producer_of(task)
        if task.state == SENT and connection is not None:
            connection.cast(m.CANCEL, task.unique, False, False, "its generator was closed")

    # ---- streams of other processes (loop) -----------------------------------------------------------

    def _ask(self, mirror: _Mirror, least: int = 0) -> None:
        stream = mirror.stream
        while not stream.finished and not stream.closed and mirror.asked < max(len(stream.waiters), least):
            connection = self._runtime.peers.connect(mirror.owner)
            if connection is None:
                self._lost(mirror)
                return
            mirror.asked += 1
            connection.state.borrows = True
            answer = connection.call(m.NEXT_ITEM, mirror.id, mirror.number, stream.arrived)
            answer.add_done_callback(functools.partial(self._answered, mirror, connection))

    def _answered(self, mirror: _Mirror, connection: Connection, future: asyncio.Future[Any]) -> None:
        mirror.asked -= 1
        stream = mirror.stream
        if future.cancelled():
            return
        if isinstance(future.exception(), ConnectionError):
            if self._runtime.peers.is_over(connection):
                self._lost(mirror)
            else:
                self._ask(mirror)
            return
        object_id = future.result()
        if object_id is None:
            stream.finished = True
        else:
            # (If the stream was closed meanwhile, it is dropped at once, and its owner told.)
            ref = self._runtime.make_ref(object_id, mirror.owner, registered=True)
            stream.add(stream.arrived, ref)
        self._wake(stream)

    def _lost(self, mirror: _Mirror) -> None:
        mirror.error = OwnerDiedError(mirror.id.hex(), "the process that owns this generator has ended")
        mirror.stream.finished = True
        self._wake(mirror.stream)

    def read_from(self, owner: str) -> list[list[Any]]:
        """What this process has received of the streams of another one, for `read_again` there."""
        mirrors = [mirror for mirror in list(self._mirrors.values()) if mirror.owner == owner]
        return [[mirror.id, mirror.number, mirror.stream.arrived] for mirror in mirrors]

    def read_again(self, borrower: Hashable, said: list[list[Any]]) -> None:
        """The connection to a process was lost that reads streams of this one, and it says how far it is:
        what has not arrived is for whoever asks next."""
        received = {generator_id: (number, count) for generator_id, number, count in said}
        for generator_id, readers in self._readers.items():
            reader = readers.get(borrower)
            if reader is None:
                continue
            number, count = received.get(generator_id, (-1, 0))
            if number != reader.number:
                del readers[borrower]  # it does not read it any more
                continue
            reader.has_received(count)
            stream, _ = self._streams[generator_id]
            table = self._runtime.objects.table
            lost = [entry for item in reader.items if (entry := table.get(item)) is not None]
            reader.items.clear()
            with self._lock:
                stream.untake([self._runtime.hold(entry) for entry in lost])
            self._wake(stream)

    def reader_lost(self, borrower: Hashable) -> None:
        """That process has ended."""
        for readers in self._readers.values():
            readers.pop(borrower, None)

    def _next_item(self, connection: Connection, frame: Frame) -> None:
        _, rid, generator_id, number, received = frame
        if connection.closed:
            return
        found = self._streams.get(generator_id)
        if found is None:
            connection.reply(rid, None)
            return
        stream, task = found
        borrower = self._runtime.objects.borrower(connection)
        readers = self._readers.setdefault(generator_id, {})
        reader = readers.get(borrower)
        if reader is None or reader.number != number:
            reader = readers[borrower] = _Reader(number)
        reader.has_received(received)
        ref = self._take(stream, task)
        if ref is not None:
            # The receiver is registered before it hears of the item: no moment without a holder.
            self._runtime.objects.table.borrow(ref._entry.id, borrower)
            reader.items.append(ref._entry.id)
            connection.reply(rid, ref._entry.id)
        elif stream.ended:
            connection.reply(rid, None)
        else:
            self._listen(stream, task, lambda _: self._runtime.post(self._next_item, connection, frame))

    def _close_stream(self, connection: Connection, frame: Frame) -> None:
        self.freed(frame[1])
