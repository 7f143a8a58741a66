"""Listening sockets: who may connect, what is expected of them first, and how many may be silent."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework._base import limits
from framework._net.connection import Connection, Frame, Handler
from framework._net.listener import Listener, connect_unix, hello, peer_uid
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import ProtocolError


class Client:
    """A connection to a listener, and what has come in on it."""

    def __init__(self, path: Path, **handlers: Handler) -> None:
        self.closed = 0
        self.welcomes: list[Frame] = []
        table: dict[int, Handler] = {m.WELCOME: lambda _, frame: self.welcomes.append(frame)}
        self.connection = Connection(
            asyncio.get_running_loop(), connect_unix(str(path)), table, on_close=self._closed, name="test"
        )

    def _closed(self, connection: Connection) -> None:
        self.closed += 1


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Server:
    """A listener, and what it has seen."""

    def __init__(self, path: Path) -> None:
        self.joined: list[Connection] = []
        self.left: list[Connection] = []
        self.frames: list[Frame] = []
        self.refuse: Exception | None = None
        self.listener = Listener(
            asyncio.get_running_loop(),
            str(path),
            {m.FUNCTION: lambda _, frame: self.frames.append(frame)},
            on_peer=self._join,
            on_close=self.left.append,
            ident=b"server",
        )

    def _join(self, connection: Connection) -> dict[str, object] | None:
        if self.refuse is not None:
            raise self.refuse
        self.joined.append(connection)
        return {"fact": 1}


async def spin(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_hello_and_large_frames_right_behind_it(tmp_path: Path) -> None:
    """A peer does not wait for WELCOME: what follows may be far larger than a HELLO may be."""
    server = Server(tmp_path / "s")
    client = Client(tmp_path / "s")
    client.connection.cast(*hello("owner", b"me", "unix:me", {"job": b"j"}))
    blob = b"x" * (3 * limits.MAX_HANDSHAKE_FRAME)
    client.connection.cast(m.FUNCTION, b"h", blob)
    client.connection.cast(m.FUNCTION, b"i", b"small")
    await spin(lambda: len(server.frames) == 2)
    assert server.frames == [[m.FUNCTION, b"h", blob], [m.FUNCTION, b"i", b"small"]]
    assert server.joined[0].peer["job"] == b"j" and server.joined[0].ident == b"me"
    await spin(lambda: client.welcomes)
    assert client.welcomes[0][3] == {"fact": 1}
    client.connection.close()
    await spin(lambda: server.left)
    server.listener.close()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("error", [ProtocolError("no"), KeyError("no")])
async def test_refused_peers(tmp_path: Path, error: Exception) -> None:
    server = Server(tmp_path / "s")
    server.refuse = error
    client = Client(tmp_path / "s")
    client.connection.cast(*hello("owner", b"me"))
    await spin(lambda: client.closed)
    assert not server.listener.connections
    server.listener.close()


async def test_more_silent_peers_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_UNAUTHENTICATED", 4)
    server = Server(tmp_path / "s")
    silent = [connect_unix(str(tmp_path / "s")) for _ in range(6)]
    client = Client(tmp_path / "s")
    client.connection.cast(*hello("owner", b"me"))
    await spin(lambda: len(server.listener.connections) == 4)
    await turns(20)
    assert len(server.listener.connections) == 4 and not server.joined and not client.closed
    for sock in silent[:4]:
        sock.close()
    await spin(lambda: server.joined)
    server.listener.close()
    for sock in silent:
        sock.close()
    await spin(lambda: client.closed)


async def test_silent_peers_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELLO_TIMEOUT", 0.01)
    server = Server(tmp_path / "s")
    client = Client(tmp_path / "s")
    await spin(lambda: client.closed)
    assert server.left == []
    server.listener.close()


async def test_out_of_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_PAUSE", 0.02)
    server = Server(tmp_path / "s")

    class Broken:
        attempts = 0

        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

        def accept(self) -> Any:
            Broken.attempts += 1
            if Broken.attempts < 3:
                raise OSError(24, "Too many open files")
            return self._sock.accept()

    monkeypatch.setattr(server.listener, "_sock", Broken(server.listener._sock))
    client = Client(tmp_path / "s")
    client.connection.cast(*hello("owner", b"me"))
    await spin(lambda: server.joined)
    assert caplog.text.count("Too many open files") == 2
    server.listener.close()
    await spin(lambda: client.closed)


async def test_sockets_are_private_and_paths_may_be_long(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    server = Server(directory / "s")
    assert (directory / "s").stat().st_mode & 0o777 == 0o600
    client = Client(directory / "s")
    client.connection.cast(*hello("owner", b"me"))
    await spin(lambda: server.joined)
    client.connection.close()
    server.listener.close()
    with pytest.raises(OSError):
        connect_unix(str(directory / "s"))


async def test_peers_of_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [os.getuid(), 4711, 4711]  # as the client, the server, and another client see the other end
    monkeypatch.setattr("framework._net.listener.peer_uid", lambda sock: found.pop(0))
    server = Server(tmp_path / "s")
    client = Client(tmp_path / "s")
    client.connection.cast(*hello("owner", b"me"))
    await spin(lambda: client.closed)
    assert not server.joined and not server.listener.connections
    with pytest.raises(PermissionError, match="another user"):
        connect_unix(str(tmp_path / "s"))
    server.listener.close()


def test_the_user_at_the_other_end() -> None:
    with socket.socketpair()[0] as sock:
        assert peer_uid(sock) in (os.getuid(), None)


@pytest.mark.parametrize(
    "first",
    [
        [m.HELLO, limits.PROTOCOL_VERSION + 1, "owner", b"", 1, "", {}],
        [m.NODES, 1],
        [m.WELCOME, 1, b"", {}],
        ["HELLO"],
    ],
    ids=["version", "call", "welcome", "text"],
)
async def test_whoever_does_not_begin_with_hello_is_dropped(tmp_path: Path, first: list[Any]) -> None:
    server = Server(tmp_path / "s")
    client = Client(tmp_path / "s")
    client.connection.post(new_packer()(first))
    await spin(lambda: client.closed)
    assert not server.joined and not client.welcomes
    server.listener.close()


async def test_hello_twice_ends_the_connection(tmp_path: Path) -> None:
    server = Server(tmp_path / "s")
    client = Client(tmp_path / "s")
    client.connection.cast(*hello("owner", b"me"))
    client.connection.cast(*hello("owner", b"me"))
    await spin(lambda: client.closed)
    assert len(server.joined) == len(server.left) == 1
    server.listener.close()


async def test_the_end_of_a_listener_ends_its_connections(tmp_path: Path) -> None:
    server = Server(tmp_path / "s")
    clients = [Client(tmp_path / "s") for _ in range(3)]
    for client in clients:
        client.connection.cast(*hello("owner", b"me"))
    await spin(lambda: len(server.joined) == 3)
    server.listener.close()
    await spin(lambda: all(client.closed for client in clients))
    with pytest.raises(FileNotFoundError):
        connect_unix(str(tmp_path / "s"))
