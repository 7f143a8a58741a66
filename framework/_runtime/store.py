"""The store client of this process, joined to its runtime: messages to the node, and what a stored value
looks like on the wire.

A stored value travels as ``[3, object id, owner, size, refs, node]``: whoever gets it asks the store of its
own node for a pin, and that has it copied from the other node if it must.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.address import node_digits, node_of, short_path
from framework._net.listener import peer_uid
from framework._runtime.waiters import mailbox_of
from framework._serial import values
from framework._serial.private import decode_private
from framework._service.blocking import outcome
from framework._service.mailbox import Mailbox
from framework._store.arena import Arena, receive_arena
from framework._store.client import StoreClient, View
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import LocalNodeDiedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from framework._runtime.runtime import Runtime


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.pack = new_packer()


_Wanted = tuple[list[Any], Mailbox, "asyncio.Future[View]"]


def _resolve(future: asyncio.Future[View], view: View | None, error: BaseException | None) -> None:
    if future.done():
        return
    if view is None:
        future.set_exception(error or LocalNodeDiedError("there is no connection to the node"))
    else:
        future.set_result(view)


class RuntimeStore:
    """Store access for the runtime. Any thread but the loop's, unless a method says otherwise."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._thread = _PerThread()
        self.client = StoreClient(self)
        cluster = runtime.config.cluster
        #: of this process: what stands in wires for "here"; b"" in a session of one machine
        self.node_id: bytes = cluster.node_id if cluster is not None else b""
        self._digits = node_digits(self.node_id) if cluster is not None else ""
        self._made_again: set[bytes] = set()  #: objects that may have copies that their primary knows not of
        self._wanted: deque[_Wanted] = deque()
        self._gathering = False
        self._closed = False
        self.node_handlers = {m.STORE_RECALL: lambda _, frame: self.client.recall(frame[1])}

    # ---- what the client needs (NodeLink) --------------------------------------------------------------

    def node_call(self, opcode: int, *fields: object) -> Any:
        """A call to the node; blocks for its answer."""

        async def call() -> Any:
            node = self._runtime.node
            if node is None:
                raise self._runtime.dead or LocalNodeDiedError("there is no connection to the node")
            return await node.call(opcode, *fields)

        if self._runtime.node is None:
            outcome(self._runtime.node_ready)
        return self._runtime.run_sync(call())

    def node_cast(self, opcode: int, *fields: object) -> None:
        """Any thread: a message to the node."""
        node = self._runtime.node
        if node is not None and not node.closed:
            node.send(self._thread.pack((opcode, *fields)))

    def open_arena(self) -> Arena:
        """Map the node's arena. Waits for the node as any call to it does: however long it is held up, until
        it answers or ends."""
        if self._closed:
            raise self._runtime.dead or LocalNodeDiedError("the session has ended")
        outcome(self._runtime.node_ready)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                with short_path(os.path.join(self._runtime.socket_dir, "store")) as path:
                    sock.connect(path)
                if peer_uid(sock) not in (None, os.getuid()):
                    raise PermissionError("another user listens in place of the node's store")
                found = receive_arena(sock)
        except PermissionError:
            raise
        except OSError as error:
            text = f"the node process of this session does not hand over its store: {error}"
            raise self._runtime.dead or LocalNodeDiedError(text) from None
        return Arena(*found)

    # ---- values --------------------------------------------------------------------------------------

    def put(self, object_id: bytes, encoded: values.Encoded, owner_ident: bytes, owner: str) -> list[Any]:
        """Write an encoded value into the store for the process `owner_ident`; its wire form."""
        mine = owner_ident == self._runtime.worker_id
        size = self.client.write(object_id, encoded.wire, self._owner_name(owner_ident, owner), mine)
        return values.stored(object_id, owner, size, values.nested_refs(encoded.wire), self.node_id)

    def _owner_name(self, ident: bytes, address: str) -> bytes:
        """What this node's store knows an owner by: its ident, and where it lives if that is elsewhere."""
        node = node_of(address) if self._digits else ""
        return ident if node == self._digits or not node else ident + bytes.fromhex(node)

    async def prepare(self, wire: list[Any]) -> list[Any]:
        """On the loop: wire form 0 of a stored value, as views that pin it. Raises `ObjectLostError`."""
        return self.client.parts(await self.view(wire))

    async def view(self, wire: list[Any]) -> View:
        """On the loop: a view of a stored value, which is read back from disk, or copied from another node,
        if it must be. Raises `ObjectLostError`."""
        object_id = wire[1]
        view = self.client.held(object_id)
        if view is not None:
            return view
        node = self._runtime.node
        if node is None:
            raise self._runtime.dead or LocalNodeDiedError("there is no connection to the node")
        offset, size = await node.call(m.STORE_PIN, object_id, wire[5], wire[3])
        return self.client.arrived(object_id, offset, size)

    async def prepare_many(self, object_ids: list[bytes]) -> dict[bytes, View]:
        """On the loop: views of those of these objects that are in memory now. Reading them costs no round
        trip for as long as the caller holds the views. Never raises for an object that is lost or spilled:
        `read` will.
        """
        held: dict[bytes, View] = {}
        missing: dict[bytes, None] = {}
        for object_id in object_ids:
            view = self.client.held(object_id)
            if view is None:
                missing[object_id] = None
            else:
                held[object_id] = view
        node = self._runtime.node
        if node is None:
            return held
        wanted = list(missing)
        for start in range(0, len(wanted), limits.STORE_PIN_BATCH):
            batch = wanted[start : start + limits.STORE_PIN_BATCH]
            # The views are made here, not by whoever asked: if that one is interrupted meanwhile, they end,
            # and the pins with them.
            held.update(self.client.arrived_many(batch, await node.call(m.STORE_PIN_MANY, batch)))
        return held

    async def pinned(self, wire: list[Any]) -> View:
        """From a coroutine on any loop: a view of a stored value. All that is asked for until the runtime's
        loop has its next turn is pinned by one message. Raises `ObjectLostError`. Whoever is cancelled
        meanwhile leaves no pin behind.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[View] = loop.create_future()
        self._wanted.append((wire, mailbox_of(loop), future))
        if not self._gathering:
            self._gathering = True
            self._runtime.post(self._pin_wanted)
        if self._closed:
            self._refuse_wanted()
        return await future

    def close(self) -> None:
        """On the loop, when it is about to stop: nobody who waits for a pin will get one."""
        self._closed = True
        self._refuse_wanted()
        self.client.close()

    def _refuse_wanted(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                _, mailbox, future = self._wanted.popleft()
                mailbox.post(_resolve, future, None, self._runtime.dead)

    def _pin_wanted(self) -> None:
        """On the runtime's loop."""
        self._gathering = False  # first: what is appended from now on posts this again
        wanted: list[_Wanted] = []
        with contextlib.suppress(IndexError):
            while True:
                wanted.append(self._wanted.popleft())
        for start in range(0, len(wanted), limits.STORE_PIN_BATCH):
            batch = wanted[start : start + limits.STORE_PIN_BATCH]
            self._runtime.background.start(self._pin_batch(batch), "pins")

    async def _pin_batch(self, wanted: list[_Wanted]) -> None:
        try:
            await self._pin_all(wanted)
        except BaseException as error:  # cancelled, too: nobody may be left waiting
            reason = error if isinstance(error, Exception) else self._runtime.dead
            for _, mailbox, future in wanted:
                mailbox.post(_resolve, future, None, reason)
            if not isinstance(error, Exception):
                raise

    async def _pin_all(self, wanted: list[_Wanted]) -> None:
        views: dict[bytes, View] = {}
        if len(wanted) > 1:
            views = await self.prepare_many([wire[1] for wire, _, _ in wanted])
        later: deque[_Wanted] = deque()
        for item in wanted:
            if item[0][1] in views:
                item[1].post(_resolve, item[2], views[item[0][1]], None)
            else:
                later.append(item)
        del views

        async def one_by_one() -> None:
            while later:
                wire, mailbox, future = later.popleft()
                try:
                    mailbox.post(_resolve, future, await self.view(wire), None)
                except Exception as error:
                    mailbox.post(_resolve, future, None, error)

        await asyncio.gather(*(one_by_one() for _ in range(min(len(later), limits.STORE_RESTORE_AHEAD))))

    def in_batches(self, wires: list[Any]) -> Iterator[int]:
        """The positions of `wires`, each once, in an order that suits reading them one by one: what is in
        this node's memory is pinned a batch at a time, by one message, and comes first; what has to be
        waited for comes when the pins of its batch are gone, so that it finds room.
        """
        stored = []
        for position, wire in enumerate(wires):
            if values.is_stored(wire):
                stored.append(position)
            else:
                yield position
        if len(stored) == 1:
            yield stored[0]
            return
        for start in range(0, len(stored), limits.STORE_PIN_BATCH):
            batch = stored[start : start + limits.STORE_PIN_BATCH]
            ids = [wires[position][1] for position in batch]
            views = {i: v for i in ids if (v := self.client.held(i)) is not None}
            if not all(object_id in views for object_id in ids):
                views = self._runtime.run_sync(self.prepare_many(ids))
            later = []
            for position in batch:
                if wires[position][1] in views:
                    yield position
                else:
                    later.append(position)
            del views
            if self.node_id and len(later) > limits.STORE_RESTORE_AHEAD:
                self.prefetch([wires[position] for position in later])
            yield from self._restored(wires, later)

    def _restored(self, wires: list[Any], positions: list[int]) -> Iterator[int]:
        """Each position when its object is in memory, or cannot be: some are read back ahead of their turn.
        Nothing is cancelled on the way out: an answer that comes then makes a view that ends at once."""
        coming: deque[concurrent.futures.Future[View]] = deque()
        ahead = iter(positions)
        for position in positions:
            for other in itertools.islice(ahead, limits.STORE_RESTORE_AHEAD - len(coming)):
                coming.append(self._asked_for(wires[other]))
            view = None
            with self._runtime.waiting.blocked(), contextlib.suppress(Exception):  # reading it will tell
                view = outcome(coming.popleft())
            yield position
            del view

    def _asked_for(self, wire: list[Any]) -> concurrent.futures.Future[View]:
        return asyncio.run_coroutine_threadsafe(self.view(wire), self._runtime.loop)

    def raw(self, wire: list[Any]) -> list[Any]:
        """Wire form 0 of a stored value, as views that pin it. Raises `ObjectLostError`."""
        return self.client.read(wire[1], wire[5], wire[3])

    def read(self, wire: list[Any], private: bool = False, refs: list[Any] | None = None) -> Any:
        """The value of a stored object, as views of shared memory, or (`private`) as a writable copy. `refs`:
        those in it, where they are at hand."""
        found = self.raw(wire)
        if refs is None and wire[4]:
            refs = values.make_refs(wire[4])
        return decode_private(found, refs) if private else values.decode(found, refs)

    def seal_array(self, array: Any, owner_ident: bytes, owner: str) -> list[Any] | None:
        """If the array was made by `framework.empty`, seal it where it is, for that owner: its wire form.
        Else None.
        """
        if not self.client.has_unsealed:
            return None
        name = self._owner_name(owner_ident, owner)
        mine = owner_ident == self._runtime.worker_id
        found = self.client.in_place(array, name, values.describe_array, mine)
        if found is None:
            return None
        object_id, size = found
        return values.stored(object_id, owner, size, [], self.node_id)

    def reserve(self, object_id: bytes, nbytes: int) -> NDArray[np.uint8]:
        """Writable memory in the store."""
        return self.client.reserve(object_id, nbytes, self._runtime.worker_id)

    # ---- objects that are not needed any more --------------------------------------------------------

    def free(self, wire: list[Any]) -> None:
        """On the loop: the owner does not need a stored value any more."""
        object_id, node = wire[1], wire[5]
        self.client.free([object_id], None if node == self.node_id else node)
        if object_id in self._made_again:  # (there it will be heard even if its writer has yet to report it)
            self._made_again.discard(object_id)
            self.client.free([object_id], b"")

    def free_anywhere(self, object_ids: list[bytes]) -> None:
        """On the loop: the same, of what may have been made on any node."""
        self.client.free(object_ids)
        if self.node_id:
            self.client.free(object_ids, b"")

    def made_again(self, object_id: bytes) -> None:
        """On the loop: an object of this process was lost: nobody knows all places where it has been."""
        if self.node_id:
            self._made_again.add(object_id)

    # ---- in a cluster --------------------------------------------------------------------------------

    def is_elsewhere(self, wire: Any) -> bool:
        """Whether this is a stored value whose primary copy is on another node."""
        return values.is_stored(wire) and wire[5] != self.node_id

    def prefetch(self, wires: list[Any]) -> None:
        """Any thread: these arguments will be needed here soon."""
        wanted = [
            [wire[1], wire[5], wire[3]]
            for wire in wires
            if self.is_elsewhere(wire) and not self.client.at_hand(wire[1])
        ]
        if wanted:
            self.node_cast(m.STORE_PREFETCH, wanted)

    def replicate(self, wire: list[Any], copies: int) -> int:
        """Any thread but the loop's: have copies of an object of this node on other nodes, that stay; how
        many there are."""
        return self._runtime.run_sync(self._replicate(wire, copies)) if self.node_id else 0

    async def replicate_async(self, wire: list[Any], copies: int) -> int:
        """From a coroutine on any loop: the same."""
        return await self._runtime.await_on_loop(self._replicate(wire, copies)) if self.node_id else 0

    async def _replicate(self, wire: list[Any], copies: int) -> int:
        node = self._runtime.node
        if node is None:
            raise self._runtime.dead or LocalNodeDiedError("there is no connection to the node")
        count: int = await node.call(m.STORE_REPLICATE, wire[1], wire[3], copies)
        return count
