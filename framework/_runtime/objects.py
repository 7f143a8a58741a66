"""The objects of this process: handles, values, and the borrowing of objects that others own.

Custody. Whoever hands a reference on keeps its own until the receiver is known to the owner:

- The submitter of a task keeps all references in its arguments until the task's reply. A worker that still
  holds some of them then registers with their owners *before* the reply leaves (`register_provisional`).
- A worker whose result, or error, contains references keeps them until the receiver of the result has
  registered (RELEASE_HELD).
- A value, or error, that contains references keeps them as long as it lives (`Entry.contained`).
- No release leaves this process while a registration of it is under way.

Lost connections. Between machines, connections break while both ends live (`Peers.is_over` knows what is the
end of a process). Owners count by process, not by connection, and keep the counts of one that they have lost
sight of: they try to reach it, and learn so whether it lives. Whoever has borrowed connects again, and the
first that it says there is all that it borrows (BORROW_AGAIN): that replaces what the owner has counted, as
anything that was said before may have been lost. Then it asks again what has had no answer. (To ask twice is
no harm: FETCH only looks, BORROW counts once.) What it had let go of and could not say yet (see above) counts
as borrowed. References in what was sent are kept for `limits.RECEIVER_GRACE` more: nobody knows whether that
has arrived, and the receiver may be about to register.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection, Frame
from framework._runtime.waiters import register
from framework._serial import values
from framework._serial.errors import encode_error, error_from_wire
from framework._state.objects import FAILED, PENDING, READY, Entry, ObjectTable
from framework._wire import messages as m
from framework.exceptions import FrameworkError, ObjectLostError, OwnerDiedError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class Objects:
    """The owner table with its messages. Methods run on the loop unless they say otherwise."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.table = ObjectTable()
        self.drops: deque[Entry] = (
            deque()
        )  #: entries of references that were collected; appended to from anywhere
        self._count_lock = threading.Lock()
        #: references in what was sent, by receiver, task and place, the oldest first: a task that is tried
        #: again sends the same places again
        self._held: dict[tuple[Connection, int, int], deque[list[Any]]] = {}
        self._held_lock = threading.Lock()
        #: the same, of connections that were lost: of which process, and until when
        self._kept: dict[int, tuple[str, list[Any], asyncio.TimerHandle]] = {}
        self._kept_so_far = 0
        self._lent: dict[Hashable, str] = {}  #: processes that have borrowed (their addresses): what they are
        self._releasing: dict[Entry, None] = {}  #: borrowed, not needed any more, which is not said yet
        self._provisional: dict[Entry, None] = {}
        self._registrations = 0  #: begun so far
        self._registering: dict[int, None] = {}  #: numbers of those without an answer, the oldest first
        #: while one of these has something in it, `register_provisional` is to be asked before a reply leaves
        self.unregistered: tuple[dict[Any, None], ...] = (self._provisional, self._registering)
        self._after_registering: deque[tuple[int, Callable[[], object]]] = deque()
        self._unregistered: deque[Entry] = (
            deque()
        )  #: arrived outside of tasks: to be registered in the loop's next turn
        self._to_notify: deque[tuple[Entry, list[Any]]] = deque()
        self._notifying = False
        self.handlers = {
            m.FETCH: self._fetch,
            m.BORROW: self._borrow,
            m.BORROW_AGAIN: self._borrow_again,
            m.UNBORROW: self._unborrow,
            m.RELEASE_HELD: self._release_held,
        }

    # ---- handles (any thread) ------------------------------------------------------------------------

    def handle(self, object_id: bytes, owner: str) -> Entry:
        """Any thread: the entry for one more reference to this object, which arrived by its id."""
        with self._count_lock:
            entry = self.table.entries.get(object_id)
            if entry is not None:
                entry.local += 1
                return entry
            if owner == self._runtime.address:
                entry = Entry(object_id)
                entry.value = ObjectLostError(
                    object_id.hex(), "It was freed by its owner before this reference arrived"
                )
                entry.state = FAILED
                entry.seen = True
                return self.table.add(entry)
            entry = Entry(object_id, owner)
            self.table.add(entry)
        # From now on until its owner knows of us, no reply and no release leaves that could end somebody
        # else's custody.
        self._provisional[entry] = None
        if not self._runtime.in_task():
            self._unregistered.append(entry)
            self._runtime.post(self._register_new)
        return entry

    def new(self, object_id: bytes) -> Entry:
        """Any thread: the entry of an object that this process will own, with one reference."""
        return self.table.add(Entry(object_id))

    # ---- outcomes ------------------------------------------------------------------------------------

    def complete(self, entry: Entry, value: Any) -> None:
        """The object has this wire value (which may be an error)."""
        if entry.state:
            if type(value) is list and value[0] == values.FORM_STORED:
                # A sibling was made again, and this one along with it: in the place of the first, or
                # (an array that was filled in place) in another.
                here = entry.value
                if entry.freed or type(here) is not list or here[1] != value[1]:
                    self._runtime.discard(value)
                elif values.node_of(here) != values.node_of(value):
                    self._runtime.store.made_again(value[1])
            return
        state = READY
        if type(value) is list:
            if value[0] == values.FORM_ERROR:
                state = FAILED
            elif entry.freed:
                self._runtime.discard(value)
                return
            if not entry.freed:
                nested = values.nested_refs(value)
                # (None: this may be a lost object that was made again.)
                entry.contained = [self._runtime.make_ref(bytes(i), o) for i, o in nested] or None
        entry.value = value
        entry.state = state
        self.notify(entry)

    def complete_all(self, entries: list[Entry], plain: list[Any]) -> None:
        """As `complete`, for many with values that are no lists: a thread that waits for many of them is told
        of these together."""
        alone: tuple[Any] | None = None
        told: list[Entry] = []
        for entry, value in zip(entries, plain, strict=False):
            if entry.state:
                continue
            entry.value = value
            entry.state = READY
            waiters = entry.waiters
            if waiters is not None:
                if type(waiters) is tuple and (alone is None or waiters is alone):
                    alone = waiters
                    entry.waiters = None
                    told.append(entry)
                else:
                    self.notify(entry)
        if alone is not None:
            alone[0].have_values(told)

    def replace(self, entry: Entry, value: Any) -> None:
        """A task that ran again for lost results has made this one. It may not have been missed yet: its copy
        may be lost all the same, or be replaced by now, with other references in it."""
        here = entry.value
        if entry.state != READY or entry.freed or not values.is_stored(here) or not values.is_stored(value):
            self.complete(entry, value)
            return
        contained = [self._runtime.make_ref(bytes(i), o) for i, o in values.nested_refs(value)] or None
        entry.contained = None  # in this order: see `contained_in`
        entry.value = value
        entry.contained = contained
        if here[1] != value[1]:  # an array that was filled in place
            self._runtime.discard(here)
        elif here[5] != value[5]:
            self._runtime.store.made_again(value[1])

    @staticmethod
    def contained_in(entry: Entry, wire: Any) -> list[Any] | None:
        """Any thread: the references in `wire`, a value of this object, by their places; None when they are
        not at hand. (It may be replaced at any time by one with other references in it.)"""
        contained = entry.contained
        if contained is None or entry.value is not wire or entry.contained is not contained:
            return None
        return contained

    def fail(self, entry: Entry, error: BaseException) -> None:
        """The object will never have a value."""
        if entry.state:
            return
        entry.value = error
        entry.state = FAILED
        self.notify(entry)

    def notify(self, entry: Entry) -> None:
        """Call all who wait. When one of them completes another object, those who wait for that one are
        called after it and not within it: a chain of tasks may be thousands long."""
        waiters = entry.waiters
        if not waiters:
            return
        entry.waiters = None
        if isinstance(waiters, tuple):
            waiters[0](entry)  # a thread that waits for many: it completes nothing itself
            return
        queue = self._to_notify
        queue.append((entry, waiters))
        if self._notifying:
            return
        self._notifying = True
        try:
            while queue:
                done, waiters = queue.popleft()
                for waiter in waiters:
                    waiter(done)
        finally:
            self._notifying = False

    def error(self, entry: Entry) -> BaseException:
        """Any thread: the exception of a failed object, a new one each time."""
        entry.seen = True
        value = entry.value
        if isinstance(value, BaseException):
            return _copy_of(value)
        return error_from_wire(value)

    def wire(self, entry: Entry) -> Any:
        """The outcome in wire form, to hand on."""
        value = entry.value
        if isinstance(value, BaseException):
            return self._runtime.wire_error(value, "get")
        return value

    # ---- references that are gone --------------------------------------------------------------------

    def drain_drops(self) -> None:
        """Take in the references that were collected since last time."""
        drops = self.drops
        if drops and self._unregistered:
            self._register_new()
        while drops:
            with self._count_lock:
                free = self.table.collect(drops, 10_000)
            theirs = [entry for entry in free if entry.owner is not None]
            self._runtime.entries_freed([entry for entry in free if entry.owner is None] if theirs else free)
            borrowed = []
            for entry in theirs:
                self._runtime.streams.freed(entry.id)
                self._provisional.pop(entry, None)
                if values.is_stored(entry.value):
                    self._runtime.store.client.forget(entry.value[1])
                if entry.registered:
                    borrowed.append(entry)
            if borrowed:
                self._releasing.update((entry, None) for entry in borrowed)
                self._when_registered(functools.partial(self._send_unborrows, borrowed))

    def _freed(self, entry: Entry) -> None:
        """Nobody holds this object of ours any more."""
        self._runtime.entries_freed([entry])

    def _send_unborrows(self, gone: list[Entry]) -> None:
        by_owner: dict[str, list[bytes]] = {}
        for entry in gone:
            assert entry.owner is not None
            del self._releasing[entry]
            again = self.table.get(entry.id)
            if (
                again is None or not again.registered
            ):  # else it has come back meanwhile, and its owner heard that first
                by_owner.setdefault(entry.owner, []).append(entry.id)
        for owner, ids in by_owner.items():
            connection = self._runtime.peers.existing(owner)
            if connection is not None:
                connection.cast(m.UNBORROW, ids)

    # ---- borrowing: this process is the borrower -----------------------------------------------------

    def register_provisional(self, then: Callable[[], None]) -> bool:
        """A task ends. If it leaves references behind that it borrowed, tell their owners and call `then`
        when they know; False, and `then` is not called, when there are none (any thread may ask)."""
        if not self._provisional and not self._registering:
            return False
        self._runtime.post(self._register_kept, then)
        return True

    def _register_new(self) -> None:
        new = []
        while self._unregistered:
            new.append(self._unregistered.popleft())
        self._register(new)

    def _register_kept(self, then: Callable[[], None]) -> None:
        self._register_new()
        self.drain_drops()
        self._register([entry for entry in list(self._provisional) if entry.local > 0])
        self._when_registered(then)

    async def all_registered(self, timeout: float) -> None:
        """Loop: until the owners of all that this process has borrowed know of it, or so many seconds are
        over."""
        known = asyncio.Event()
        self._register_kept(known.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(known.wait(), timeout)

    def register_used(self) -> None:
        """A caller is out of sight, who keeps what is in the arguments of its calls: it may not do so any
        longer. What is used here of that is ours to keep now."""
        if self._provisional:
            self._register([entry for entry in list(self._provisional) if entry.local > 0])

    def _when_registered(self, then: Callable[[], object]) -> None:
        """Call `then` when the registrations that are under way now have been answered (not those that begin
        later: in a busy process there always is one)."""
        if self._registering:
            self._after_registering.append((self._registrations, then))
        else:
            then()

    def _register(self, entries: list[Entry]) -> None:
        by_owner: dict[str, list[Entry]] = {}
        for entry in entries:
            if not entry.registered and entry.owner is not None and self.table.get(entry.id) is entry:
                entry.registered = True
                by_owner.setdefault(entry.owner, []).append(entry)
        for owner, group in by_owner.items():
            connection = self._runtime.peers.connect(owner)
            if connection is None:
                self._owner_lost(group, owner)
                continue
            self._registrations += 1
            self._registering[self._registrations] = None
            self._call_borrow(connection, self._registrations, group, owner)
        # Last, because threads look at it first and at `_registering` second.
        for entry in entries:
            self._provisional.pop(entry, None)

    def _call_borrow(self, connection: Connection, number: int, group: list[Entry], owner: str) -> None:
        connection.state.borrows = True
        future = connection.call(m.BORROW, [entry.id for entry in group])
        future.add_done_callback(functools.partial(self._registered, connection, number, group, owner))

    def _registered(
        self, connection: Connection, number: int, group: list[Entry], owner: str, future: Any
    ) -> None:
        if future.cancelled() or future.exception() is not None:
            again = self._again(connection, owner)
            if again is not None:
                self._call_borrow(again, number, group, owner)
                return
            self._owner_lost(group, owner)
        else:
            self._freed_there(group, future.result())
        del self._registering[number]
        oldest = next(iter(self._registering), self._registrations + 1)
        waiting = self._after_registering
        while waiting and waiting[0][0] < oldest:
            waiting.popleft()[1]()

    def _again(self, connection: Connection, owner: str) -> Connection | None:
        """A call to an owner has failed. If that was because the connection was lost, and the owner may live:
        the connection on which it is to be made again."""
        peers = self._runtime.peers
        return peers.connect(owner) if connection.closed and not peers.is_over(connection) else None

    def _freed_there(self, entries: Iterable[Entry], unknown: Iterable[bytes]) -> None:
        """Their owner does not know some of these any more."""
        ids = set(unknown)
        for entry in entries:
            if entry.id in ids and not entry.state:
                self.fail(entry, ObjectLostError(entry.id.hex(), "It has been freed by its owner"))

    def need(self, entry: Entry, value_wanted: bool = True) -> None:
        """Somebody waits for a borrowed object: ask its owner for it."""
        if entry.state or entry.owner is None or entry.fetching:
            return
        entry.fetching = True
        connection = self._runtime.peers.connect(entry.owner)
        if connection is None:
            self._owner_lost([entry], entry.owner)
            return
        future = connection.call(m.FETCH, entry.id, value_wanted)
        future.add_done_callback(lambda f: self._fetched(f, entry, connection, value_wanted))

    def ask(self, entry: Entry, opcode: int, *fields: object) -> None:
        """Ask the owner of a borrowed object for it by this call."""
        assert entry.owner is not None
        connection = self._runtime.peers.connect(entry.owner)
        if connection is None:
            self._owner_lost([entry], entry.owner)
            return
        entry.fetching = True
        future = connection.call(opcode, entry.id, *fields)
        future.add_done_callback(lambda f: self._fetched(f, entry, connection, True))

    def keep(self, entry: Entry) -> None:
        """One more reference to an entry at hand."""
        with self._count_lock:
            entry.local += 1

    def borrow_again(self, entry: Entry) -> None:
        """A borrowed entry that was forgotten is needed once more (somebody holds it already)."""
        entry.state, entry.value, entry.registered = PENDING, None, False
        if self.table.entries.setdefault(entry.id, entry) is entry:
            self._register([entry])
        self.need(entry)

    def _fetched(self, future: Any, entry: Entry, connection: Connection, value_wanted: bool) -> None:
        entry.fetching = False
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self.complete(entry, future.result())
        elif isinstance(error, ObjectLostError) or not isinstance(error, ConnectionError):
            self.fail(entry, error)
        elif self._again(connection, entry.owner or "") is not None:
            self.need(entry, value_wanted)
        else:
            self._owner_lost([entry], entry.owner or "")

    def _owner_lost(self, entries: list[Entry], owner: str) -> None:
        for entry in entries:
            self.fail(
                entry,
                OwnerDiedError(
                    entry.id.hex(),
                    "An object lives as long as the process that created its reference: "
                    "keep that process (an actor, the driver) alive",
                    owner_address=owner,
                ),
            )

    def _say_again(self, connection: Connection, owner: str) -> None:
        """A connection to an owner has taken the place of one that was lost: nothing was said there yet."""
        entries = [entry for entry in self.table.of_owner(owner) if entry.registered]
        ids = dict.fromkeys(entry.id for entry in entries)
        ids.update((entry.id, None) for entry in self._releasing if entry.owner == owner)
        connection.state.borrows = True
        future = connection.call(m.BORROW_AGAIN, list(ids), self._runtime.streams.read_from(owner))

        def answered(future: Any) -> None:
            if not future.cancelled() and future.exception() is None:
                self._freed_there(entries, future.result())

        future.add_done_callback(answered)

    # ---- connections that are lost -------------------------------------------------------------------

    def connection_lost(self, connection: Connection) -> None:
        """The connection to a process is gone, and the process may live."""
        address, peers = connection.state.address, self._runtime.peers
        self._keep_held(connection, address)
        borrows = connection.state.borrows
        if borrows or (address in self._lent and not peers.is_present(address)):
            again = peers.connect(address)
            if again is None:
                self.process_lost(connection)
            elif borrows:
                self._say_again(again, address)

    def process_lost(self, connection: Connection) -> None:
        """The process at the other side of a connection is gone."""
        self.borrower_lost(connection)
        if connection.state is not None and connection.state.address:
            self._orphan(connection.state.address)

    def _orphan(self, address: str) -> None:
        """The process at this address is gone: what was borrowed from it is lost, but for values that are
        here. (Those in the store go with their owner.)
        """
        orphans = self.table.of_owner(address)
        for entry in orphans:
            if values.is_stored(entry.value):
                self._runtime.store.client.forget(entry.value[1])
                entry.state = PENDING
        self._owner_lost([entry for entry in orphans if not entry.state], address)

    # ---- borrowing: this process is the owner --------------------------------------------------------

    def _borrow(self, connection: Connection, frame: Frame) -> None:
        self.drain_drops()
        borrower = self.borrower(connection)
        unknown = [object_id for object_id in frame[2] if not self.table.borrow(object_id, borrower)]
        connection.reply(frame[1], unknown)

    def _borrow_again(self, connection: Connection, frame: Frame) -> None:
        _, rid, ids, streams = frame
        self.drain_drops()
        borrower = self.borrower(connection)
        self._runtime.streams.read_again(borrower, streams)  # what has not arrived is for the next reader
        unknown, free = self.table.borrowed_again(ids, borrower)
        for entry in free:
            self._free_now(entry)
        connection.reply(rid, unknown)

    def _unborrow(self, connection: Connection, frame: Frame) -> None:
        borrower = self.borrower(connection)
        for object_id in frame[1]:
            entry = self.table.unborrow(object_id, borrower)
            if entry is not None:
                self._free_now(entry)

    def borrower(self, connection: Connection) -> Hashable:
        """By what the process is known, as a borrower, that has made this connection."""
        borrower = connection.state.address or connection
        if borrower not in self._lent:
            self._lent[borrower] = connection.name
        return borrower

    def borrowers(self, entry: Entry) -> list[str]:
        """What they are, for people."""
        return sorted(self._lent.get(borrower, "?") for borrower in list(entry.borrowers or ()))

    def _free_now(self, entry: Entry) -> None:
        with self._count_lock:
            free = self.table.free(entry)
        if free:
            self._freed(entry)

    def borrower_lost(self, connection: Connection) -> None:
        """A process that may have borrowed is gone."""
        address = connection.state.address if connection.state is not None else ""
        self._take_held(connection)
        if address and self._runtime.peers.is_present(address):
            return  # so it seems by another connection: that one will tell
        for number in [number for number, kept in self._kept.items() if kept[0] == address]:
            self._kept.pop(number)[2].cancel()
        borrower = address or connection
        self._runtime.streams.reader_lost(borrower)
        if self._lent.pop(borrower, None) is not None:
            for entry in self.table.borrower_lost(borrower):
                self._free_now(entry)

    def _take_held(self, connection: Connection) -> list[Any]:
        with self._held_lock:
            return [self._held.pop(key) for key in [key for key in self._held if key[0] is connection]]

    def _keep_held(self, connection: Connection, address: str) -> None:
        """What was sent last over a connection that is lost may have arrived."""
        held = self._take_held(connection)
        if held:
            self._kept_so_far += 1
            number = self._kept_so_far
            timer = self._runtime.loop.call_later(limits.RECEIVER_GRACE, self._kept.pop, number)
            self._kept[number] = (address, held, timer)

    def _fetch(self, connection: Connection, frame: Frame) -> None:
        _, rid, object_id, value_wanted = frame
        entry = self.table.get(object_id)
        if entry is None:
            connection.fail(rid, ObjectLostError(reason="the object has been freed by its owner"))
            return

        def answer(entry: Entry) -> None:
            if connection.closed:
                return
            if entry.state == FAILED:
                entry.seen = True
            connection.reply(rid, self.wire(entry) if value_wanted or entry.state == FAILED else None)

        if entry.state == PENDING:
            if entry.owner is not None:
                self.need(entry)
            register(entry, answer)
        else:
            answer(entry)

    # ---- results that contain references -------------------------------------------------------------

    def hold(self, connection: Connection, unique: int, index: int, refs: list[Any]) -> None:
        """Any thread: keep the references of a result, or error, until its receiver has registered."""
        with self._held_lock:
            if not connection.closed:  # else `borrower_lost` has been here, or will be soon
                self._held.setdefault((connection, unique, index), deque()).append(refs)

    @property
    def handing_over(self) -> bool:
        """Whether somebody is about to take over references that this process has sent."""
        return bool(self._held)

    def all_handed_over(self) -> bool:
        """Whether nobody is about to take over references that this process has sent, nor anything waits for
        this process to be known to owners."""
        return not (
            self._held or self._kept or self._provisional or self._registering or self._after_registering
        )

    def _release_held(self, connection: Connection, frame: Frame) -> None:
        key = (connection, frame[1], frame[2])
        with self._held_lock:
            queue = self._held.get(key)
            if queue:
                queue.popleft()
            if not queue:
                self._held.pop(key, None)

    def release_when_registered(self, connection: Connection, unique: int, index: int) -> None:
        """A result or error with references has arrived, and those that are wanted are entries here: the
        sender may let go when all owners know of this process. (To be called for each of these: the sender
        lets go of the oldest that it keeps under this number and place.)"""

        def release() -> None:
            if not connection.closed:
                connection.cast(m.RELEASE_HELD, unique, index)

        # `complete` posted the registration before this, so it is under way when this runs.
        self._runtime.post(self._when_registered, release)


def _copy_of(error: BaseException) -> BaseException:
    """Raising one exception object in several places grows its traceback and ties frames together: raise a
    copy.
    """
    if isinstance(error, FrameworkError):
        wire, refs = encode_error(error, function_name="", pid=0, ip="")
        copy = error_from_wire(wire)
        del refs  # not before: the copy has its own now
        if type(copy) is type(error):
            return copy
    return error
