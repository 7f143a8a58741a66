"""The runtime of a driver or worker: one background thread with a loop, on which the owner's services live.

User threads talk to it by posting to its mailbox and by waiting for entries; user code never runs on its
loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from framework._base import limits
from framework._base.ids import FIRST_PUT_INDEX, object_id_bytes, task_id_bytes, task_scope
from framework._net.connection import Connection, Frame, Handler
from framework._net.listener import hello
from framework._runtime.actors import Actors
from framework._runtime.catalogue import Catalogue
from framework._runtime.config import Config
from framework._runtime.context import current_task
from framework._runtime.direct import Direct
from framework._runtime.head import HeadLink
from framework._runtime.leasing import Leasing
from framework._runtime.lineage import Lineage
from framework._runtime.listing import Listing
from framework._runtime.objects import Objects
from framework._runtime.peers import Peers, own_address
from framework._runtime.sites import call_site
from framework._runtime.store import RuntimeStore
from framework._runtime.streams import Streams
from framework._runtime.submit import Submitter
from framework._runtime.waiters import ThreadWaiter
from framework._runtime.waiting import Waiting
from framework._serial import values
from framework._serial.errors import error_to_wire
from framework._serial.private import decode_private
from framework._serial.refs import set_out_of_band_hook
from framework._service.mailbox import Mailbox
from framework._service.serving import new_loop
from framework._service.supervise import TaskGroupOfService
from framework._state.objects import FAILED, READY, Entry
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import (
    LocalNodeDiedError,
    NotInitializedError,
    ObjectLostError,
    TaskCancelledError,
)

if TYPE_CHECKING:
    from framework._runtime.groups import Groups
    from framework._runtime.presence import Presence

log = logging.getLogger("framework")
T = TypeVar("T")


class Runtime:
    """Composition of the owner's services, and the bridge from user threads to their loop."""

    def __init__(
        self,
        config: Config,
        *,
        ref_class: type[Any],
        ref_of: Callable[[Entry], Any],
        dynamic_class: Callable[[list[Any]], Any],
    ) -> None:
        self.config = config
        self.pid = os.getpid()
        self.session_dir = config.session_dir
        self.socket_dir = os.path.join(config.session_dir, "sockets")
        self.worker_id = config.worker_id
        self.address, tcp_sock = own_address(config)
        self.ref_class = ref_class
        self.ref_of = ref_of
        self.dynamic_class = dynamic_class
        self.loop = new_loop()
        self.pack = new_packer()  #: for the loop's thread
        self.mailbox = Mailbox(self.loop)
        self._random = random.Random(os.urandom(16))
        self.random = self._random.random
        self.clock = time.monotonic  #: the loop's clock, but never stale: uvloop's own is read once per turn
        #: numbers of tasks, from a random one that is so low that 64 bits suffice for all
        self.uniques = itertools.count(int.from_bytes(os.urandom(8), "little") >> 1)
        self._put_task = int.from_bytes(os.urandom(8), "little")
        self._put_index = itertools.count(FIRST_PUT_INDEX)
        self.node: Connection | None = None
        self.node_gone = asyncio.Event()  #: for the loop's thread
        self.dead: BaseException | None = None
        self.actor_host: Any = None  #: the actor that lives in this process
        self.node_facts: dict[str, Any] = {}
        self.closing = False
        self._groups: Groups | None = None
        self._lock = threading.Lock()
        self.captures = False  #: what code here starts may have to run in its placement group
        self.waiting = Waiting(self)
        self.listing = Listing(self)
        self.store = RuntimeStore(self)
        self.objects = Objects(self)
        self.catalogue = Catalogue()
        self.submitter = Submitter(self)
        self.leasing = Leasing(self)
        self.lineage = Lineage(self)
        self.presence = self._make_presence()
        self.streams = Streams(self)
        self.actors = Actors(self)
        self.direct = Direct(self)
        self.background = TaskGroupOfService(self.loop, "runtime")
        self.peer_handlers: dict[int, Handler] = {
            **self.objects.handlers,
            **self.submitter.handlers,
            **self.leasing.handlers,
            **self.streams.handlers,
            **self.lineage.handlers,
            m.CANCEL_REF: self._cancel_ref,
            **self.listing.handlers,
        }
        self.node_handlers: dict[int, Handler] = {
            **self.leasing.node_handlers,
            **self.store.node_handlers,
            m.WELCOME: self._node_welcome,
        }
        self.head_link = HeadLink(self)
        self.peers = Peers(self, self._peer_lost, tcp_sock)
        self.peer_handlers[m.WELCOME] = self.peers.welcome
        self.node_handlers[m.NODE_ENDS] = lambda _, frame: self.node_facts.update(end=frame[1])
        self.node_handlers[m.NODE_GONE] = lambda _, frame: self.peers.node_gone(frame[1], frame[2])
        self.on_blocked: Callable[[], None] | None = None  #: a thread of a running task begins to wait
        self.on_unblocked: Callable[[], None] | None = None
        self.on_peer_joined: Callable[[Connection], None] | None = None
        self.on_peer_lost: Callable[[Connection], None] | None = None
        self.on_node_lost: Callable[[], None] | None = None
        self.node_ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._tick = limits.DROP_TICK
        self._tick_timer: asyncio.TimerHandle | None = None
        self._flush_scheduled = False
        self._drain_scheduled = False
        self._pinned: list[Any] = []
        self.thread = threading.Thread(target=self._run, name="framework-runtime", daemon=True)

    def _make_presence(self) -> Presence | None:
        if self.config.cluster is None:
            return None
        from framework._runtime.presence import Presence

        return Presence(self)

    # ---- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the loop's thread."""
        set_out_of_band_hook(self._pinned.append)
        self.thread.start()
        self.post(self._on_tick)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            with contextlib.suppress(Exception):
                self.loop.close()

    def listen(self) -> None:
        """On the loop: let other processes connect to this one."""
        self.peers.listen()

    def attach_node(self, sock: Any) -> Connection:
        """On the loop: speak to the node over this socket."""
        node = Connection(
            self.loop,
            sock,
            self.node_handlers,
            on_close=self._node_lost,
            on_batch=self.after_batch,
            name="the node",
        )
        node.state = {}
        self.node = node
        kind = "driver" if self.config.is_driver else "worker"
        node.cast(*hello(kind, self.worker_id, self.address, self.job_info()))
        self.leasing.node_connected()
        return node

    @property
    def head(self) -> Connection | None:
        """The connection to the head, if there ever was one. In a cluster it may be still `opening`."""
        return self.head_link.connection

    def attach_head(self, sock: Any) -> Connection:
        """On the loop: speak to the head over this socket."""
        return self.head_link.attach(sock)

    def connect_head(self) -> Connection | None:
        """On the loop: the connection to the head, made when first needed; None when there is none. In a
        cluster whose head is away, what is sent waits for it; calls that must survive that are those of
        `head_call` and `head_link.request`."""
        return self.head_link.connect()

    def job_info(self) -> dict[str, object]:
        """What other processes must know of the job that this one works for."""
        return {"job": self.config.job, "log_to_driver": self.config.log_to_driver, **self.config.job_facts}

    def _node_welcome(self, connection: Connection, frame: Frame) -> None:
        self.node_facts = frame[3]
        self.config.node_id = frame[3].get("node_id", self.config.node_id)
        for node_id, reason in frame[3].get("gone", ()):
            self.peers.node_gone(node_id, reason)
        if not self.node_ready.done():
            self.node_ready.set_result(None)

    def _node_lost(self, connection: Connection) -> None:
        self.node_gone.set()
        if self.closing:
            return
        what = "has died" if self.node_ready.done() else "did not start"
        if "end" in self.node_facts:
            what = f"has ended ({self.node_facts['end']})"
        error = LocalNodeDiedError(
            f"the node process of this session {what}: nothing more can run. Call framework.shutdown() and "
            f"framework.init() to start anew; its log is in {self.session_dir}/logs"
        )
        self.dead = error
        if not self.node_ready.done():
            self.node_ready.set_exception(error)
        self.submitter.node_lost(error)
        self.actors.head_lost(error)
        if self._groups is not None:
            self._groups.lost(error)
        for entry in list(self.objects.table.entries.values()):
            if not entry.state and entry.owner is not None:
                self.objects.fail(entry, error)
        if self.on_node_lost is not None:
            self.on_node_lost()

    def stop(self) -> None:
        """Any thread but the loop's: end all connections and the loop; whoever waits gets an error."""
        self.closing = True
        done = threading.Event()

        def finish() -> None:
            try:
                error = NotInitializedError("framework.shutdown() was called")
                self.dead = self.dead or error
                self.submitter.node_lost(error)  # type: ignore[arg-type]
                for entry in list(self.objects.table.entries.values()):
                    if not entry.state:
                        entry.seen = True
                        self.objects.fail(entry, error)
                self.leasing.close()
                if self._tick_timer is not None:
                    self._tick_timer.cancel()
                self.background.cancel()
                self.store.close()
                self.peers.close()
                if self.node is not None:
                    self.node.close()
                self.head_link.close()
                self.direct.close()
            finally:
                done.set()
                leave()

        def leave(turns: int = 5) -> None:
            # Whoever waits in another thread hears of the end through a few futures, each a turn later.
            self.loop.call_soon(leave, turns - 1) if turns else self.loop.stop()

        self.post(finish)
        done.wait(limits.SHUTDOWN_GRACE)
        with contextlib.suppress(RuntimeError):  # Ctrl-C came before the thread had started
            self.thread.join(limits.SHUTDOWN_GRACE)
        self.waiting.close()
        set_out_of_band_hook(None)

    @property
    def groups(self) -> Groups:
        """Any thread: placement groups; loaded on first use."""
        groups = self._groups
        if groups is None:
            from framework._runtime.groups import Groups

            with self._lock:
                groups = self._groups = self._groups or Groups(self)
        return groups

    @property
    def has_groups(self) -> bool:
        """Whether this process has had to do with placement groups."""
        return self._groups is not None

    # ---- the bridge ----------------------------------------------------------------------------------

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Any thread: have it called on the loop."""
        self.mailbox.post(function, *args)

    def wake(self, function: Callable[[], object]) -> None:
        """Any thread: as `post`, without a tuple, for the hot path."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function)

    def run_sync(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Any thread but the loop's: run a coroutine on the loop and wait for it."""
        waiter = ThreadWaiter((), 0, False)
        begun: list[asyncio.Task[T]] = []

        def begin() -> None:
            begun.append(task := self.loop.create_task(coroutine))
            task.add_done_callback(done)

        def done(task: asyncio.Task[T]) -> None:
            task.cancelled() or task.exception()  # it is not to be logged where Ctrl-C has ended the waiting
            waiter.wake()

        self.loop.call_soon_threadsafe(begin)
        with self.waiting.blocked():
            if not waiter.wait(timeout):
                self.loop.call_soon_threadsafe(lambda: begun[0].cancel())
                raise TimeoutError
        task = begun.pop()
        try:
            if task.cancelled():
                raise concurrent.futures.CancelledError
            return task.result()
        finally:
            # The traceback of its exception names this frame: a circle would keep all that callers have.
            del task

    async def await_on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """From a coroutine on any loop: run another on the runtime's loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def head_call(self, opcode: int, *fields: object) -> Any:
        """Any thread but the loop's: a call to the head, and its answer. In a cluster it waits for a head
        that is away, and is made again when that went before it answered."""
        return self.run_sync(self.head_link.call(opcode, *fields))

    async def head_call_async(self, opcode: int, *fields: object) -> Any:
        """From a coroutine on any loop: a call to the head, and its answer."""
        return await self.await_on_loop(self.head_link.call(opcode, *fields))

    def after_batch(self) -> None:
        """All frames of one read have been handled."""
        if self.submitter.waiting:
            self.submitter.take_in()  # workers may wait for that
        else:
            self.flush()
        drops = self.objects.drops
        if len(drops) > limits.DROPS_AT_ONCE:
            self.objects.drain_drops()
        elif drops and not self._drain_scheduled:
            # Whoever was waiting for this batch comes first: nobody waits for what is dropped.
            self._drain_scheduled = True
            self.loop.call_later(limits.DROPS_WAIT, self._drain)

    def _drain(self) -> None:
        self._drain_scheduled = False
        self.objects.drain_drops()

    def flush_soon(self) -> None:
        """On the loop, outside of a batch: `flush` in the next turn."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        """On the loop: send what has become ready."""
        self.leasing.flush()
        if self.actors.dirty:
            self.actors.flush()

    def _on_tick(self) -> None:
        """Dropped references cannot wake the loop (they may be dropped inside of the garbage collector): look
        now and then, less often when nothing happens."""
        self.direct.look()
        self.waiting.distinct = []
        if self.store.client.waiting:
            self.store.client.drain()
        if self.catalogue.ended or self.catalogue.keys_ended:
            self.catalogue.tell_ended(self.node, self.peers.outgoing())
        if self.objects.drops:
            self._tick = limits.DROP_TICK
            self.objects.drain_drops()
        else:
            self._tick = min(self._tick * 1.5, limits.DROP_TICK_MAX)
        self._tick_timer = self.loop.call_later(self._tick, self._on_tick)

    # ---- references ----------------------------------------------------------------------------------

    def make_ref(self, object_id: bytes, owner: str, registered: bool = False) -> Any:
        """Any thread: a reference to an object that is named by its id."""
        entry = self.objects.handle(object_id, owner)
        if registered and entry.owner is not None:
            entry.registered = True
        return self.ref_of(entry)

    def in_task(self) -> bool:
        """Whether this thread or asyncio task executes a remote task (and is not the driver's)."""
        # A callback of the runtime's loop runs in the context of whoever made its connection, or posted it.
        return current_task.get() is not None and threading.get_ident() != self.thread.ident

    def put(self, value: Any) -> Any:
        """Any thread: a reference to a copy of `value`; an array made by `framework.empty` is taken as it
        is.
        """
        if isinstance(value, self.ref_class):
            raise TypeError(
                "put() of an ObjectRef is not allowed: it is a reference already. To store the reference "
                "itself, put it "
                "into a list: put([ref])"
            )
        sealed = self.store.seal_array(value, self.worker_id, self.address)
        if sealed is not None:
            return self._put_wire(sealed[1], sealed, None)
        return self.put_encoded(values.encode(value, where="the value of put()"))

    def new_object_id(self) -> bytes:
        """Any thread: the id of an object that this process puts."""
        scope = task_scope(self.config.job)
        return object_id_bytes(task_id_bytes(self._put_task, scope), next(self._put_index) & 0xFFFFFFFF)

    def put_encoded(self, encoded: values.Encoded) -> Any:
        """Any thread: store an encoded value: large ones in the store of the node, small ones here.

        On a user's event loop nothing may block: there a value that finds no room at hand stays in this
        process.
        """
        object_id = self.new_object_id()
        if encoded.size > limits.INLINE_LIMIT and self._may_store(encoded.size):
            wire = self.store.put(object_id, encoded, self.worker_id, self.address)
            return self._put_wire(object_id, wire, encoded.refs)
        encoded.own()
        return self._put_wire(object_id, encoded.wire, encoded.refs)

    def _may_store(self, size: int) -> bool:
        if threading.current_thread() is self.thread:
            return False
        return asyncio._get_running_loop() is None or self.store.client.has_room(size)

    def _put_wire(self, object_id: bytes, wire: Any, refs: list[Any] | None) -> Any:
        entry = self.objects.new(object_id)
        entry.contained = refs or None
        entry.made_by_put = True
        entry.site = call_site()
        entry.value = wire
        entry.state = READY
        return self.ref_of(entry)

    def entries_freed(self, entries: list[Entry]) -> None:
        """On the loop: nobody holds these objects of ours any more."""
        streams: list[Any] = [table for table in self.streams.tables if table]
        creations = self.actors.creations
        if creations:
            streams.append(creations)
        for entry in entries:
            state = entry.state
            if state == FAILED and not entry.seen:
                self.unhandled(entry)
            if type(entry.value) is list:
                self.discard(entry.value)
            for table in streams:
                if entry.id in table:
                    self.streams.freed(entry.id)
                    if entry.id in creations:
                        self.actors.freed(entry.id)
                    break
            if state == READY:
                entry.value = None

    def discard(self, wire: Any) -> None:
        """On the loop: a value of this process is not needed any more."""
        if type(wire) is list and wire[0] == values.FORM_STORED:
            self.store.free(wire)

    def unhandled(self, entry: Entry) -> None:
        """On the loop: nobody can look at this failure any more: it is logged."""
        if entry.seen:
            return
        error = self.objects.error(entry)
        if (
            not self.config.is_driver
            or self.closing
            or isinstance(error, TaskCancelledError | NotInitializedError)
        ):
            return
        log.error(
            "a task failed and nobody looked at its result (get or await the reference to handle the "
            "error):\n%s",
            str(error),  # not the error itself: whoever keeps log records would keep what is inside of it
        )

    def wire_error(self, error: BaseException, name: str) -> list[Any]:
        """Any thread: an exception of this process in wire form."""
        return error_to_wire(error, function_name=name, pid=self.pid, ip=self.config.node_ip)

    # ---- waiting -------------------------------------------------------------------------------------

    def value(self, entry: Entry, private: bool = False) -> Any:
        """Any thread: the value of an object that is done, or its exception raised. `private`: in memory of
        its own, writable.
        """
        if entry.state != FAILED:  # (one that has been lost meanwhile is PENDING again)
            entry.seen = True
            wire = entry.value
            kind = type(wire)
            if kind in values.ATOM_TYPES:
                return wire
            if kind is list:
                if wire[0] == values.FORM_STORED:
                    return self._stored_value(entry, private)
                return self.decode(wire, private, self.objects.contained_in(entry, wire))
            if not isinstance(wire, BaseException):  # (it may have been lost for good just now)
                return decode_private(wire) if private else values.decode(wire)
        raise self.objects.error(entry)

    def values(self, entries: list[Entry], private: bool = False) -> list[Any]:
        """Any thread but the loop's: the values of objects that are done; the first exception, if any."""
        for entry in entries:
            if entry.state == FAILED:
                for other in entries:
                    other.seen = True  # somebody has asked for it, and hears of one failure
                raise self.objects.error(entry)
        if not private and list not in set(map(type, (wires := [entry.value for entry in entries]))):
            for entry in entries:
                entry.seen = True
            return values.decode_all(wires)
        found: list[Any] = [None] * len(entries)
        for position in self.store.in_batches([entry.value for entry in entries]):
            found[position] = self.value(entries[position], private)
        return found

    def _stored_value(self, entry: Entry, private: bool = False) -> Any:
        contained_in = self.objects.contained_in
        return self._found(entry, lambda wire: self.decode(wire, private, contained_in(entry, wire)))

    def copy_of(self, entry: Entry) -> Any:
        """Any thread but the loop's: a reference to a new object of this process that has the value of one
        that is done."""
        wire, size = self._found(entry, self._raw)
        nested = values.nested_refs(entry.value)
        refs = [self.make_ref(bytes(object_id), owner) for object_id, owner in nested]
        if nested:
            wire = [*wire[:2], nested, *wire[3:]]
        return self.put_encoded(values.Encoded(wire, size, refs))

    def _raw(self, wire: Any) -> tuple[Any, int]:
        if values.is_stored(wire):
            return self.store.raw(wire), wire[3]
        return wire, values.wire_size(wire)

    def _found(self, entry: Entry, read: Callable[[Any], T]) -> T:
        """Any thread but the loop's: what `read` makes of its value; if that is lost, it is made again."""
        for _ in range(limits.MAX_RECOVERIES):
            wire = entry.value
            if entry.state == FAILED:
                raise self.objects.error(entry)
            try:
                return read(wire)
            except ObjectLostError:
                if not entry.state or entry.value is wire:
                    self.run_sync(self.lineage.recover_and_wait(entry, wire))
                if entry.state == FAILED:
                    raise self.objects.error(entry) from None
        raise ObjectLostError(entry.id.hex(), "It was made again several times, and lost again each time")

    async def value_async(self, entry: Entry) -> Any:
        """On any loop: as `value`, for a stored object, without blocking the loop."""
        for _ in range(limits.MAX_RECOVERIES):
            wire = entry.value
            if entry.state == FAILED:
                raise self.objects.error(entry)
            if type(wire) is not list or wire[0] != values.FORM_STORED:
                return self.value(entry)
            try:
                entry.seen = True
                view = self.store.client.held(wire[1])
                if view is None:
                    if self.presence is not None and self.store.is_elsewhere(wire):
                        (here,) = self.presence.of([entry])  # (who is cancelled meanwhile does not want it)
                        await self.waiting.wait_async(here)
                    view = await self.store.pinned(wire)
                refs = self.objects.contained_in(entry, wire)
                return self.decode(wire, False, refs)  # no call to the node: the view is alive until then
            except ObjectLostError:
                if not entry.state or entry.value is wire:
                    await self.await_on_loop(self.lineage.recover_and_wait(entry, wire))
        raise ObjectLostError(entry.id.hex(), "It was made again several times, and lost again each time")

    def hold(self, entry: Entry) -> Any:
        """On the loop: one more reference to an entry at hand."""
        self.objects.keep(entry)
        return self.ref_of(entry)

    def decode(self, wire: Any, private: bool = False, refs: list[Any] | None = None) -> Any:
        """Any thread: the value of a wire value, wherever it lies. `refs`: those in it, where they are at
        hand."""
        if type(wire) in values.ATOM_TYPES:
            return wire
        if type(wire) is list and wire[0] == values.FORM_STORED:
            return self.store.read(wire, private, refs)
        return decode_private(wire, refs) if private else values.decode(wire, refs)

    # ---- cancelling ----------------------------------------------------------------------------------

    def cancel(self, entry: Entry, force: bool, recursive: bool) -> None:
        """Any thread: end the task that makes this object."""
        self.post(self._cancel, entry, force, recursive)

    def _cancel(self, entry: Entry, force: bool, recursive: bool) -> None:
        if entry.owner is not None:
            connection = self.peers.connect(entry.owner)
            if connection is not None:
                connection.cast(m.CANCEL_REF, entry.id, force, recursive)
            return
        task = entry.task
        if task is not None and hasattr(task, "template"):
            self.submitter.cancel(task, force, recursive, "cancel() was called for it")
            self.after_batch()

    def _cancel_ref(self, connection: Connection, frame: Frame) -> None:
        entry = self.objects.table.get(frame[1])
        if entry is not None and entry.owner is None:
            self._cancel(entry, frame[2], frame[3])

    def cancel_children(self, children: set[int]) -> None:
        """Any thread: end the tasks that a cancelled task has submitted."""

        def end() -> None:
            for unique in list(children):
                task = self.submitter.tasks.get(unique)
                if task is not None:
                    self.submitter.cancel(task, False, True, "the task that submitted it was cancelled")
            self.after_batch()

        self.post(end)

    # ---- peers ---------------------------------------------------------------------------------------

    def peer_joined(self, connection: Connection) -> None:
        """Another process has connected."""
        if self.on_peer_joined is not None:
            self.on_peer_joined(connection)

    def _peer_lost(self, connection: Connection) -> None:
        if connection.state is None or self.peers.is_over(connection):
            self.objects.process_lost(connection)
        else:
            self.objects.connection_lost(connection)
        self.objects.register_used()
        self.leasing.peer_lost(connection)
        self.actors.peer_lost(connection)
        if self.on_peer_lost is not None:
            self.on_peer_lost(connection)
