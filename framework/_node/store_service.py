"""The node's object store, the shell: answers clients, moves blocks to disk and back in threads, hands out
the arena.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from framework import exceptions
from framework._base import limits
from framework._net.address import short_path
from framework._net.connection import Connection, Frame, Handler
from framework._net.listener import peer_uid
from framework._node.spill import open_disk
from framework._node.warming import Warmer
from framework._state.copies import SharedStoreState
from framework._store.arena import Arena, create_arena, send_arena
from framework._wire import messages as m

log = logging.getLogger("framework.store")


class Asker(Protocol):
    """Who asks for something of the store: a connection, or a service of this process that has the same
    methods."""

    closed: bool

    def reply(self, rid: int, value: Any, /) -> None: ...
    def fail(self, rid: int, error: BaseException, /) -> None: ...


Token = tuple[Asker, int]


class Across(Protocol):
    """What the store needs of other nodes, in a cluster."""

    node_id: bytes

    @property
    def stats(self) -> dict[str, int]:
        """Numbers for tests and for the curious."""

    def owner(self, name: bytes) -> Hashable | None:
        """The process of another node with this name (its ident and the beginning of its node's id), as an
        owner; None when it has ended."""

    def wanted(self, connection: Connection, rid: int, object_id: bytes, node: bytes, size: int) -> None:
        """Somebody waits for an object that is not here, whose primary copy is on `node`."""

    def freed(self, object_id: bytes) -> None:
        """It is not needed any more."""

    def dropped(self, object_id: bytes) -> None:
        """A copy had to make room."""

    def process_ended(self, connection: Connection) -> None:
        """A process of this node is gone."""


class StoreService:
    """Handlers for the processes of this node. Lives on the node's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        session_dir: str,
        capacity: int,
        spill_dir: str | None,
        owner_of: Callable[[bytes], object],
    ) -> None:
        self._loop = loop
        self._session_dir = session_dir
        self.disk = open_disk(spill_dir, session_dir)
        self.process_of = owner_of
        self._fd = create_arena(capacity, session_dir)
        self._arena: Arena | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._spill_count = 0
        self._closed = False
        self.state = SharedStoreState(capacity)
        self.across: Across | None = None  #: in a cluster
        self.warmer = Warmer(loop, self.state.allocator.capacity, self.arena)
        self.handlers: dict[int, Handler] = {
            m.STORE_CREATE: self._create,
            m.STORE_LEASE: self._lease,
            m.STORE_ADOPT: self._adopt,
            m.STORE_SEAL: self._seal,
            m.STORE_ABORT: self._abort,
            m.STORE_PIN: self._pin,
            m.STORE_PIN_MANY: self._pin_many,
            m.STORE_UNPIN: self._unpin,
            m.STORE_FREE: self._free,
            m.STORE_RETURN: self._return,
            m.STORE_LIST: self._list,
        }
        self._listener = self._listen()

    # ---- the arena -----------------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        path = os.path.join(self._session_dir, "sockets", "store")
        with short_path(path) as address:
            sock.bind(address)
        os.chmod(path, 0o600)
        sock.listen(limits.LISTEN_BACKLOG)
        self._loop.add_reader(sock.fileno(), self._hand_over)
        return sock

    def _hand_over(self) -> None:
        """Somebody of this user wants to map the arena."""
        while True:
            try:
                peer, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors, most likely, and the peer is still there: without a pause this would be
                # a busy loop.
                log.error("nobody can be given the arena for now: %s", error)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(limits.ACCEPT_PAUSE, self._hand_over_again)
                return
            with peer, contextlib.suppress(OSError):
                if peer_uid(peer) in (None, os.getuid()):
                    send_arena(peer, self._fd, self.state.allocator.capacity)

    def _hand_over_again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._hand_over)

    def arena(self) -> Arena:
        """The arena, mapped by this process."""
        if self._arena is None:
            self._arena = Arena(os.dup(self._fd), self.state.allocator.capacity)
        return self._arena

    def close(self) -> None:
        """Let go of everything; spilled files go with the session directory."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        os.close(self._fd)
        self.warmer.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._spill_count:
            self.disk.close()

    # ---- requests ------------------------------------------------------------------------------------

    def _create(self, connection: Connection, frame: Frame) -> None:
        _, rid, object_id, size, owner_ident = frame
        owner = self._owner(owner_ident)
        if owner is None:
            connection.fail(
                rid, exceptions.OwnerDiedError(reason="the process that this value is for has ended")
            )
            return
        self.with_grace(
            self.state.create((connection, rid), connection, object_id, size, owner), (connection, rid)
        )

    def _owner(self, name: bytes) -> Hashable | None:
        owner = self.process_of(name)
        return self.across.owner(name) if owner is None and self.across is not None else owner

    def _pin(self, connection: Connection, frame: Frame) -> None:
        _, rid, object_id, node, size = frame
        commands = self.state.pin((connection, rid), connection, object_id)
        if commands or self.across is None or node in (b"", self.across.node_id):
            self.with_grace(commands, (connection, rid))
        elif not self.state.is_sealed(object_id):  # (else it is being read back)
            self.across.wanted(connection, rid, object_id, node, size)
        else:
            self.with_grace(commands, (connection, rid))

    def _pin_many(self, connection: Connection, frame: Frame) -> None:
        """Answers at once: [offset, size, …] in the order asked for, with offset -1 for what has to be asked
        for by itself (spilled, or not known yet)."""
        places: list[int] = []
        for object_id in frame[2]:
            places += self.state.pin_at_once(connection, object_id) or (-1, 0)
        connection.reply(frame[1], places)
        self.run(self.state.serve())

    def with_grace(self, commands: list[tuple[Any, ...]], token: Token, grace: float | None = None) -> None:
        """Do it; the request of this token is refused if it is not answered in time."""
        answered = any(
            command[0] in ("placed", "view", "refuse") and command[1] == token for command in commands
        )
        self.run(commands)
        if not answered:
            self._loop.call_later(limits.STORE_FULL_GRACE if grace is None else grace, self._give_up, token)

    def _give_up(self, token: Token) -> None:
        if self._closed:
            return
        self.run(self.state.give_up(token))

    def _lease(self, connection: Connection, frame: Frame) -> None:
        _, rid, size = frame
        size = min(size, self.state.allocator.capacity // 16)
        *others, command = self.state.lease((connection, rid), connection, size)
        self.run(others)  # (copies that have made room)
        if command[0] == "placed":
            connection.reply(rid, [command[2], self.state.allocator.size_of(command[2])])
            self.warmer.used(self.state.allocator.high)
        else:
            connection.reply(rid, None)

    def _adopt(self, connection: Connection, frame: Frame) -> None:
        _, object_id, offset, size, owner_ident = frame
        owner = self._owner(owner_ident)
        self.run(self.state.adopt(connection, object_id, offset, size, owner or connection))
        if owner is None:
            self.run(self.state.free(object_id))

    def _seal(self, connection: Connection, frame: Frame) -> None:
        _, object_id, offset, owner_ident, keep = frame
        owner = self._owner(owner_ident) if owner_ident else None
        self.run(self.state.seal(object_id, offset, connection, owner, keep))
        if owner_ident and owner is None:
            self.run(self.state.free(object_id))

    def _abort(self, connection: Connection, frame: Frame) -> None:
        self.run(self.state.abort(frame[1], frame[2], connection))

    def _unpin(self, connection: Connection, frame: Frame) -> None:
        for object_id, offset in zip(frame[1], frame[2], strict=True):
            self.run(self.state.unpin(object_id, offset, connection))

    def _free(self, connection: Connection, frame: Frame) -> None:
        for object_id in frame[1]:
            self.run(self.state.free(object_id))

    def _return(self, connection: Connection, frame: Frame) -> None:
        self.run(self.state.give_back(connection, frame[1]))

    def _list(self, connection: Connection, frame: Frame) -> None:
        found: dict[str, Any] = {"objects": self.state.describe(), "stats": self.state.stats}
        if self.across is not None:
            found["across"] = self.across.stats
        connection.reply(frame[1], found)

    def peer_lost(self, connection: Connection) -> None:
        """A process of this node has ended."""
        if not self._closed:
            self.run(self.state.holder_gone(connection))
            if self.across is not None:
                self.across.process_ended(connection)

    # ---- commands ------------------------------------------------------------------------------------

    def run(self, commands: list[tuple[Any, ...]]) -> None:
        """Do what the state says."""
        for command in commands:
            word = command[0]
            if word == "placed":
                connection, rid = command[1]
                if not connection.closed:
                    connection.reply(rid, command[2])
                self.warmer.used(self.state.allocator.high)
            elif word == "view":
                connection, rid = command[1]
                if not connection.closed:
                    connection.reply(rid, [command[2], command[3]])
            elif word == "refuse":
                connection, rid = command[1]
                if not connection.closed:
                    connection.fail(rid, self.error_of(command[2], command[3]))
            elif word == "spill":
                self._spill(*command[1:])
            elif word == "restore":
                self._restore(*command[1:])
            elif word == "unlink":
                self._pool().submit(self.disk.remove, command[1])
            elif word == "recall":
                if not command[1].closed:
                    command[1].cast(m.STORE_RECALL, command[2])
            elif self.across is not None:
                if word == "freed":
                    self.across.freed(command[1])
                elif word == "dropped":
                    self.across.dropped(command[1])

    @staticmethod
    def error_of(kind: str, text: str) -> Exception:
        """The exception of this name."""
        error: Any = getattr(exceptions, kind, FileExistsError)
        found: Exception = (
            error(reason=text) if issubclass(error, exceptions.ObjectLostError) else error(text)
        )
        return found

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(2, thread_name_prefix="spill")
        return self._threads

    def _spill(self, object_id: bytes, offset: int, size: int) -> None:
        self._spill_count += 1
        name = str(self._spill_count)
        future = self._moved(self.disk.write, name, offset, size)

        def done(future: asyncio.Future[None]) -> None:
            if self._closed or future.cancelled():
                return
            error = future.exception()
            if error is None:
                self.run(self.state.spilled(object_id, offset, name))
            else:
                log.error("object %s cannot be spilled: %s", object_id.hex(), error)
                self.run(self.state.spill_failed(object_id, offset, str(error)))

        future.add_done_callback(done)

    def _restore(self, object_id: bytes, name: str, offset: int, size: int) -> None:
        future = self._moved(self.disk.read, name, offset, size)

        def done(future: asyncio.Future[None]) -> None:
            if self._closed or future.cancelled():
                return
            error = future.exception()
            if error is None:
                self.run(self.state.restored(object_id, offset))
            else:
                log.error("object %s cannot be restored: %s", object_id.hex(), error)
                self.run(self.state.restore_failed(object_id, offset, str(error)))

        future.add_done_callback(done)

    def _moved(
        self, move: Callable[[str, memoryview], None], name: str, offset: int, size: int
    ) -> asyncio.Future[None]:
        """Have a block written or read in a thread."""
        memory = self.arena().memory(offset, size)

        def run() -> None:
            with memory:
                move(name, memory)

        return self._loop.run_in_executor(self._pool(), run)
