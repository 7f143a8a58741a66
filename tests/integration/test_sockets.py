"""What comes in on the sockets of a session may be anything: the connection ends, the service lives."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

import framework as fw
from framework._base import limits
from framework._wire import messages as m

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HELLO = msgpack.packb([m.HELLO, limits.PROTOCOL_VERSION, "owner", b"x" * 28, os.getpid(), "", {}])


@fw.remote
def echo(value: object) -> object:
    return value


@fw.remote
class Echo:
    def ping(self) -> int:
        return os.getpid()


@pytest.fixture(scope="module")
def actor(session: object) -> Iterator[object]:
    handle = Echo.remote()
    fw.get(handle.ping.remote(), timeout=20)
    yield handle


def sockets() -> list[Path]:
    """Those of the node, the head, this driver and all workers."""
    directory = Path(fw.init(ignore_reinit_error=True)["session_dir"]) / "sockets"
    # That of the store speaks no frames: it hands out a descriptor and closes.
    return [p for p in directory.iterdir() if stat.S_ISSOCK(p.stat().st_mode) and p.name != "store"]


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(3)
    sock.connect(str(path) if len(str(path)) < 100 else f"/proc/self/fd/{_directory(path)}/{path.name}")
    return sock


_open: dict[Path, int] = {}


def _directory(path: Path) -> int:
    if path.parent not in _open:
        _open[path.parent] = os.open(path.parent, os.O_RDONLY)
    return _open[path.parent]


@pytest.fixture(scope="module", autouse=True)
def _close_directories(session: object) -> Iterator[None]:
    yield
    for fd in _open.values():
        os.close(fd)
    _open.clear()


def ends(sock: socket.socket) -> bool:
    """Whether the other side closes the connection, whatever it says before that."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def first_frame(sock: socket.socket) -> list[object]:
    """The first message of the other side; more may come right behind it."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(sock.recv(65536))
    frame: list[object] = next(unpacker)
    return frame


def send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # it may be closed already
        sock.sendall(data)


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "random": random.Random(1).randbytes(5000),
    "reserved byte": b"\xc1",
    "no array": msgpack.packb("hello"),
    "empty array": msgpack.packb([]),
    "unknown opcode": msgpack.packb([4711]),
    "negative opcode": msgpack.packb([-1]),
    "opcode true": msgpack.packb([True]),
    "wrong arity": msgpack.packb([m.HELLO]),
    "wrong types": msgpack.packb([m.HELLO, "1", 2, 3, 4, 5, 6]),
    "old version": msgpack.packb([m.HELLO, 0, "owner", b"x" * 28, 1, "", {}]),
    "not hello": msgpack.packb([m.LEASE_PRESSURE]),
    "bad utf-8": b"\x97\x01\x01\xa2\xff\xfe\xc4\x00\x01\xa0\x80",
    "ext type": b"\x92\x01\xc7\xff\x05" + b"x" * 255,
    "deep nesting": b"\x91" * 3000,
    "huge arrays": b"\xdd\x7f\xff\xff\xff" * 500,
    "nested large arrays": b"\xdd\x00\x1e\x84\x80" * 1000,
    "huge map": b"\xdf\x7f\xff\xff\xff",
    "huge bin": b"\xc6\x7f\xff\xff\xff",
    "huge str": b"\xdb\xff\xff\xff\xff",
    "oversized": b"\xc6\x00\xff\xff\xff" + b"x" * limits.MAX_HANDSHAKE_FRAME,
    "oversized hello": msgpack.packb([m.HELLO, 1, "owner", b"x" * 2 * limits.MAX_HANDSHAKE_FRAME, 1, "", {}]),
}
UNFINISHED = ("huge bin", "huge str", "nested large arrays")  # the rest of the frame might come yet
AFTER_HELLO = {
    **{name: data for name, data in GARBAGE.items() if not name.startswith("oversized")},
    "hello twice": HELLO,
    "not for this peer": msgpack.packb([m.WELCOME, 1, b"", {}]) + msgpack.packb([m.LEASE_LOST, 1, 2, 3, ""]),
    "task of no template": msgpack.packb([m.TASK, 1, 99, [], None, None]),
    "task of no type": msgpack.packb([m.TASK, "a", [], 3, 4, 5]),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_before_hello(actor: object, name: str) -> None:
    for path in sockets():
        with connect(path) as sock:
            send(sock, GARBAGE[name])
            if name not in UNFINISHED:
                assert ends(sock), f"{path.name} keeps the connection"
    works(actor)


@pytest.mark.parametrize("name", AFTER_HELLO)
def test_garbage_after_hello(actor: object, name: str) -> None:
    for path in sockets():
        with connect(path) as sock:
            sock.sendall(HELLO)
            assert first_frame(sock)[0] == m.WELCOME
            send(sock, AFTER_HELLO[name])
            if name not in UNFINISHED:
                assert ends(sock), f"{path.name} keeps the connection"
    works(actor)


def works(actor: object) -> None:
    """The same processes still serve."""
    assert fw.get([echo.remote(i) for i in range(20)], timeout=20) == list(range(20))
    assert fw.get(actor.ping.remote(), timeout=20) == fw.get(actor.ping.remote(), timeout=20)  # type: ignore[attr-defined]


def test_truncated_frames_at_every_byte(actor: object) -> None:
    frame = HELLO + msgpack.packb([m.FUNCTION, b"h" * 32, b"payload"])
    for path in sockets():
        for end in range(len(frame)):
            with connect(path) as sock:
                sock.sendall(frame[:end])
    works(actor)


def test_random_frames(actor: object) -> None:
    """Valid in form, random in content: for every message of the catalogue, to every socket."""
    rng = random.Random(7)
    samples = [0, -1, 2**63, "", "text", b"", b"b" * 28, [], [1, "a"], {}, {"a": 1}, None, True, 1.5]
    for path in sockets():
        for opcode, message in sorted(m.CATALOGUE.items()):
            if opcode in (m.HELLO, m.NODE_STOP, m.EXIT, m.ACTOR_RUN):
                continue
            with connect(path) as sock:
                sock.sendall(HELLO)
                for _ in range(4):
                    fields = []
                    for allowed in message.types:
                        good = [s for s in samples if isinstance(s, allowed)]
                        fields.append(rng.choice(good))
                    send(sock, msgpack.packb([opcode, *fields]))
    works(actor)


def test_silent_peers_are_dropped_and_do_not_keep_others_out(actor: object) -> None:
    node = next(path for path in sockets() if path.name == "node")
    silent = [connect(node) for _ in range(limits.MAX_UNAUTHENTICATED + 20)]
    began = time.monotonic()
    with connect(node) as sock:
        sock.settimeout(limits.HELLO_TIMEOUT + 5)
        sock.sendall(HELLO)
        assert first_frame(sock)[0] == m.WELCOME
    assert time.monotonic() - began < limits.HELLO_TIMEOUT + 3
    works(actor)
    for sock in silent:
        sock.close()


def test_many_peers_at_once(actor: object) -> None:
    node = next(path for path in sockets() if path.name == "node")
    peers = [connect(node) for _ in range(300)]
    for sock in peers:
        sock.sendall(HELLO)
    for sock in peers:
        assert first_frame(sock)[0] == m.WELCOME
        sock.close()
    works(actor)


def test_modes_of_files(actor: object) -> None:
    root = Path(fw.init(ignore_reinit_error=True)["session_dir"])
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    seen = 0
    for path in root.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"
        seen += 1
    assert seen > 6


def test_no_sockets_outside_of_the_session(actor: object) -> None:
    """No abstract sockets, no TCP ports."""
    root = fw.init(ignore_reinit_error=True)["session_dir"]
    with open("/proc/net/unix") as file:
        assert not [line for line in file if "@" in line and "framework" in line]
    import psutil

    node = psutil.Process(fw.nodes()[0]["pid"])
    for process in [node, *node.children(recursive=True)]:
        assert process.net_connections(kind="inet") == []
        for connection in process.net_connections(kind="unix"):
            if connection.laddr:
                assert str(connection.laddr).startswith((root, "/proc/self/fd/")), connection
