"""Connections between machines, over loopback: who gets in, who does not, and what they can do meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net import silence, tls
from framework._net.connection import Connection, Frame
from framework._net.listener import hello
from framework._net.tcp import (
    PeerListener,
    StreamSocket,
    TcpListener,
    bind_tcp,
    open_authenticated,
    open_connection,
    pending,
)
from framework._wire import messages as m
from framework._wire.handshake import ClientHandshake
from framework.exceptions import AuthenticationError, ConnectionFailedError, ProtocolError
from support.clusters import cluster_facts

encrypted = pytest.mark.parametrize("tls_on", [False, True], ids=["plain", "tls"])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Raw:
    """A listener for raw sockets, and those that it has let in."""

    def __init__(self, facts: ClusterFacts, **options: Any) -> None:
        self.sockets: list[StreamSocket] = []
        self.listener = TcpListener(
            asyncio.get_running_loop(), facts, on_socket=self.sockets.append, **options
        )
        self.port = self.listener.port

    async def refuses(self, error: Any, text: str, facts: ClusterFacts, **options: Any) -> None:
        """A process with these facts cannot connect."""
        before = len(self.sockets)
        with pytest.raises(error, match=text):
            await self.open(facts, **options)
        await until(lambda: not self.listener.unauthenticated)
        assert len(self.sockets) == before

    async def open(self, facts: ClusterFacts, **options: Any) -> StreamSocket:
        loop = asyncio.get_running_loop()
        return await open_authenticated(loop, "127.0.0.1", self.port, facts, **options)

    async def lets_in(self, facts: ClusterFacts) -> None:
        """Whatever came before, a member gets in."""
        count = len(self.sockets)
        ours = await self.open(facts)
        await until(lambda: len(self.sockets) > count)
        await exchange(ours, self.sockets[-1])
        ours.close()

    def stranger(self) -> socket.socket:
        """A connection of somebody who has not said anything yet."""
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        self.listener.close()
        for sock in self.sockets:
            sock.close()


@contextlib.asynccontextmanager
async def raw(facts: ClusterFacts, **options: Any) -> AsyncIterator[Raw]:
    server = Raw(facts, **options)
    try:
        yield server
    finally:
        server.close()
        await until(lambda: not server.listener.unauthenticated)


async def receive(sock: StreamSocket, size: int) -> bytes:
    data = b""
    async with asyncio.timeout(10):
        while len(data) < size:
            try:
                chunk = sock.recv(min(size - len(data), 1 << 18))
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            assert chunk, "the connection has ended"
            data += chunk
    return data


async def deliver(sock: StreamSocket, data: bytes) -> None:
    async with asyncio.timeout(10):
        while data:
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)


async def exchange(one: StreamSocket, two: StreamSocket, size: int = 100) -> None:
    for source, sink in ((one, two), (two, one)):
        data = os.urandom(size)
        _, arrived = await asyncio.gather(deliver(source, data), receive(sink, size))
        assert arrived == data


async def ended(sock: socket.socket) -> None:
    """Until the other side has closed the connection."""

    def over() -> bool:
        try:
            return not sock.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            return True

    await until(over)


# ---- raw sockets ---------------------------------------------------------------------------------------


@encrypted
async def test_a_member_gets_in(tls_on: bool) -> None:
    facts = cluster_facts(tls=tls_on)
    async with raw(facts) as server:
        ours = await server.open(facts)
        await until(lambda: server.sockets)
        await exchange(ours, server.sockets[0], 3_000_000)
        plain = socket.socket(fileno=os.dup(ours.fileno()))
        assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        plain.close()
        ours.close()


@encrypted
async def test_one_that_joins_knows_only_token_and_fingerprint(tls_on: bool) -> None:
    facts = cluster_facts(tls=tls_on)
    stranger = cluster_facts(cluster_id=b"")
    pin = tls.fingerprint(facts.certificate) if facts.certificate else None
    async with raw(facts) as server:
        (await server.open(stranger, fingerprint=pin)).close()
        await until(lambda: server.sockets)


@encrypted
async def test_no_member_no_entry(tls_on: bool) -> None:
    facts = cluster_facts(tls=tls_on)
    async with raw(facts) as server:
        wrong = cluster_facts(tls=tls_on, token=b"a token of quite another cluster")
        await server.refuses(AuthenticationError, "token", wrong)
        await server.refuses(AuthenticationError, "too short", cluster_facts(tls=tls_on, token=b""))
        other = cluster_facts(tls=tls_on, cluster_id=b"d" * 16)
        await server.refuses(AuthenticationError, "another cluster", other)
        await server.lets_in(facts)


async def test_another_certificate() -> None:
    facts = cluster_facts(tls=True)
    async with raw(facts) as server:
        other = cluster_facts(tls=True, number=1)
        await server.refuses(AuthenticationError, "certificate", other)
        await server.refuses(AuthenticationError, "certificate", facts, fingerprint=bytes(32))
        await server.lets_in(facts)


async def test_one_side_is_encrypted_and_the_other_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(limits, "HELLO_TIMEOUT", 0.3)
    plain, secret = cluster_facts(), cluster_facts(tls=True)
    async with raw(plain) as server:
        await server.refuses((AuthenticationError, ConnectionFailedError), "encrypted", secret)
        await server.lets_in(plain)
    async with raw(secret) as server:
        with pytest.raises((AuthenticationError, ConnectionFailedError)):
            await server.open(plain)
        assert not server.sockets
        await server.lets_in(secret)


async def test_a_listener_needs_a_token_and_a_key() -> None:
    with pytest.raises(AuthenticationError, match="too short"):
        Raw(cluster_facts(token=b"short"))
    facts = cluster_facts(tls=True)
    facts.key = b"no key"
    with pytest.raises(ValueError, match="certificate and key"):
        Raw(facts)


async def test_nobody_listens() -> None:
    loop = asyncio.get_running_loop()
    sock = bind_tcp("127.0.0.1")
    port = sock.getsockname()[1]
    sock.close()
    with pytest.raises(ConnectionFailedError, match=f"127.0.0.1 port {port} cannot be reached"):
        await open_authenticated(loop, "127.0.0.1", port, cluster_facts())


@encrypted
async def test_whoever_listens_says_nothing(tls_on: bool) -> None:
    loop = asyncio.get_running_loop()
    with bind_tcp("127.0.0.1") as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ConnectionFailedError, match=r"no answer within 0\.05 s"):
            await open_authenticated(loop, "127.0.0.1", port, cluster_facts(tls=tls_on), timeout=0.05)


async def test_whoever_listens_speaks_something_else() -> None:
    loop = asyncio.get_running_loop()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 1000)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for facts in (cluster_facts(), cluster_facts(tls=True)):
        with pytest.raises(AuthenticationError, match=f"port {port}"):
            await open_authenticated(loop, "127.0.0.1", port, facts)
    server.close()


async def test_a_recorded_conversation_is_of_no_use() -> None:
    facts = cluster_facts()
    async with raw(facts) as server:
        hello_bytes = ClientHandshake(facts.token, facts.cluster_id, b"1" * 32).start()
        recorded = server.stranger()
        side = ClientHandshake(facts.token, facts.cluster_id, b"1" * 32)
        recorded.send(side.start())
        answer = b""
        while not side.done:
            answer = await receive(recorded, side.wanted)
            proof = side.feed(answer)
        recorded.send(proof)
        await until(lambda: server.sockets)
        replay = server.stranger()
        replay.send(hello_bytes + proof)
        await ended(replay)
        assert len(server.sockets) == 1
        await server.lets_in(facts)
        recorded.close()
        replay.close()


@encrypted
@pytest.mark.parametrize("noise", [b"\x00" * 1_000_000, b"GET / HTTP/1.1\r\n" * 100, b"FWK5\x01C"])
async def test_noise(tls_on: bool, noise: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELLO_TIMEOUT", 0.1)
    facts = cluster_facts(tls=tls_on)
    async with raw(facts) as server:
        sock = server.stranger()
        with contextlib.suppress(OSError):
            sock.send(noise)
        await ended(sock)
        assert not server.sockets
        sock.close()
        monkeypatch.setattr(limits, "HELLO_TIMEOUT", 5)
        await server.lets_in(facts)


@encrypted
@pytest.mark.parametrize("count", [0, 1, 53])
async def test_peers_that_leave_in_the_middle(tls_on: bool, count: int) -> None:
    facts = cluster_facts(tls=tls_on)
    async with raw(facts) as server:
        sock = server.stranger()
        sock.send(ClientHandshake(facts.token, facts.cluster_id, b"1" * 32).start()[:count])
        await asyncio.sleep(0.01)
        sock.close()
        await server.lets_in(facts)
        await until(lambda: not server.listener.unauthenticated)


async def test_a_slow_member_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = cluster_facts()
    async with raw(facts) as server:
        sock = server.stranger()
        side = ClientHandshake(facts.token, facts.cluster_id, b"1" * 32)
        said = side.start()
        while not side.done:
            for byte in said:
                sock.send(bytes([byte]))
                await asyncio.sleep(0)
            said = side.feed(await receive(sock, side.wanted))
        sock.send(said + b"and what follows is not lost")
        await until(lambda: server.sockets)
        assert await receive(server.sockets[0], 28) == b"and what follows is not lost"
        sock.close()


async def test_silent_peers_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELLO_TIMEOUT", 0.02)
    async with raw(cluster_facts()) as server:
        sock = server.stranger()
        await ended(sock)
        sock.close()


async def test_a_flood_of_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of them are held than allowed, and members get in nevertheless."""
    monkeypatch.setattr(limits, "MAX_UNAUTHENTICATED", 8)
    monkeypatch.setattr(limits, "AUTHENTICATION_GRACE", 0.02)
    facts = cluster_facts()
    async with raw(facts) as server:
        strangers = [server.stranger() for _ in range(100)]
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, server.listener.unauthenticated)
                await asyncio.sleep(0)

        watching = asyncio.ensure_future(watch())
        await server.lets_in(facts)
        watching.cancel()
        assert most == 8
        for sock in strangers:
            sock.close()


async def test_many_members_at_once_do_not_push_each_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_UNAUTHENTICATED", 4)
    facts = cluster_facts()
    async with raw(facts) as server:
        ours = await asyncio.gather(*(server.open(facts) for _ in range(60)))
        await until(lambda: len(server.sockets) == 60)
        for sock in ours:
            sock.close()


async def test_the_receiver_of_a_socket_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fails(sock: StreamSocket) -> None:
        raise ZeroDivisionError("oops")

    facts = cluster_facts()
    listener = TcpListener(asyncio.get_running_loop(), facts, on_socket=fails)
    sock = await open_authenticated(asyncio.get_running_loop(), "127.0.0.1", listener.port, facts)
    await ended(sock)  # type: ignore[arg-type]
    assert "oops" in caplog.text
    sock.close()
    listener.close()


async def test_the_end_of_a_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    facts = cluster_facts()
    server = Raw(facts)
    sock = server.stranger()
    await until(lambda: server.listener.unauthenticated)
    server.close()
    await ended(sock)
    sock.close()
    with pytest.raises(ConnectionFailedError):
        await server.open(facts)
    await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_ipv6() -> None:
    try:
        sock = bind_tcp("::1")
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    facts = cluster_facts(host="::1")
    async with raw(facts, sock=sock) as server:
        ours = await open_authenticated(asyncio.get_running_loop(), "::1", server.port, facts)
        await until(lambda: server.sockets)
        ours.close()


async def test_a_host_by_its_name() -> None:
    facts = cluster_facts()
    async with raw(facts) as server:
        (await open_authenticated(asyncio.get_running_loop(), "localhost", server.port, facts)).close()


# ---- connections ---------------------------------------------------------------------------------------


class Server:
    """A listener for connections, and what it has seen."""

    def __init__(self, facts: ClusterFacts, **options: Any) -> None:
        self.joined: list[Connection] = []
        self.left: list[Connection] = []
        self.frames: list[Frame] = []
        self.listener = PeerListener(
            asyncio.get_running_loop(),
            facts,
            {
                m.FUNCTION: lambda _, frame: self.frames.append(frame),
                m.RESOURCES: lambda connection, frame: connection.reply(frame[1], {"a": 1}),
                m.NODES: lambda connection, frame: None,
            },
            on_peer=self._join,
            on_close=self.left.append,
            ident=b"server",
            **options,
        )

    def _join(self, connection: Connection) -> dict[str, object] | None:
        if connection.kind == "nobody":
            raise ProtocolError("not you")
        self.joined.append(connection)
        return {"fact": 1}


class Client:
    """A connection that is opened to a listener."""

    def __init__(self, port: int, facts: ClusterFacts) -> None:
        self.closed = 0
        self.frames: list[Frame] = []
        self.connection = open_connection(
            asyncio.get_running_loop(),
            "127.0.0.1",
            port,
            facts,
            {m.WELCOME: self._frame, m.FUNCTION: self._frame},
            on_close=self._closed,
            name="test",
        )

    def _frame(self, connection: Connection, frame: Frame) -> None:
        self.frames.append(frame)

    def _closed(self, connection: Connection) -> None:
        self.closed += 1


@encrypted
async def test_a_connection_is_used_before_it_is_open(tls_on: bool) -> None:
    facts = cluster_facts(tls=tls_on)
    server = Server(facts)
    client = Client(server.listener.port, facts)
    connection = client.connection
    assert connection.opening
    connection.cast(*hello("node", b"me"))
    blob = os.urandom(3 * limits.MAX_HANDSHAKE_FRAME)
    for n in range(3):
        connection.cast(m.FUNCTION, str(n).encode(), blob)
    assert await connection.call(m.RESOURCES, True) == {"a": 1}
    assert [frame[1] for frame in server.frames] == [b"0", b"1", b"2"]
    assert all(frame[2] == blob for frame in server.frames)
    assert client.frames[0][3] == {"fact": 1} and not connection.opening
    for n in range(50):
        server.joined[0].cast(m.FUNCTION, b"x", blob[: 100_000 + n])
    await until(lambda: len(client.frames) == 51)
    assert all(frame[2] == blob[: 100_000 + n] for n, frame in enumerate(client.frames[1:]))
    connection.close()
    await until(lambda: server.left)
    server.listener.close()
    assert client.closed == 1


@encrypted
async def test_threads_and_both_directions_at_once(tls_on: bool) -> None:
    """An SSL object stands one thread at a time: sending threads meet the loop that receives."""
    facts = cluster_facts(tls=tls_on)
    server = Server(facts)
    client = Client(server.listener.port, facts)
    client.connection.cast(*hello("node", b"me"))
    await until(lambda: server.joined)
    from framework._wire.codec import new_packer

    blob = os.urandom(50_000)

    def work(connection: Connection) -> None:
        pack = new_packer()
        for n in range(100):
            connection.send(pack([m.FUNCTION, str(n).encode(), blob]))

    await asyncio.gather(
        *(asyncio.to_thread(work, side) for side in (client.connection, server.joined[0]) for _ in range(3))
    )
    await until(lambda: len(server.frames) == 300 and len(client.frames) == 301)
    assert all(frame[2] == blob for frame in server.frames + client.frames[1:])
    client.connection.close()
    await until(lambda: server.left)
    server.listener.close()


async def test_a_connection_that_cannot_be_opened() -> None:
    facts = cluster_facts()
    with bind_tcp("127.0.0.1") as sock:
        port = sock.getsockname()[1]
    client = Client(port, facts)
    call = client.connection.call(m.RESOURCES, True)
    with pytest.raises(ConnectionFailedError, match=f"port {port} cannot be reached"):
        await call
    assert client.closed == 1 and client.connection.closed
    server = Server(facts)
    stranger = Client(server.listener.port, cluster_facts(token=b"x" * 32))
    await until(lambda: stranger.closed)
    assert isinstance(stranger.connection.error, AuthenticationError) and not server.joined
    server.listener.close()


async def test_nothing_is_left_of_a_connection_that_was_refused() -> None:
    facts = cluster_facts()
    with bind_tcp("127.0.0.1") as sock:
        port = sock.getsockname()[1]
    client = Client(port, facts)
    gc.disable()
    try:
        await until(lambda: client.closed)
        connection = weakref.ref(client.connection)
        del client.connection
        await until(lambda: connection() is None)
    finally:
        gc.enable()


async def test_a_peer_that_is_too_busy_at_first_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = cluster_facts()
    loop = asyncio.get_running_loop()
    with bind_tcp("127.0.0.1") as sock:
        port = sock.getsockname()[1]
        client = Client(port, facts)
        client.connection.cast(*hello("node", b"me"))
        for _ in range(2):  # it breaks off
            refused, _ = await loop.sock_accept(sock)
            refused.close()
        assert client.connection.opening
        server = Server(facts, sock=sock.dup())
    await until(lambda: server.joined)
    client.connection.close()
    server.listener.close()


async def test_a_peer_that_is_too_busy_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REACH_TIMEOUT", 0.2)
    monkeypatch.setattr(limits, "CONNECT_TIMEOUT", 0.02)
    with bind_tcp("127.0.0.1") as silent:
        client = Client(silent.getsockname()[1], cluster_facts())
        await until(lambda: client.closed)
    assert "no answer within 0.02 s" in str(client.connection.error)


async def test_a_connection_that_is_closed_while_it_opens() -> None:
    before = len(os.listdir("/proc/self/fd"))
    facts = cluster_facts()
    with bind_tcp("127.0.0.1") as silent:
        client = Client(silent.getsockname()[1], facts)
        await asyncio.sleep(0.02)
        client.connection.close()
        assert client.closed == 1
    await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_peers_that_are_refused_or_say_no_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELLO_TIMEOUT", 0.1)
    facts = cluster_facts()
    server = Server(facts)
    refused, silent = Client(server.listener.port, facts), Client(server.listener.port, facts)
    refused.connection.cast(*hello("nobody", b"me"))
    await until(lambda: refused.closed and silent.closed)
    assert not server.joined and not server.listener.connections
    server.listener.close()


@encrypted
async def test_a_machine_that_does_not_answer(tls_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """(How that looks in a real network: tests/integration/test_network_namespaces.py.)"""
    monkeypatch.setattr(limits, "MACHINE_SILENCE", 0.04)
    seconds = 0.0
    real = silence.unanswered

    facts = cluster_facts(tls=tls_on)
    server = Server(facts)

    def unanswered(sock: StreamSocket) -> float:
        assert real(sock) == 0
        # (Only to the client: or the other side may be the first to see it.)
        return seconds if sock.getsockname()[1] != server.listener.port else 0.0

    monkeypatch.setattr(silence, "unanswered", unanswered)
    client = Client(server.listener.port, facts)
    client.connection.cast(*hello("node", b"me"))
    await until(lambda: server.joined)
    await asyncio.sleep(0.06)
    assert not client.closed and not server.left
    seconds = 0.05
    call = client.connection.call(m.NODES)
    with pytest.raises(ConnectionFailedError, match=r"has not answered for 0\.04 s"):
        await call
    await until(lambda: server.left)
    server.listener.close()


# ---- TLS -----------------------------------------------------------------------------------------------


async def test_data_that_is_decrypted_is_not_forgotten() -> None:
    """What a reader leaves of a record is not seen by polling: `pending` tells."""
    facts = cluster_facts(tls=True)
    async with raw(facts) as server:
        ours = await server.open(facts)
        await until(lambda: server.sockets)
        theirs = server.sockets[0]
        await deliver(ours, b"x" * 1000)
        await until(lambda: pending(theirs) or receive_some(theirs, 10))
        assert pending(theirs) == 990
        assert theirs.recv(990) == b"x" * 990 and pending(theirs) == 0
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        # Room for a record: nothing stays behind.
        await deliver(ours, b"y" * 100_000)
        left = 100_000
        while left:
            try:
                left -= len(theirs.recv(20_000))
            except BlockingIOError:
                await asyncio.sleep(0.001)
            assert not pending(theirs)
        # Straight into memory.
        await deliver(ours, b"z" * 50_000)
        buffer, done = bytearray(50_000), 0
        while done < 50_000:
            try:
                done += theirs.recv_into(memoryview(buffer)[done:])
            except BlockingIOError:
                await asyncio.sleep(0.001)
        assert buffer == b"z" * 50_000
        ours.close()
        await until(lambda: ends(theirs))


def receive_some(sock: StreamSocket, count: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        assert sock.recv(count) == b"x" * count
        return True
    return False


def ends(sock: StreamSocket) -> bool:
    try:
        return not sock.recv(100)
    except BlockingIOError:
        return False


async def test_a_connection_that_begins_with_decrypted_data() -> None:
    """HELLO may come in the same record as the end of the handshake: the loop would not be told."""
    facts = cluster_facts(tls=True)
    server = Server(facts)
    loop = asyncio.get_running_loop()
    real_send = tls.TlsSocket.send
    held: list[bytes] = []

    def together(self: tls.TlsSocket, data: bytes) -> int:
        if len(data) == 32 and not held:  # the client's proof
            held.append(bytes(data))
            return len(data)
        return real_send(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls.TlsSocket, "send", together)
        sock = await open_authenticated(loop, "127.0.0.1", server.listener.port, facts)
    from framework._wire.codec import new_packer

    sock.send(held[0] + new_packer()(hello("node", b"me")))
    await until(lambda: server.joined)
    sock.close()
    server.listener.close()


def test_certificates_in_pem_form_only() -> None:
    with pytest.raises(ValueError, match="PEM"):
        tls.fingerprint(b"no certificate")
