"""Simulated sockets and the network between simulated machines."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework._sim.sockets import FAR_WINDOW
from support.simulated import Machines, simulated

HERE, THERE = "10.0.0.1", "10.0.0.2"


def connected(machines: Machines, server: Callable[[Any], Any], client: Callable[[Any], Any]) -> None:
    """Run the two at the ends of a connection between two machines; returns at once."""

    def serve() -> Any:
        listener = socket.socket()
        listener.bind((HERE, 5000))
        listener.listen()
        sock, address = listener.accept()
        assert address[0] == THERE and sock.getpeername() == address
        return server(sock)

    def connect() -> Any:
        time.sleep(0.1)
        sock = socket.socket()
        sock.connect((HERE, 5000))
        assert sock.getsockname()[0] == THERE and sock.getpeername() == (HERE, 5000)
        return client(sock)

    machines.go(serve, host=HERE, name="server")
    machines.go(connect, host=THERE, name="client")


def read_all(sock: Any) -> bytes:
    data = b""
    while piece := sock.recv(100_000):
        data += piece
    return data


def echo(sock: Any) -> None:
    while data := sock.recv(1000):
        sock.sendall(data)
    sock.close()


@pytest.mark.parametrize("seed", range(6))
def test_streams_arrive_whole_and_in_order(seed: int) -> None:
    sent = b"".join(struct.pack("I", number) for number in range(30_000))

    def send(sock: Any) -> None:
        for start in range(0, len(sent), 7001):
            sock.sendall(sent[start : start + 7001])
        sock.close()

    with simulated(seed) as machines:
        machines.network.partial_sends = 0.5
        machines.network.spike = 0.2
        connected(machines, read_all, send)
        machines.run()
        assert machines.results["server"] == sent


def test_latency_is_seen() -> None:
    def client(sock: Any) -> float:
        begun = time.monotonic()
        for _ in range(100):
            sock.sendall(b"x")
            sock.recv(1)
        sock.close()
        return (time.monotonic() - begun) / 100

    for far in ((0.01, 0.02), (0.1, 0.2)):
        with simulated() as machines:
            machines.network.far = far
            connected(machines, echo, client)
            machines.run()
            assert 2 * far[0] < machines.results["client"] < 2 * far[1] + 0.001


def test_a_partition_holds_bytes_until_it_heals() -> None:
    def client(sock: Any) -> bytes:
        sock.settimeout(5)
        machines.network.partition(HERE, THERE)
        sock.sendall(b"through the wall")
        with pytest.raises(TimeoutError):
            sock.recv(100)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        silent = struct.unpack("8B13I", info[:60])[8 + 12]  # milliseconds
        assert info[2] > 0 and 4000 < silent < 6000
        machines.network.heal(HERE, THERE)
        return bytes(sock.recv(100))

    with simulated() as machines:
        connected(machines, echo, client)
        machines.go(lambda: time.sleep(20), name="idle")
        machines.run_for(15)
        assert machines.results["client"] == b"through the wall"
        assert not machines.network.is_cut((HERE, THERE)) and not machines.network.held


def test_a_connection_is_made_when_the_partition_heals() -> None:
    with simulated() as machines:
        machines.network.partition(THERE, HERE)
        connected(machines, echo, lambda sock: time.monotonic())
        machines.run_for(30)
        assert "client" not in machines.results and not machines.errors
        machines.network.heal(HERE, THERE)
        machines.run_for(1)
        assert 30 < machines.results["client"] < 31


def test_a_machine_without_power_says_nothing() -> None:
    with simulated() as machines:
        connected(machines, read_all, lambda sock: time.sleep(1e6))
        machines.run_for(1)
        machines.network.down[THERE] = None
        for process in list(machines.kernel.processes.values()):
            if process.host == THERE:
                machines.end(process)
        machines.run_for(1000)
        assert "server" not in machines.results and not machines.errors


@pytest.mark.parametrize("seed", range(4))
def test_a_reset_ends_both_sides(seed: int) -> None:
    def client(sock: Any) -> None:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        machines.kernel.call_later(0.5, sock.reset)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert sock.recv(1) == b""  # the error is told once
        with pytest.raises(BrokenPipeError):
            sock.send(b"x")

    def server(sock: Any) -> None:
        with pytest.raises(ConnectionResetError):
            echo(sock)
        sock.close()

    with simulated(seed) as machines:
        connected(machines, server, client)
        machines.run()


def test_closing_with_something_unread_resets() -> None:
    def client(sock: Any) -> None:
        sock.sendall(b"never read")
        time.sleep(1)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)

    def server(sock: Any) -> None:
        time.sleep(0.5)
        sock.close()

    with simulated() as machines:
        connected(machines, server, client)
        machines.run()


def test_closing_after_reading_is_an_end() -> None:
    def client(sock: Any) -> None:
        sock.sendall(b"read")
        assert sock.recv(10) == b"bye" and sock.recv(10) == b""
        sock.sendall(b"into nowhere")
        sock.close()
        sock.close()
        assert sock.fileno() == -1
        for call in (lambda: sock.recv(1), lambda: sock.send(b"x")):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call()

    def server(sock: Any) -> None:
        assert sock.recv(4) == b"read"
        sock.sendall(b"bye")
        sock.close()

    with simulated() as machines:
        connected(machines, server, client)
        machines.run()


def test_half_closed() -> None:
    def client(sock: Any) -> bytes:
        sock.sendall(b"request")
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError):
            sock.send(b"more")
        return read_all(sock)

    def server(sock: Any) -> None:
        assert read_all(sock) == b"request"
        sock.sendall(b"answer")
        sock.close()

    with simulated() as machines:
        connected(machines, server, client)
        machines.run()
        assert machines.results["client"] == b"answer"


def test_the_end_of_a_process_closes_what_it_had() -> None:
    with simulated() as machines:
        connected(machines, read_all, lambda sock: (sock.sendall(b"last words"), time.sleep(1e6)))
        machines.run_for(1)
        for process in list(machines.kernel.processes.values()):
            if process.host == THERE:
                machines.end(process)
        machines.run()
        assert machines.results["server"] == b"last words"


def test_connections_that_are_refused() -> None:
    with simulated() as machines:

        def client() -> None:
            sock = socket.socket()
            with pytest.raises(ConnectionRefusedError):
                sock.connect((HERE, 5999))
            assert socket.socket().connect_ex((HERE, 5999)) == errno.ECONNREFUSED
            with pytest.raises(OSError, match="not connected"):
                socket.socket().send(b"x")
            with pytest.raises(OSError, match="not connected"):
                socket.socket().getpeername()

        machines.go(client, host=THERE)
        machines.run()


def test_whoever_waits_in_the_backlog_of_a_listener_that_closes_is_reset() -> None:
    def server() -> None:
        listener = socket.socket()
        listener.bind((HERE, 5000))
        other = socket.socket()
        with pytest.raises(OSError, match="Address already in use"):
            other.bind((HERE, 5000))
        with pytest.raises(OSError, match="Cannot assign"):
            other.bind((THERE, 5000))
        with pytest.raises(OSError, match="Invalid argument"):
            other.accept()
        listener.listen()
        time.sleep(1)
        listener.close()
        other.bind((HERE, 5000))

    def client() -> None:
        time.sleep(0.1)
        sock = socket.socket()
        sock.connect((HERE, 5000))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)

    with simulated() as machines:
        machines.go(server, host=HERE)
        machines.go(client, host=THERE)
        machines.run()


def test_a_full_window() -> None:
    def client(sock: Any) -> int:
        sock.setblocking(False)
        assert not sock.getblocking()
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += sock.send(bytes(100_000))
        sock.setblocking(True)
        begun = time.monotonic()
        sock.sendall(bytes(1000))  # waits for the reader
        assert time.monotonic() - begun > 5
        sock.close()
        return sent + 1000

    def server(sock: Any) -> int:
        time.sleep(10)
        return len(read_all(sock))

    with simulated() as machines:
        connected(machines, server, client)
        machines.run()
        assert machines.results["client"] == machines.results["server"] == FAR_WINDOW + 1000


def test_partial_sends() -> None:
    def client(sock: Any) -> set[bool]:
        sizes = {sock.send(bytes(1000)) == 1000 for _ in range(50)}
        sock.close()
        return sizes

    with simulated() as machines:
        machines.network.partial_sends = 0.5
        connected(machines, read_all, client)
        machines.run()
        assert machines.results["client"] == {True, False}


def test_peeking_and_reading_into_a_buffer() -> None:
    def server(sock: Any) -> None:
        assert sock.recv(3, socket.MSG_PEEK) == b"abc" == sock.recv(3)
        buffer = bytearray(10)
        assert sock.recv_into(buffer) == 3 and buffer[:3] == b"def"

    with simulated() as machines:
        connected(machines, server, lambda sock: sock.sendall(b"abcdef"))
        machines.run()


def test_unix_sockets_and_passing_descriptors(tmp_path: Path) -> None:
    path, kept = str(tmp_path / "socket"), tmp_path / "file"
    kept.write_text("through a socket")

    def server() -> str:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        with pytest.raises(OSError, match="already in use"):
            socket.socket(socket.AF_UNIX).bind(path)
        sock, _ = listener.accept()
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        assert pid == machines.kernel.current.process.pid + 1 and uid == os.getuid()  # type: ignore[union-attr]
        data, ancillary, _, _ = sock.recvmsg(100, 100)
        assert data == b"take this"
        [(level, kind, content)] = ancillary
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        with open(struct.unpack("i", content)[0]) as file:
            return file.read()

    def client() -> None:
        time.sleep(0.1)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        fd = os.open(kept, os.O_RDONLY)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
        sock.sendmsg([b"take ", b"this"], ancillary)
        os.close(fd)

    with simulated() as machines:
        machines.go(server)
        machines.go(client)
        machines.run()
        assert machines.results["server"] == "through a socket"

        def again() -> None:
            with pytest.raises(ConnectionRefusedError):
                socket.socket(socket.AF_UNIX).connect(path)
            with pytest.raises(FileNotFoundError):
                socket.socket(socket.AF_UNIX).connect(path + "s")

        for process in list(machines.kernel.processes.values()):
            machines.end(process)
        machines.go(again)
        machines.run()


def test_pairs_and_sendfile(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)

    def program() -> None:
        one, other = socket.socketpair()
        with open(path, "rb") as file:
            assert os.sendfile(one.fileno(), file.fileno(), 256, 1000) == 1000
            data = b""
            while len(data) < 1000:
                data += other.recv(1000)
            assert data == path.read_bytes()[256:1256]
            assert os.sendfile(one.fileno(), file.fileno(), 10**6, 10) == 0
        os.write(other.fileno(), b"back")
        assert one.recv(10) == b"back"
        os.close(other.fileno())
        assert one.recv(10) == b""

    with simulated() as machines:
        machines.go(program)
        machines.run()


def test_descriptors_that_never_arrive_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    before = set(os.listdir("/proc/self/fd"))
    with simulated() as machines:

        def sends() -> None:
            one, _other = socket.socketpair()
            with open(path) as file:
                content = struct.pack("i", file.fileno())
                for _ in range(3):
                    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, content)])
            time.sleep(1)
            machines.end(machines.system._process())

        machines.go(sends)
        machines.run()
    assert set(os.listdir("/proc/self/fd")) == before
