"""Reading that passes between a loop and threads: nothing is lost, doubled or out of order, whoever reads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvloop

from framework._net import takeover
from framework._net.connection import Connection
from framework._net.takeover import Parking, Readers, Reading, Turn
from support.shared_reading import ITEM, Shared, readable, wait_for

pytestmark = pytest.mark.skipif(not takeover.AVAILABLE, reason="needs epoll")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    made = Shared(request.param)
    try:
        yield made
    finally:
        made.stop()


def test_the_loop_reads_what_nobody_has_taken(shared: Shared) -> None:
    shared.send(1, 2)
    wait_for(lambda: shared.frames == [1, 2])


def test_a_thread_that_has_taken_it_reads_alone(shared: Shared) -> None:
    turn = Turn()
    assert shared.reading.take(turn)
    shared.send(1)
    shared.turns()
    assert not shared.frames
    assert shared.read_one(turn)
    shared.reading.give_back(turn)
    shared.send(2)
    wait_for(lambda: shared.frames == [1, 2])
    assert shared.by_loop == 1


def test_what_a_thread_leaves_is_for_the_loop(shared: Shared) -> None:
    turn = Turn()
    assert shared.reading.take(turn)
    shared.send(1, 2)  # not exactly one frame
    assert not shared.read_one(turn)
    shared.reading.give_back(turn)
    wait_for(lambda: shared.frames == [1, 2])


def test_one_turn_at_a_time(shared: Shared) -> None:
    first, second = Turn(), Turn()
    assert shared.reading.take(first)
    assert not shared.reading.take(second)
    shared.reading.give_back(second)  # without having had it
    shared.send(1)
    shared.turns()
    assert not shared.frames, "the first has it still"
    shared.reading.give_back(first)
    shared.reading.give_back(first)
    wait_for(lambda: shared.frames == [1])
    assert shared.reading.take(second)
    shared.reading.give_back(second)


def test_not_in_the_middle_of_a_frame(shared: Shared) -> None:
    data = shared.pack([ITEM, [1]])
    shared.sock.sendall(data[:2])
    wait_for(lambda: not readable(shared.reading))
    shared.turns()
    turn = Turn()
    assert not shared.reading.take(turn)
    shared.sock.sendall(data[2:])
    wait_for(lambda: shared.frames == [1])
    wait_for(lambda: shared.reading.take(turn))
    shared.reading.give_back(turn)


def test_a_turn_that_is_not_used_is_taken_back(shared: Shared) -> None:
    turn = Turn()
    assert shared.reading.take(turn)
    shared.on_loop(shared.readers.look)
    shared.on_loop(shared.readers.look)
    assert shared.reading.claim(turn), "nothing has come: it may wait for as long as it likes"
    shared.reading.give_back(turn)
    assert shared.reading.take(turn)
    shared.send(1)
    shared.on_loop(shared.readers.look)
    shared.turns()
    assert not shared.frames, "there was some time to read it, but not much"
    shared.on_loop(shared.readers.look)
    wait_for(lambda: shared.frames == [1])
    assert not shared.reading.claim(turn)
    assert not shared.read_one(turn)


def test_a_turn_in_the_middle_of_its_work_stays(shared: Shared) -> None:
    turn = Turn()
    assert shared.reading.take(turn)
    shared.send(1)
    assert shared.reading.claim(turn)
    for _ in range(3):
        shared.on_loop(shared.readers.look)
    shared.turns()
    assert not shared.frames
    assert shared.read_one(turn)
    shared.reading.give_back(turn)


def test_a_thread_that_comes_again_is_not_late(shared: Shared) -> None:
    for number in range(3):
        turn = Turn()
        assert shared.reading.take(turn)
        shared.send(number)
        shared.on_loop(shared.readers.look)
        assert shared.read_one(turn)
        shared.reading.give_back(turn)
    assert shared.frames == [0, 1, 2] and not shared.by_loop


@pytest.mark.parametrize("meanwhile", ["over", "another's"])
def test_given_back_before_it_was_paused(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Another thread takes it from one that has only begun to take it, and is the first to be done."""
    reading, pause = shared.reading, shared.readers.pause
    first, second, third = Turn(), Turn(), Turn()

    def late(fd: int, paused: Reading) -> None:
        monkeypatch.undo()
        reading.take_back(first)
        assert reading.take(second)
        reading.give_back(second)
        if meanwhile == "another's":
            assert reading.take(third)
        pause(fd, paused)

    monkeypatch.setattr(Readers, "pause", lambda readers, fd, paused: late(fd, paused))
    taken = reading.take(first)
    if meanwhile == "another's":
        reading.give_back(third)
    else:
        assert not taken
    shared.send(1)
    wait_for(lambda: shared.frames == [1])
    assert reading.turn is None


def test_resumed_while_it_is_paused(shared: Shared) -> None:
    """Whatever comes first, the loop knows of everything that is paused, and finds it when it looks."""

    class Epoll:
        def modify(self, fd: int, mask: int) -> None:
            if mask == select.EPOLLONESHOT:
                shared.readers.resume(fd, shared.reading)
            epoll.modify(fd, mask)

    epoll, shared.readers._epoll = shared.readers._epoll, Epoll()  # type: ignore[assignment]
    try:
        shared.readers.pause(shared.reading.fileno(), shared.reading)
    finally:
        shared.readers._epoll = epoll
    shared.send(1)
    shared.turns()
    shared.on_loop(shared.readers.look)
    wait_for(lambda: shared.frames == [1])


def test_interrupted_while_it_gave_back(shared: Shared) -> None:
    turn = Turn()
    assert shared.reading.take(turn)
    with shared.reading._lock:
        shared.reading.turn = None  # and the system call that follows is not made
    shared.send(1)
    shared.turns()
    assert not shared.frames
    shared.on_loop(shared.readers.look)
    wait_for(lambda: shared.frames == [1])


def test_the_peer_goes_while_a_thread_has_it(shared: Shared) -> None:
    turn = Turn()
    assert shared.reading.take(turn)
    shared.send(1)
    shared.sock.close()
    shared.turns()
    assert not shared.closed.is_set(), "what it has said comes first"
    assert shared.read_one(turn)
    assert not shared.read_one(turn)
    shared.reading.give_back(turn)
    assert shared.closed.wait(10)


def test_closed_while_a_thread_has_it(shared: Shared) -> None:
    turn = Turn()
    assert shared.reading.take(turn)
    fd = shared.reading.fileno()
    shared.on_loop(shared.connection.close)
    os.fstat(fd)  # still there: nobody else may get its number while the thread waits for it
    assert readable(shared.reading), "which makes the thread give it back"
    assert not shared.read_one(turn)
    shared.reading.give_back(turn)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    assert not shared.reading.take(turn)


def test_closed_by_its_own_handler(shared: Shared) -> None:
    fd = shared.reading.fileno()
    shared.connection._handlers = {ITEM: lambda connection, _: connection.close()}
    shared.send(1)
    assert shared.closed.wait(10)
    shared.turns()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_not_while_the_connection_reads_no_requests(shared: Shared) -> None:
    connection, turn = shared.connection, Turn()
    assert shared.reading.take(turn)
    shared.on_loop(shared.stop_reading)
    shared.reading.give_back(turn)
    assert not shared.reading.take(turn)
    shared.send(1)
    shared.turns()
    assert not shared.frames
    shared.on_loop(connection._drain)
    wait_for(lambda: shared.frames == [1])
    assert shared.reading.take(turn)
    shared.reading.give_back(turn)


def test_it_reads_requests_again_while_a_thread_has_it(shared: Shared) -> None:
    connection, turn = shared.connection, Turn()
    assert shared.reading.take(turn)
    shared.on_loop(shared.stop_reading)
    shared.on_loop(connection._drain)
    shared.send(1)
    shared.turns()
    assert not shared.frames
    assert shared.read_one(turn)
    shared.reading.give_back(turn)


def test_what_is_wrapped_is_not_shared() -> None:
    class Wrapped(socket.socket):
        """As `ssl.SSLSocket` is one."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, two = socket.socketpair()
        wrapped = Wrapped(fileno=one.detach())
        connection = Connection(loop, wrapped, {}, on_close=lambda _: None)
        readers = Readers(loop)
        connection.share(readers)
        assert connection.shared is None
        connection.close()
        readers.close()
        two.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(3))
def test_order_whoever_reads(shared: Shared, seed: int) -> None:
    """Frames cut anywhere, threads that take the reading over, the loop that takes it back: each frame once,
    in order."""
    count, dice = 2000, random.Random(seed)
    over = threading.Event()
    by_threads = [0, 0]

    def reader(place: int, dice: random.Random) -> None:
        parking = takeover.parking()
        while not over.is_set():
            turn = Turn()
            if shared.reading.take(turn):
                try:
                    if parking.wait(shared.reading.fileno(), 0.001):
                        by_threads[place] += shared.read_one(turn)
                finally:
                    shared.reading.give_back(turn)
            if dice.random() < 0.2:
                parking.wait(-1, 0.0005)

    def look() -> None:
        shared.readers.look()
        if not over.is_set():
            shared.loop.call_later(0.0002, look)

    threads = [threading.Thread(target=reader, args=(n, random.Random(seed + n))) for n in range(2)]
    for thread in threads:
        thread.start()
    shared.on_loop(look)
    try:
        shared.send_in_pieces(count, dice)
    finally:
        over.set()
        for thread in threads:
            thread.join(10)
    assert shared.frames == list(range(count))


# ---- parking -------------------------------------------------------------------------------------------


def test_parking_is_woken_before_or_while_it_waits() -> None:
    parking = Parking()
    parking()
    parking()
    assert not parking.wait(-1, None)
    assert not parking.wait(-1, 0), "one waiting is ended, however often it was called"
    timer = threading.Timer(0.01, parking)
    timer.start()
    assert not parking.wait(-1, None)
    timer.join()


def test_parking_waits_for_a_descriptor() -> None:
    parking = Parking()
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(sock) for sock in socket.socketpair())
        assert not parking.wait(one.fileno(), 0)
        two.send(b"x")
        parking()
        assert parking.wait(one.fileno(), None), "both at once"
        assert not parking.wait(-1, 0), "another, or none, from one time to the next"
        assert parking.wait(one.fileno(), None)


def test_parking_looks_before_it_waits() -> None:
    parking, (ours, theirs) = Parking(), socket.socketpair()
    with ours, theirs:
        began = time.monotonic_ns()
        parking.look(theirs.fileno(), 2_000_000)  # nothing comes
        assert time.monotonic_ns() - began >= 2_000_000
        ours.send(b"x")
        parking.look(theirs.fileno(), 60_000_000_000)
        assert parking.wait(theirs.fileno(), 0)
        theirs.recv(1)
        parking()
        parking.look(theirs.fileno(), 60_000_000_000)  # it has been called
        assert not parking.wait(theirs.fileno(), 60)


def test_a_thread_has_one_parking_and_a_fork_its_own() -> None:
    mine = takeover.parking()
    assert takeover.parking() is mine
    others: list[Parking] = []
    thread = threading.Thread(target=lambda: others.append(takeover.parking()))
    thread.start()
    thread.join()
    assert others[0] is not mine
    pid = os.fork()
    if pid == 0:
        os._exit(takeover.parking() is mine)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
