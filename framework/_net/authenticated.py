"""TCP sockets of peers that have proved that they belong to the cluster: how to get one, and what both sides
do for it. See `framework._net.tcp`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Coroutine
from typing import Any

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net import tls
from framework._net.tls import StreamSocket, TlsSocket
from framework._wire.handshake import NONCE_SIZE, ClientHandshake, HandshakeError, ServerHandshake
from framework.exceptions import AuthenticationError, ConnectionFailedError


async def open_authenticated(
    loop: asyncio.AbstractEventLoop,
    host: str,
    port: int,
    facts: ClusterFacts,
    *,
    fingerprint: bytes | None = None,
    timeout: float | None = None,
) -> StreamSocket:
    """A raw socket to the process that listens there, within `timeout` seconds (`limits.CONNECT_TIMEOUT`).

    Encrypted if the cluster has a certificate. A process that is only about to join knows less: its `facts`
    have an empty cluster id (then any cluster with this token is meant), and `fingerprint` (SHA-256, 32
    bytes) in place of the certificate. Raises `ConnectionFailedError` when nobody answers in time or the
    connection breaks, `AuthenticationError` when the other side is not of this cluster or does not let us in.
    """
    seconds = limits.CONNECT_TIMEOUT if timeout is None else timeout
    try:
        return await within(seconds, open_socket(loop, host, port, facts, fingerprint))
    except OSError as error:
        raise ConnectionFailedError(f"{host} port {port} cannot be reached: {error}") from None


async def within(seconds: float, opening: Coroutine[Any, Any, StreamSocket]) -> StreamSocket:
    """What it opens; `TimeoutError` when that takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await opening
    except TimeoutError as error:
        raise error if str(error) else TimeoutError(f"no answer within {seconds:g} s") from None


async def open_socket(
    loop: asyncio.AbstractEventLoop, host: str, port: int, facts: ClusterFacts, fingerprint: bytes | None
) -> StreamSocket:
    """`OSError` when it cannot be reached, `AuthenticationError` when it can."""
    try:
        return await _open_socket(loop, host, port, facts, fingerprint)
    except AuthenticationError as error:
        raise type(error)(f"{host} port {port}: {error}") from None


async def _open_socket(
    loop: asyncio.AbstractEventLoop, host: str, port: int, facts: ClusterFacts, fingerprint: bytes | None
) -> StreamSocket:
    if fingerprint is None and facts.certificate is not None:
        fingerprint = tls.fingerprint(facts.certificate)
    sock: socket.socket = await _connected(loop, host, port)
    try:
        set_options(sock)
        stream: StreamSocket = sock
        if fingerprint is not None:
            sock = tls.wrap(sock, tls.client_context(), server_side=False)
            await negotiate(loop, sock)
            tls.check_pin(sock, fingerprint)
            stream = TlsSocket(sock)
        nonce = os.urandom(NONCE_SIZE)
        side = ClientHandshake(facts.token, facts.cluster_id or None, nonce, fingerprint or b"")
        await _send_all(loop, stream, side.start())
        await shake(loop, stream, side)
        return stream
    except BaseException:
        sock.close()
        raise


async def _connected(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """Non-blocking, to the first of the host's addresses that answers."""
    problem: OSError = ConnectionRefusedError(f"{host} has no address")
    for family, address in await _addresses(loop, host, port):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            if sock.getsockname() == sock.getpeername():
                # Nobody listens, but the system happened to choose this port for our own end.
                raise ConnectionRefusedError("nobody listens there")
            return sock
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
    raise problem


async def _addresses(
    loop: asyncio.AbstractEventLoop, host: str, port: int
) -> list[tuple[socket.AddressFamily, Any]]:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return [(family, (host, port))]
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def set_options(sock: socket.socket) -> None:
    """What all connections between machines have: nothing is held back, and the end of a machine is noticed
    in time even if nothing is sent."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", limits.KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", limits.KEEPALIVE_EVERY),
        ("TCP_KEEPCNT", limits.KEEPALIVE_COUNT),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# ---- both sides ----------------------------------------------------------------------------------------


async def _ready(loop: asyncio.AbstractEventLoop, sock: StreamSocket, writable: bool) -> None:
    """Until the socket can be read (written)."""
    future: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)
    fd = sock.fileno()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    add(fd, ready)
    try:
        await future
    finally:
        remove(fd)


async def negotiate(loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket) -> None:
    """The handshake of TLS."""
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            await _ready(loop, sock, False)
        except ssl.SSLWantWriteError:
            await _ready(loop, sock, True)
        except ssl.SSLError as error:
            raise HandshakeError(
                f"no encrypted connection could be made ({error.reason or error}): is the other side of this "
                "cluster, and is it encrypted too?"
            ) from None
        except ConnectionError:
            raise ConnectionResetError(
                "the connection was closed while encryption was negotiated (is the other side encrypted too?)"
            ) from None


async def _send_all(loop: asyncio.AbstractEventLoop, sock: StreamSocket, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await _ready(loop, sock, True)


async def shake(
    loop: asyncio.AbstractEventLoop, sock: StreamSocket, side: ClientHandshake | ServerHandshake
) -> None:
    """The handshake, to its end, reading not a byte beyond."""
    while not side.done:
        try:
            data = sock.recv(side.wanted)
        except BlockingIOError:
            await _ready(loop, sock, False)
            continue
        if not data:
            raise ConnectionResetError("the connection was closed before the other side had proved itself")
        answer = side.feed(data)
        if answer:
            await _send_all(loop, sock, answer)
