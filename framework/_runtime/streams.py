"""Streaming generators, the consumer's side: items as they arrive, the next one for whoever asks, credits back.

A stream lives as long as the reference that stands for its task (`ObjectRefGenerator` holds it): when the last one goes,
here or in another process, the producer is stopped.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework._base.ids import TASK_ID_SIZE, object_id_bytes
from framework._net.connection import Connection, Frame
from framework._runtime.waiters import FutureWaiter, mailbox_of
from framework._serial import values
from framework._state.objects import Entry
from framework._state.streams import StreamState
from framework._state.tasks import DYNAMIC, TaskRecord
from framework._wire import messages as m
from framework.exceptions import OwnerDiedError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

FIRST_ITEM_INDEX = 2  #: index 1 is the generator itself


class _Wait:
    """Somebody waits for the next item: called by the loop when something has changed."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    def __call__(self, _: object) -> None:
        if self.lock.locked():
            self.lock.release()


class Streams:
    """All streams that this process owns, and access to those of others."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._streams: dict[bytes, tuple[StreamState, TaskRecord]] = {}
        self.handlers = {m.NEXT_ITEM: self._next_item, m.CLOSE_STREAM: self._close_stream}

    def add(self, task: TaskRecord) -> None:
        """Any thread: a streaming task has been made."""
        self._streams[task.entries[0].id] = (task.stream, task)

    # ---- from the producer (loop) --------------------------------------------------------------------

    def arrived(self, task: TaskRecord, connection: Connection, index: int, value: Any) -> None:
        """An item has come."""
        stream: StreamState = task.stream
        if index < stream.arrived:
            # A second attempt makes them again: these were counted already.
            self._send_credit(task, 1)
            return
        if stream.closed:
            return
        entry, ref = self._item(task, index)
        stream.add(index, ref)
        self._runtime.objects.complete(entry, value)
        if type(value) is list and values.nested_refs(value):
            self._runtime.objects.release_when_registered(connection, task.unique, index + FIRST_ITEM_INDEX)
        self._wake(stream)

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
            encoded = values.encode(self._runtime.dynamic_class(items))
            self._runtime.objects.complete(completion, encoded.wire)
        else:
            self._runtime.objects.complete(completion, None)
        self._wake(stream)

    def failed(self, task: TaskRecord, error: Any) -> None:
        """It has raised: the error takes the place of the next item."""
        stream: StreamState = task.stream
        objects = self._runtime.objects
        completion = task.entries[0]
        if task.template.returns != DYNAMIC:
            completion.seen = True
        if not stream.closed and not stream.finished and task.template.returns != DYNAMIC:
            entry, ref = self._item(task, stream.arrived)
            stream.add(stream.arrived, ref)
            self._set(entry, error)
        stream.finished = True
        self._runtime.submitter.settle(task)
        self._set(completion, error)
        objects.drain_drops()
        self._wake(stream)

    def _set(self, entry: Entry, error: Any) -> None:
        if isinstance(error, BaseException):
            self._runtime.objects.fail(entry, error)
        else:
            self._runtime.objects.complete(entry, error)

    def _wake(self, stream: StreamState) -> None:
        with self._lock:
            waiters, stream.waiters = stream.waiters, []
        for waiter in waiters:
            waiter(None)

    def _send_credit(self, task: TaskRecord, credits: int) -> None:
        connection = None
        if task.lease is not None:
            connection = task.lease.connection
        elif task.actor is not None:
            connection = task.actor.connection_of(task)
        if connection is not None and not connection.closed:
            connection.cast(m.CREDIT, task.unique, credits)

    # ---- to the consumer (any thread) ----------------------------------------------------------------

    def find(self, generator_ref: Any) -> StreamState | None:
        """The state of a stream that this process owns."""
        found = self._streams.get(generator_ref._entry.id)
        return found[0] if found is not None else None

    def take(self, generator_ref: Any) -> Any | None:
        """The next item if it is here; gives credit back to the producer."""
        found = self._streams.get(generator_ref._entry.id)
        return None if found is None else self._take(*found)

    def _take(self, stream: StreamState, task: TaskRecord) -> Any | None:
        with self._lock:
            ref = stream.take()
            due = stream.credits_due() if ref is not None else 0
        if due:
            self._runtime.post(self._send_credit, task, due)
        return ref

    def _listen(self, stream: StreamState, waiter: Callable[[object], None]) -> None:
        """Register first, then look: see `Entry`."""
        with self._lock:
            stream.waiters.append(waiter)
        if stream.items or stream.finished or stream.closed:
            waiter(None)

    def next_blocking(self, generator_ref: Any, timeout: float | None = None) -> Any | None:
        """The next item; None at the end. `TimeoutError` when there is none in time."""
        if generator_ref._entry.owner is not None:
            return self._runtime.run_sync(self._next_remote(generator_ref), timeout)
        found = self._streams.get(generator_ref._entry.id)
        if found is None:
            return None
        stream, task = found
        deadline = None if timeout is None else self._runtime.clock() + timeout
        while True:
            ref = self._take(stream, task)
            if ref is not None:
                return ref
            if (stream.finished and not stream.items) or stream.closed:
                return self._take(stream, task)
            wait = _Wait()
            self._listen(stream, wait)
            remaining = -1.0 if deadline is None else max(0.0, deadline - self._runtime.clock())
            with self._runtime.blocked():
                if not wait.lock.acquire(timeout=remaining):
                    raise TimeoutError("no item in time")

    async def next_async(self, generator_ref: Any) -> Any | None:
        """The next item; None at the end."""
        if generator_ref._entry.owner is not None:
            return await self._runtime.await_on_loop(self._next_remote(generator_ref))
        found = self._streams.get(generator_ref._entry.id)
        if found is None:
            return None
        stream, task = found
        loop = asyncio.get_running_loop()
        while True:
            ref = self._take(stream, task)
            if ref is not None:
                return ref
            if (stream.finished and not stream.items) or stream.closed:
                return self._take(stream, task)
            future: asyncio.Future[None] = loop.create_future()
            waiter = FutureWaiter(mailbox_of(loop), future)
            self._listen(stream, waiter)  # type: ignore[arg-type]
            try:
                await future
            except asyncio.CancelledError:
                with self._lock:
                    if waiter in stream.waiters:
                        stream.waiters.remove(waiter)
                raise

    def close(self, generator_ref: Any) -> None:
        """No more items are wanted: the producer is stopped."""
        self._runtime.post(self._close, generator_ref._entry)

    def _close(self, entry: Entry) -> None:
        if entry.owner is not None:
            connection = self._runtime.peers.existing(entry.owner)
            if connection is not None:
                connection.cast(m.CLOSE_STREAM, entry.id)
            return
        self.freed(entry.id)

    def freed(self, object_id: bytes) -> None:
        """The last reference to a generator is gone, or it was closed (loop)."""
        found = self._streams.pop(object_id, None)
        if found is None:
            return
        stream, task = found
        if task.template.returns == DYNAMIC and not stream.closed and not stream.finished:
            # Its items belong to a value that nobody wants: let it run, as any task whose result is dropped.
            return
        stream.closed = True
        stream.items.clear()
        self._wake(stream)
        if not stream.finished:
            self._runtime.submitter.cancel(task, False, False, "closed")

    # ---- streams of other processes ------------------------------------------------------------------

    async def _next_remote(self, generator_ref: Any) -> Any | None:
        entry = generator_ref._entry
        connection = self._runtime.peers.connect(entry.owner)
        if connection is None:
            raise OwnerDiedError(entry.id.hex(), "the process that owns this generator has ended")
        try:
            object_id = await connection.call(m.NEXT_ITEM, entry.id)
        except ConnectionError:
            raise OwnerDiedError(entry.id.hex(), "the process that owns this generator has ended") from None
        if object_id is None:
            return None
        ref = self._runtime.make_ref(object_id, entry.owner, registered=True)
        return ref

    def _next_item(self, connection: Connection, frame: Frame) -> None:
        _, rid, generator_id = frame
        found = self._streams.get(generator_id)
        if found is None:
            connection.reply(rid, None)
            return
        stream, task = found
        ref = self._take(stream, task)
        if ref is None and not stream.finished and not stream.closed:
            self._listen(stream, lambda _: self._runtime.post(self._next_item, connection, frame))
            return
        if ref is None or connection.closed:
            connection.reply(rid, None)
            return
        # The receiver is registered before it hears of the item: no moment without a holder.
        self._runtime.objects.table.borrow(ref._entry.id, connection)
        connection.reply(rid, ref._entry.id)

    def _close_stream(self, connection: Connection, frame: Frame) -> None:
        found = self._streams.get(frame[1])
        if found is None:
            return
        self.freed(found[1].entries[0].id)
