"""Listening: who is let in, and HELLO first. Unix sockets: mode 0600, peers of the same user only. (For TCP
see `framework._net.tcp`.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from framework._base import limits
from framework._net.address import short_path
from framework._net.connection import Connection, Frame, Handler
from framework._wire import messages as m
from framework.exceptions import ProtocolError

if TYPE_CHECKING:
    from framework._net.tls import StreamSocket

log = logging.getLogger("framework.net")

_UCRED = struct.Struct("3i")


def peer_uid(sock: socket.socket) -> int | None:
    """The user at the other end of a Unix socket, where the system tells."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:  # macOS: the file mode and the directory's mode stand guard alone
        return None
    uid: int = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _UCRED.size))[1]
    return uid


class Acceptor:
    """Accepts connections on a listening socket as long as there is room for more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, name: str) -> None:
        self._loop = loop
        self._sock = sock
        self._name = name
        self._paused = False
        self._ended = False
        loop.add_reader(sock.fileno(), self._accept)

    def _is_full(self) -> bool:
        """Whether nobody more can be taken in for the moment. Who says so calls `_resume` later."""
        raise NotImplementedError

    def _accepted(self, sock: socket.socket) -> None:
        """A new peer."""
        raise NotImplementedError

    def _accept(self) -> None:
        for _ in range(limits.ACCEPT_BATCH):
            if self._is_full():
                self._pause(None)
                return
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors, most likely. The peer is still there: without a pause this would be a
                # busy loop.
                log.error("%s: cannot accept: %s", self._name, error)
                self._pause(limits.ACCEPT_PAUSE)
                return
            self._accepted(sock)

    def _pause(self, seconds: float | None) -> None:
        if not self._paused:
            self._paused = True
            self._loop.remove_reader(self._sock.fileno())
            if seconds is not None:
                self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._paused and not self._ended:
            self._paused = False
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _stop_accepting(self) -> None:
        self._ended = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()


class Greeter:
    """Answers HELLO with WELCOME.

    `on_peer(connection)` is called after a valid HELLO, before any other frame of that peer is handled; it
    may raise `ProtocolError` to refuse. A peer that says nothing for `limits.HELLO_TIMEOUT` is dropped.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handlers: Mapping[int, Handler],
        *,
        on_peer: Callable[[Connection], dict[str, object] | None],
        on_close: Callable[[Connection], None],
        ident: bytes,
        on_batch: Callable[[], None] | None = None,
        name: str = "peer",
    ) -> None:
        self._loop = loop
        self._handlers = {**handlers, m.HELLO: self._on_hello}
        self._on_peer = on_peer
        self._on_close = on_close
        self._on_batch = on_batch
        self._ident = ident
        self._name = name
        self._waiting: dict[Connection, asyncio.TimerHandle] = {}
        self.connections: dict[Connection, None] = {}

    def _greet(self, sock: StreamSocket) -> Connection:
        """A new peer, which has not said HELLO."""
        connection = Connection(
            self._loop,
            sock,
            self._handlers,
            on_close=self._closed,
            on_batch=self._on_batch,
            name=self._name,
            trusted=False,
            serves=True,
        )
        self.connections[connection] = None
        self._waiting[connection] = self._loop.call_later(limits.HELLO_TIMEOUT, self._too_slow, connection)
        return connection

    def _no_longer_waits(self, connection: Connection) -> bool:
        timer = self._waiting.pop(connection, None)
        if timer is None:
            return False
        timer.cancel()
        return True

    def _too_slow(self, connection: Connection) -> None:
        connection.close(ProtocolError("no HELLO in time"))

    def _on_hello(self, connection: Connection, frame: Frame) -> None:
        if not self._no_longer_waits(connection):
            raise ProtocolError("HELLO twice")
        _, version, kind, ident, pid, address, info = frame
        if version != limits.PROTOCOL_VERSION:
            raise ProtocolError(f"protocol version {version}, this is {limits.PROTOCOL_VERSION}")
        connection.kind, connection.ident = kind, ident
        connection.peer = {**info, "pid": pid, "address": address}
        connection.name = f"{kind} {ident.hex()[:8]} (pid {pid})"
        connection.greeted = True
        try:
            facts = self._on_peer(connection)
        except ProtocolError:
            raise
        except Exception as error:
            log.exception("%s: HELLO of %s failed", self._name, connection.name)
            raise ProtocolError(f"HELLO failed: {error}") from error
        connection.cast(m.WELCOME, limits.PROTOCOL_VERSION, self._ident, facts or {})

    def _closed(self, connection: Connection) -> None:
        self.connections.pop(connection, None)
        if not self._no_longer_waits(connection) and connection.greeted:
            self._on_close(connection)

    def _end_connections(self) -> None:
        for connection in list(self.connections):
            connection.close(None)


class Listener(Acceptor, Greeter):
    """Accepts connections of this user on a Unix socket and greets them (see `Greeter`)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: str,
        handlers: Mapping[int, Handler],
        *,
        on_peer: Callable[[Connection], dict[str, object] | None],
        on_close: Callable[[Connection], None],
        ident: bytes,
        on_batch: Callable[[], None] | None = None,
        name: str = "peer",
    ) -> None:
        Greeter.__init__(
            self,
            loop,
            handlers,
            on_peer=on_peer,
            on_close=on_close,
            ident=ident,
            on_batch=on_batch,
            name=name,
        )
        self.path = path
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            with short_path(path) as address:
                sock.bind(address)
        except BaseException:
            sock.close()
            raise
        # The directory is 0700 already; changing the umask instead would hit files that other threads create
        # meanwhile.
        os.chmod(path, 0o600)
        sock.listen(limits.LISTEN_BACKLOG)
        Acceptor.__init__(self, loop, sock, name)

    def _is_full(self) -> bool:
        # Until one of them has said HELLO, or its time is up; others wait in the backlog.
        return len(self._waiting) >= limits.MAX_UNAUTHENTICATED

    def _accepted(self, sock: socket.socket) -> None:
        if peer_uid(sock) not in (None, os.getuid()):
            sock.close()
        else:
            self._greet(sock)

    def _no_longer_waits(self, connection: Connection) -> bool:
        waited = super()._no_longer_waits(connection)
        if waited:
            self._resume()
        return waited

    def close(self) -> None:
        """Stop listening, remove the socket's file and end all its connections."""
        self._stop_accepting()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self._end_connections()


def hello(
    kind: str, ident: bytes, address: str = "", info: dict[str, object] | None = None
) -> tuple[object, ...]:
    """The HELLO frame of this process."""
    return (m.HELLO, limits.PROTOCOL_VERSION, kind, ident, os.getpid(), address, info or {})


def connect_unix(path: str) -> socket.socket:
    """A connected non-blocking socket. Connecting to a Unix socket does not wait for the other side;
    `OSError` when nobody listens (or its backlog is full), `PermissionError` when that is another user."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with short_path(path) as address:
            sock.connect(address)
        if peer_uid(sock) not in (None, os.getuid()):
            raise PermissionError(f"another user listens at {path}")
    except BaseException:
        sock.close()
        raise
    return sock
