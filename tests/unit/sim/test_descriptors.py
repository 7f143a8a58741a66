"""Waiting for simulated descriptors."""

from __future__ import annotations

import os
import select
import selectors
import socket
import time
from typing import Any

import pytest

from framework._sim.descriptors import BASE
from support.simulated import simulated


def send_later(sock: Any, data: bytes, seconds: float) -> Any:
    import threading

    timer = threading.Timer(seconds, lambda: sock.sendall(data))
    timer.start()
    return timer


def test_poll_is_level_triggered() -> None:
    with simulated() as machines:

        def program() -> None:
            one, other = socket.socketpair()
            poll = select.poll()
            poll.register(one, select.POLLIN)
            poll.register(other.fileno(), select.POLLOUT)
            assert poll.poll(0) == [(other.fileno(), select.POLLOUT)]
            poll.unregister(other)
            begun = time.monotonic()
            assert poll.poll(1500) == []
            assert time.monotonic() - begun == pytest.approx(1.5, abs=0.01)
            send_later(other, b"ab", 1)
            for _ in range(3):
                assert poll.poll(5000) == [(one.fileno(), select.POLLIN)]
            assert one.recv(1) == b"a"
            assert poll.poll() == [(one.fileno(), select.POLLIN)]
            assert one.recv(1) == b"b"
            assert poll.poll(0) == []
            poll.modify(one, select.POLLIN | select.POLLOUT)
            assert poll.poll() == [(one.fileno(), select.POLLOUT)]
            poll.modify(one, select.POLLIN)
            other.close()
            assert poll.poll() == [(one.fileno(), select.POLLIN)] and one.recv(1) == b""
            number = one.fileno()
            one.close()
            assert poll.poll() == [(number, select.POLLNVAL)]

        machines.go(program)
        machines.run()


def test_a_hang_up_is_reported_whatever_was_asked_for() -> None:
    with simulated() as machines:

        def program() -> None:
            one, other = socket.socketpair()
            poll = select.poll()
            poll.register(one, 0)
            assert poll.poll(100) == []
            other.sendall(b"x")
            assert poll.poll(100) == []
            one.send(b"unread")
            time.sleep(1)
            other.close()
            assert poll.poll() == [(one.fileno(), select.POLLHUP)]

        machines.go(program)
        machines.run()


def test_epoll() -> None:
    with simulated() as machines:

        def program() -> None:
            one, other = socket.socketpair()
            epoll = select.epoll()
            assert epoll.fileno() >= BASE
            epoll.register(one.fileno(), select.EPOLLIN)
            assert epoll.poll(0) == []
            outer = select.poll()  # an epoll can itself be waited for
            outer.register(epoll.fileno(), select.POLLIN)
            assert outer.poll(100) == []
            send_later(other, b"x", 1)
            assert outer.poll() == [(epoll.fileno(), select.POLLIN)]
            assert epoll.poll(0, 8) == epoll.poll(0) == [(one.fileno(), select.EPOLLIN)]
            epoll.modify(one.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
            assert epoll.poll(0) == [(one.fileno(), select.EPOLLIN)]
            assert epoll.poll(0) == [] == outer.poll(0)
            epoll.modify(one.fileno(), select.EPOLLIN)
            assert epoll.poll(0) and outer.poll(0)
            epoll.unregister(one.fileno())
            assert epoll.poll(0) == []
            for call in (lambda: epoll.modify(one.fileno(), 1), lambda: epoll.unregister(one.fileno())):
                with pytest.raises(FileNotFoundError):
                    call()
            with pytest.raises(OSError, match="Bad file"):
                epoll.register(BASE + 10**6, select.EPOLLIN)
            epoll.close()

        machines.go(program)
        machines.run()


def test_selectors() -> None:
    with simulated() as machines:

        def program() -> None:
            one, other = socket.socketpair()
            with selectors.DefaultSelector() as selector:
                key = selector.register(one, selectors.EVENT_READ, "data")
                with pytest.raises(KeyError):
                    selector.register(one, selectors.EVENT_READ)
                with pytest.raises(KeyError):
                    selector.modify(other, selectors.EVENT_READ)
                assert selector.get_key(one) == key and dict(selector.get_map()) == {one.fileno(): key}
                begun = time.monotonic()
                assert selector.select(2.0) == []
                assert time.monotonic() - begun == pytest.approx(2.0, abs=0.01)
                send_later(other, b"x", 1)
                for _ in range(3):
                    assert selector.select() == [(key, selectors.EVENT_READ)]
                both = selectors.EVENT_READ | selectors.EVENT_WRITE
                selector.modify(one, both)
                assert selector.select()[0][1] == both
                one.recv(10)
                assert selector.select()[0][1] == selectors.EVENT_WRITE
                selector.unregister(one)
                assert selector.select(0) == []

        machines.go(program)
        machines.run()


def test_eventfds() -> None:
    with simulated() as machines:

        def program() -> None:
            fd = os.eventfd(0)
            with pytest.raises(BlockingIOError):
                os.read(fd, 8)
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            assert poll.poll(0) == []
            os.write(fd, (3).to_bytes(8, "little"))
            os.write(fd, (4).to_bytes(8, "little"))
            assert poll.poll() == [(fd, select.POLLIN)]
            assert int.from_bytes(os.read(fd, 8), "little") == 7
            os.close(fd)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.read(fd, 8)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.close(fd)

        machines.go(program)
        machines.run()


def test_a_pidfd_is_readable_when_the_process_has_ended() -> None:
    with simulated() as machines:
        process = machines.process()

        def watches() -> float:
            fd = os.pidfd_open(process.pid)
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            assert poll.poll(1000) == []
            for _ in range(2):
                assert poll.poll() == [(fd, select.POLLIN)]
            with pytest.raises(ProcessLookupError):
                os.pidfd_open(process.pid)
            return time.monotonic()

        machines.go(lambda: time.sleep(1e9), process, name="lives")
        machines.go(watches)
        machines.kernel.call_at(5.0, machines.end, process)
        machines.run()
        assert machines.results["watches"] == pytest.approx(5.0, abs=0.01)


def test_real_descriptors_are_left_alone() -> None:
    reading, writing = os.pipe()
    with simulated() as machines:
        assert machines.result(lambda: (os.write(writing, b"real"), os.read(reading, 10))) == (4, b"real")
        machines.result(lambda: (os.close(reading), os.close(writing)))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
