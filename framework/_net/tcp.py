"""Connections between the processes of a cluster: TCP, authenticated (`framework._wire.handshake`), encrypted
if the cluster has a certificate.

    open_authenticated   a raw socket to another process
    TcpListener          raw sockets from others
    open_connection      a `Connection` that can be sent to at once
    PeerListener         `Connection`s from others that have said HELLO: `Listener`, for TCP

"Raw socket": a `StreamSocket`, non-blocking, of a peer that has proved that it knows the token. Plain, or a
`TlsSocket` (read there what must be watched when reading from one).

Until a peer has proved itself, no byte more is read than the handshake has room for, for no longer than
`limits.HELLO_TIMEOUT`, from no more than `limits.MAX_UNAUTHENTICATED` peers. When there are as many, the
oldest gives way if it has had `limits.AUTHENTICATION_GRACE`; others wait in the system's backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable, Mapping

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net import tls
from framework._net.authenticated import negotiate, open_socket, set_options, shake, within
from framework._net.authenticated import open_authenticated as open_authenticated
from framework._net.connection import Connection, Handler
from framework._net.listener import Acceptor, Greeter
from framework._net.silence import watch as watch
from framework._net.tls import StreamSocket as StreamSocket
from framework._net.tls import TlsSocket
from framework._net.tls import pending as pending
from framework._wire.handshake import NONCE_SIZE, HandshakeError, ServerHandshake
from framework.exceptions import AuthenticationError, ConnectionFailedError

log = logging.getLogger("framework.net")


def bind_tcp(host: str, port: int = 0) -> socket.socket:
    """A listening socket, not accepting yet: its port is known before its address is made. Port 0: any free
    one. OSError when the address is not of this machine, or the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # (Also for a port that the system chooses: whoever wants to have it back after a restart needs it.)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(limits.LISTEN_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class TcpListener(Acceptor):
    """Listens, and calls `on_socket(raw socket)` for each peer that has proved itself.

    It listens at `host` (that of the facts), `port` (0: any free one, see `.port`), or on `sock`, which
    `bind_tcp` has made. An exception of `on_socket` is logged and closes the socket.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        facts: ClusterFacts,
        *,
        on_socket: Callable[[StreamSocket], object],
        host: str | None = None,
        port: int = 0,
        sock: socket.socket | None = None,
        name: str = "tcp",
    ) -> None:
        ServerHandshake(facts.token, facts.cluster_id, bytes(NONCE_SIZE))  # nothing is missing
        self._facts = facts
        self._context: ssl.SSLContext | None = None
        self._binding = b""
        if facts.certificate is not None:
            self._binding = tls.fingerprint(facts.certificate)
            self._context = tls.server_context(facts.certificate, facts.key or b"")
        self._on_socket = on_socket
        self._proving: dict[asyncio.Task[None], float] = {}  #: those that have not proved themselves, by age
        self._patience: asyncio.TimerHandle | None = None
        self._refused = 0  #: that have not been logged
        self._complain_at = 0.0
        sock = sock if sock is not None else bind_tcp(facts.bind if host is None else host, port)
        self.port: int = sock.getsockname()[1]
        super().__init__(loop, sock, name)

    @property
    def unauthenticated(self) -> int:
        """How many peers have not proved themselves."""
        return len(self._proving)

    def _is_full(self) -> bool:
        if len(self._proving) < limits.MAX_UNAUTHENTICATED:
            return False
        oldest = next(iter(self._proving))
        left = self._proving[oldest] + limits.AUTHENTICATION_GRACE - self._loop.time()
        if left <= 0:
            del self._proving[oldest]
            oldest.cancel()
            return False
        if self._patience is None:
            self._patience = self._loop.call_later(left, self._look_again)
        return True

    def _look_again(self) -> None:
        self._patience = None
        self._resume()

    def _accepted(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        task = self._loop.create_task(self._prove(sock), name=f"{self._name}: handshake")
        self._proving[task] = self._loop.time()
        task.add_done_callback(self._proved)

    def _proved(self, task: asyncio.Task[None]) -> None:
        self._proving.pop(task, None)
        self._resume()
        if not task.cancelled() and task.exception() is not None:
            log.error("%s: a new connection failed", self._name, exc_info=task.exception())

    async def _prove(self, sock: socket.socket) -> None:
        stream: StreamSocket = sock
        try:
            async with asyncio.timeout(limits.HELLO_TIMEOUT):
                set_options(sock)
                if self._context is not None:
                    sock = tls.wrap(sock, self._context, server_side=True)
                    await negotiate(self._loop, sock)
                    stream = TlsSocket(sock)
                facts = self._facts
                side = ServerHandshake(facts.token, facts.cluster_id, os.urandom(NONCE_SIZE), self._binding)
                await shake(self._loop, stream, side)
        except HandshakeError as error:
            self._complain(error)
            if error.farewell:
                with contextlib.suppress(OSError):
                    stream.send(error.farewell)
            sock.close()
            return
        except (OSError, TimeoutError):
            sock.close()  # it went away, or said nothing
            return
        except BaseException:
            sock.close()
            raise
        try:
            self._on_socket(stream)
        except BaseException:
            stream.close()
            raise

    def _complain(self, error: HandshakeError) -> None:
        # (Not for each one: whoever may not come in may not fill our disks either.)
        now = self._loop.time()
        if now >= self._complain_at:
            self._complain_at = now + limits.AUTHENTICATION_GRACE
            more = f" (and {self._refused} before)" if self._refused else ""
            log.warning("%s: a connection was refused: %s%s", self._name, error, more)
            self._refused = 0
        else:
            self._refused += 1

    def close(self) -> None:
        """Stop listening. Sockets that were handed out are not touched."""
        self._stop_accepting()
        if self._patience is not None:
            self._patience.cancel()
        for task in list(self._proving):
            task.cancel()


class PeerListener(Greeter):
    """`Listener` for TCP: `on_peer(connection)` is called after authentication and a valid HELLO. See
    `Greeter` and `TcpListener`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        facts: ClusterFacts,
        handlers: Mapping[int, Handler],
        *,
        on_peer: Callable[[Connection], dict[str, object] | None],
        on_close: Callable[[Connection], None],
        ident: bytes,
        on_batch: Callable[[], None] | None = None,
        host: str | None = None,
        port: int = 0,
        sock: socket.socket | None = None,
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
        self._listener = TcpListener(
            loop, facts, on_socket=self._admit, host=host, port=port, sock=sock, name=name
        )
        self.port = self._listener.port

    def _admit(self, sock: StreamSocket) -> None:
        watch(self._loop, self._greet(sock), sock)

    def close(self) -> None:
        """Stop listening and end all its connections."""
        self._listener.close()
        self._end_connections()


# ---- connections that are being opened -------------------------------------------------------------------


def open_connection(
    loop: asyncio.AbstractEventLoop,
    host: str,
    port: int,
    facts: ClusterFacts,
    handlers: Mapping[int, Handler],
    *,
    on_close: Callable[[Connection], None],
    on_batch: Callable[[], None] | None = None,
    name: str = "peer",
    fingerprint: bytes | None = None,
    delay: float = 0.0,
) -> Connection:
    """A connection that may be sent to at once (HELLO first); what is sent waits until the other side has
    been reached. When that does not work, it is closed: `connection.error` says why.

    That is at once when the other machine says that nobody listens there, or when the other side is not of
    this cluster. No answer, or one that breaks off, says little: that machine may just be busy. Then it is
    tried again, for `limits.REACH_TIMEOUT`; whoever hears meanwhile that it is dead closes the connection.
    The first attempt is made after `delay` seconds."""
    connection = Connection(loop, None, handlers, on_close=on_close, on_batch=on_batch, name=name)

    async def reach() -> None:
        problem: Exception
        if delay:
            await asyncio.sleep(delay)
        over, pause = loop.time() + limits.REACH_TIMEOUT, limits.CONNECT_AGAIN
        while True:
            try:
                seconds = limits.CONNECT_TIMEOUT
                sock = await within(seconds, open_socket(loop, host, port, facts, fingerprint))
                connection.adopt(sock)
                watch(loop, connection, sock)
                return
            except AuthenticationError as error:
                problem = error
                break
            except OSError as error:
                # The frames that it has passed, this one too, know it: a circle, which would keep the
                # connection and its buffers until the next garbage collection.
                error.__traceback__ = None
                problem = ConnectionFailedError(f"{host} port {port} cannot be reached: {error}")
                if isinstance(error, ConnectionRefusedError) or loop.time() + pause > over:
                    break
            except Exception as error:
                log.exception("%s: cannot be reached", name)
                problem = ConnectionFailedError(f"{host} port {port}: {type(error).__name__}: {error}")
                break
            await asyncio.sleep(pause)
            pause *= 2
        connection.opener = None  # it ends by itself
        connection.close(problem)

    connection.opener = loop.create_task(reach(), name=f"open {name}")
    return connection
