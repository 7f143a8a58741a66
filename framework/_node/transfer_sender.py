"""The side of transfers that gives: data connections of other nodes, and who gets what from whom."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net.tcp import StreamSocket, TcpListener, pending
from framework._node import transfer_io as io
from framework._node.store_service import StoreService
from framework._state.blocks import Block
from framework._state.copy_tree import Copies

log = logging.getLogger("framework.store")


class _Reader:
    """Holds the pin of a block that is being sent; to the store it looks like a connection."""

    closed = False

    def __init__(self, ready: Callable[[], None] | None = None) -> None:
        self._ready = ready

    def reply(self, rid: int, value: Any) -> None:
        if self._ready is not None:
            self._ready()

    def fail(self, rid: int, error: BaseException) -> None:
        if self._ready is not None:
            self._ready()

    def cast(self, *frame: object) -> None:
        """It lets go when it is done, and not before."""


class _Request:
    """One object that a node asks for."""

    __slots__ = ("avoid", "channel", "forced", "has_waited", "object_id", "offset", "requester", "version")

    def __init__(self, channel: io.Channel, message: list[Any]) -> None:
        self.channel = channel
        self.object_id, self.requester, self.offset, self.version, self.avoid, self.forced = message
        if not (isinstance(self.object_id, bytes) and isinstance(self.requester, bytes)):
            raise ValueError("not a request")
        if not (isinstance(self.offset, int) and self.offset >= 0 and isinstance(self.avoid, list)):
            raise ValueError("not a request")
        self.has_waited = False


class Sender:
    """Lives on the node's loop; the bytes are sent by threads."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        facts: ClusterFacts,
        store: StoreService,
        *,
        owner_name: Callable[[Any], bytes],
        coming: Callable[[bytes], io.Progress | None],
    ) -> None:
        """`owner_name(owner)` is what other nodes know an owner by; `coming(object id)` the progress of an
        object that is being copied to this node."""
        self._loop = loop
        self._facts = facts
        self._node_id = facts.node_id
        self._store = store
        self._owner_name = owner_name
        self._coming = coming
        self.copies = Copies(facts.node_id)
        self._threads = ThreadPoolExecutor(limits.SENDS_AT_ONCE, thread_name_prefix="send")
        self._idle: dict[io.Channel, bytearray] = {}  #: waiting for a request, with what has come of it
        self._busy: dict[io.Channel, bytes] = {}  #: in the hands of a thread -> for which node
        self._listener: TcpListener | None = None
        self._closed = False
        self.bytes_sent = 0

    # ---- connections ---------------------------------------------------------------------------------

    def listen(self) -> int:
        """Accept data connections; the port."""
        self._listener = TcpListener(self._loop, self._facts, on_socket=self._accepted, name="data")
        return self._listener.port

    def close(self) -> None:
        """End all connections; threads leave off by themselves."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        for channel in list(self._idle):
            self._drop(channel)
        for channel in self._busy:
            channel.stop = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def node_gone(self, node: bytes) -> None:
        """A node is dead."""
        self.copies.node_gone(node)
        for channel, requester in self._busy.items():
            if requester == node:
                channel.stop = True

    def _accepted(self, sock: StreamSocket) -> None:
        if self._closed:
            sock.close()
            return
        self._listen_to(io.Channel(sock))

    def _listen_to(self, channel: io.Channel) -> None:
        if self._closed or channel.stop:
            channel.close()
            return
        self._idle[channel] = bytearray()
        self._loop.add_reader(channel.sock.fileno(), self._readable, channel)
        if pending(channel.sock):
            self._loop.call_soon(self._readable, channel)

    def _drop(self, channel: io.Channel) -> None:
        if self._idle.pop(channel, None) is not None:
            self._loop.remove_reader(channel.sock.fileno())
        channel.close()

    def _readable(self, channel: io.Channel) -> None:
        received = self._idle.get(channel)
        if received is None:
            return
        try:
            data = channel.sock.recv(limits.TRANSFER_FRAME)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data or len(received) + len(data) > limits.TRANSFER_FRAME:
            self._drop(channel)
            return
        received += data
        try:
            message = io.complete_message(received)
            request = _Request(channel, message) if message is not None else None
        except (OSError, ValueError, TypeError) as error:
            log.warning("a data connection was closed: %s", error)
            self._drop(channel)
            return
        if request is not None:
            del self._idle[channel]
            self._loop.remove_reader(channel.sock.fileno())
            self._serve(request)

    # ---- requests ------------------------------------------------------------------------------------

    def _serve(self, request: _Request) -> None:
        if self._closed:
            request.channel.close()
            return
        object_id, state = request.object_id, self._store.state
        reader = _Reader()
        progress = None
        block = state.lend(reader, object_id)
        if block is None:
            progress = self._coming(object_id)
            if progress is not None and not progress.done:
                progress.on_begin.append(lambda: self._serve(request))
                return
            block = state.lend_part(reader, object_id) if progress is not None else None
            if block is None:
                self._not_here(request)
                return
        named = self.copies.ask(object_id, request.requester, request.avoid, request.forced)
        if named is not None:
            self._release(block, reader)
            self._answer(request, ["ask", named])
            return
        self._send(request, block, reader, progress)

    def _release(self, block: Block, reader: _Reader) -> None:
        if reader in block.pins:
            self._store.run(self._store.state.unpin(block.object_id, block.offset, reader))

    def _not_here(self, request: _Request) -> None:
        """It may be on its way from its writer, who has told the reader first; or it is gone."""
        if request.has_waited or (request.forced and request.object_id not in self._store.state.blocks):
            self._answer(request, ["gone"])
            return
        request.has_waited = True
        state, object_id = self._store.state, request.object_id

        def serve() -> None:
            self._serve(request)
            block = state.blocks.get(object_id)
            if block is not None:
                self._release(block, reader)

        def ready() -> None:
            self._loop.call_soon(serve)

        reader = _Reader(ready)
        self._store.with_grace(state.pin((reader, 0), reader, object_id), (reader, 0), limits.SOURCE_GRACE)

    def _answer(self, request: _Request, answer: list[Any]) -> None:
        """A short answer; then the connection waits for the next request."""
        try:
            data = io.packed(answer)
            if request.channel.sock.send(data) != len(data):
                raise BlockingIOError("the connection is full")
        except OSError:
            request.channel.close()
            return
        self._listen_to(request.channel)

    def version_of(self, block: Block) -> bytes:
        """The name of a block's content among all nodes."""
        version = block.version
        if isinstance(version, int):
            return self._node_id[:8] + version.to_bytes(8, "big")
        return version if isinstance(version, bytes) else b""

    def _send(self, request: _Request, block: Block, reader: _Reader, progress: io.Progress | None) -> None:
        channel = request.channel
        if progress is None:
            owner, version = self._owner_name(block.owner), self.version_of(block)
        else:
            owner, version = progress.owner, progress.version
        start = request.offset if request.version == version and request.offset <= block.size else 0
        answer = ["data", block.size, owner, version, start]
        work: Callable[[], str]
        if block.path is not None and reader not in block.pins:
            opened = functools.partial(self._store.disk.open, block.path)
            work = functools.partial(io.send_spilled, channel, answer, opened, start)
        else:
            memory = self._store.arena().memory(block.offset, block.size)
            work = functools.partial(io.send_memory, channel, answer, memory, start, progress)
        self._busy[channel] = request.requester
        future = self._loop.run_in_executor(self._threads, work)

        def done(future: asyncio.Future[str]) -> None:
            self._busy.pop(channel, None)
            problem = "cancelled" if future.cancelled() else future.result()
            if not self._closed:
                self._release(block, reader)
            if problem or self._closed:
                log.debug("object %s was not sent whole: %s", request.object_id.hex(), problem)
                self.copies.broken_off(request.object_id, request.requester)
                channel.close()
                return
            self.bytes_sent += block.size - start
            if self._store.state.knows(request.object_id):
                self.copies.copied(request.object_id, request.requester, True)
            self._listen_to(channel)

        future.add_done_callback(done)
