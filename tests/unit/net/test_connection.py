"""Connections over socket pairs: order, threads, slow readers, ends, calls, frames of any size and any
cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable

import msgpack
import pytest

from framework._net.connection import Connection, Frame, Handler
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import ConnectionFailedError, GetTimeoutError, ProtocolError

ITEM = m.UNBORROW  # a message with one list


class Side:
    """A connection, and what has come in on it."""

    def __init__(self, sock: socket.socket, **handlers: Handler) -> None:
        self.frames: list[Frame] = []
        self.closed = 0
        self.batches = 0
        self._news = asyncio.Event()
        table: dict[int, Handler] = {ITEM: self._frame, m.FUNCTION: self._frame}
        table |= {getattr(m, name): handler for name, handler in handlers.items()}
        self.connection = Connection(
            asyncio.get_running_loop(), sock, table, on_close=self._closed, on_batch=self._batch, name="test"
        )

    def _frame(self, connection: Connection, frame: Frame) -> None:
        self.frames.append(frame)
        self._news.set()

    def _batch(self) -> None:
        self.batches += 1

    def _closed(self, connection: Connection) -> None:
        self.closed += 1
        self._news.set()

    async def until(self, condition: Callable[[], object], timeout: float = 10) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def pair(
    left: dict[str, Handler] | None = None, right: dict[str, Handler] | None = None
) -> AsyncIterator[tuple[Side, Side]]:
    a, b = socket.socketpair()
    sides = Side(a, **(left or {})), Side(b, **(right or {}))
    try:
        yield sides
    finally:
        for side in sides:
            side.connection.close()
        assert [side.closed for side in sides] == [1, 1]


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_order_of_all_ways_to_send() -> None:
    async with pair() as (a, b):
        pack = new_packer()
        for n in range(0, 300, 3):
            a.connection.post(pack([ITEM, [n]]))
            a.connection.buffer(pack([ITEM, [n + 1]]))
            a.connection.send(pack([ITEM, [n + 2]]))
        await b.until(lambda: len(b.frames) == 300)
        assert [frame[1][0] for frame in b.frames] == list(range(300))


async def test_posts_of_one_turn_leave_in_one_write() -> None:
    async with pair() as (a, b):
        for n in range(100):
            a.connection.cast(ITEM, [n])
        await b.until(lambda: len(b.frames) == 100)
        assert b.batches == 1


async def test_senders_in_many_threads_keep_their_order() -> None:
    async with pair() as (a, b):
        start = threading.Barrier(5)

        def work(sender: int) -> None:
            pack = new_packer()
            start.wait()
            for n in range(2000):
                a.connection.send(pack([ITEM, [sender, n]]))

        threads = [threading.Thread(target=work, args=(sender,)) for sender in range(4)]
        for thread in threads:
            thread.start()
        start.wait()
        for n in range(2000):
            a.connection.cast(ITEM, [4, n])
            if n % 100 == 0:
                await asyncio.sleep(0)
        await b.until(lambda: len(b.frames) == 10_000)
        for thread in threads:
            thread.join()
        for sender in range(5):
            assert [frame[1][1] for frame in b.frames if frame[1][0] == sender] == list(range(2000))


async def test_a_reader_that_does_not_read_blocks_nobody() -> None:
    a, b = socket.socketpair()
    side = Side(a)
    pack = new_packer()
    blob = b"x" * 50_000
    for n in range(200):
        side.connection.send(
            pack([m.FUNCTION, str(n).encode(), blob])
        )  # 10 MB: far more than the socket takes
    assert side.connection.congested
    for n in range(200, 220):
        await asyncio.to_thread(side.connection.send, pack([m.FUNCTION, str(n).encode(), blob]))
    other = Side(b)
    await other.until(lambda: len(other.frames) == 220)
    assert [int(frame[1]) for frame in other.frames] == list(range(220))
    assert all(frame[2] == blob for frame in other.frames)
    await turns()
    assert not side.connection.congested
    side.connection.send(pack([ITEM, [1]]))
    await other.until(lambda: len(other.frames) == 221)
    side.connection.close()
    await other.until(lambda: other.closed)


@pytest.mark.slow
async def test_big_frames_both_ways_at_once() -> None:
    async with pair() as (a, b):
        blob = random.Random(1).randbytes(20 * 2**20)
        a.connection.cast(m.FUNCTION, b"a", blob)
        b.connection.cast(m.FUNCTION, b"b", blob)
        await b.until(lambda: b.frames)
        await a.until(lambda: a.frames)
        assert a.frames[0][2] == b.frames[0][2] == blob


async def test_byte_by_byte() -> None:
    a, b = socket.socketpair()
    side = Side(a)
    data = b"".join(msgpack.packb([ITEM, [n, "ä" * n]]) for n in range(20))
    b.setblocking(False)
    for position in range(len(data)):
        b.send(data[position : position + 1])
        await turns(1)
    await side.until(lambda: len(side.frames) == 20)
    assert side.frames[19] == [ITEM, [19, "ä" * 19]]
    b.close()
    await side.until(lambda: side.closed)
    assert side.connection.error is None


@pytest.mark.parametrize("cut", [0, 1, 5])
async def test_the_peer_ends_in_the_middle_of_a_frame(cut: int) -> None:
    a, b = socket.socketpair()
    side = Side(a)
    b.sendall(msgpack.packb([ITEM, [1]]) + msgpack.packb([ITEM, ["text"]])[:cut])
    b.close()
    await side.until(lambda: side.closed)
    assert side.frames == [[ITEM, [1]]]
    assert side.closed == 1


async def test_what_was_sent_before_close_arrives() -> None:
    async with pair() as (a, b):
        for n in range(100):
            a.connection.cast(ITEM, [n])
        a.connection.close()
        await b.until(lambda: b.closed)
        assert len(b.frames) == 100


async def test_close_is_final_and_reported_once() -> None:
    async with pair() as (a, b):
        a.connection.close(ProtocolError("mine"))
        a.connection.close(ProtocolError("another"))
        assert str(a.connection.error) == "mine"
        a.connection.cast(ITEM, [1])
        a.connection.send(b"x")
        await b.until(lambda: b.closed)
        await turns()
        assert (a.closed, b.closed, b.frames) == (1, 1, [])


async def test_sending_to_a_peer_that_is_gone() -> None:
    a, b = socket.socketpair()
    side = Side(a)
    b.close()
    for _ in range(10):
        side.connection.send(msgpack.packb([ITEM, [1]]))
    await side.until(lambda: side.closed)


async def test_close_inside_of_a_handler_stops_the_batch() -> None:
    seen = []

    def once(connection: Connection, frame: Frame) -> None:
        seen.append(frame)
        connection.close()

    async with pair(right={"UNBORROW": once}) as (a, b):
        for n in range(10):
            a.connection.cast(ITEM, [n])
        await a.until(lambda: a.closed)
        assert seen == [[ITEM, [0]]]


# ---- calls -------------------------------------------------------------------------------------------


def answer(connection: Connection, frame: Frame) -> None:
    connection.reply(frame[1], {"seen": frame[2]})


async def test_calls_are_answered_by_number() -> None:
    waiting: list[Frame] = []
    async with pair(right={"RESOURCES": lambda _, frame: waiting.append(frame)}) as (a, b):
        calls = [a.connection.call(m.RESOURCES, bool(n % 2)) for n in range(10)]
        while len(waiting) < 10:
            await asyncio.sleep(0)
        for frame in reversed(waiting):
            b.connection.reply(frame[1], frame[1])
        assert await asyncio.gather(*calls) == [frame[1] for frame in waiting]


async def test_errors_of_handlers_come_back() -> None:
    def fails(connection: Connection, frame: Frame) -> None:
        raise [ValueError("bad value"), GetTimeoutError("late"), KeyError("k")][frame[1] - 1]

    async with pair(right={"RESOURCES": fails, "UNBORROW": fails, "NODES": answer_nothing}) as (a, b):
        for expected, text in (
            (ValueError, "bad value"),
            (GetTimeoutError, "late"),
            (Exception, "KeyError: 'k'"),
        ):
            with pytest.raises(expected, match=text):
                await a.connection.call(m.RESOURCES, True)
        assert not b.closed


def answer_nothing(connection: Connection, frame: Frame) -> None:
    """The caller waits."""


async def test_calls_fail_when_the_connection_is_lost() -> None:
    async with pair(right={"NODES": answer_nothing}) as (a, b):
        calls = [a.connection.call(m.NODES) for _ in range(3)]
        await turns()
        b.connection.close()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, ConnectionFailedError)
        with pytest.raises(ConnectionFailedError, match="closed"):
            await a.connection.call(m.NODES)


async def test_a_cancelled_call_does_not_disturb() -> None:
    held: list[Frame] = []
    async with pair(right={"NODES": lambda _, frame: held.append(frame), "RESOURCES": answer}) as (a, b):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(a.connection.call(m.NODES), 0.01)
        b.connection.reply(held[0][1], "too late")
        b.connection.reply(4711, "never asked")
        assert await a.connection.call(m.RESOURCES, True) == {"seen": True}


async def test_a_handler_that_fails_does_not_end_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def fails(connection: Connection, frame: Frame) -> None:
        raise ZeroDivisionError("oops")

    async with pair(right={"UNBORROW": fails, "RESOURCES": answer}) as (a, b):
        a.connection.cast(ITEM, [b"1"])
        assert await a.connection.call(m.RESOURCES, False) == {"seen": False}
    assert "oops" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        msgpack.packb([999]),
        msgpack.packb([ITEM, 5]),
        msgpack.packb([m.WELCOME, 1, b"", {}]),
        b"\xdd\xff\xff\xff\xff",
    ],
)
async def test_protocol_errors_end_the_connection(data: bytes) -> None:
    a, b = socket.socketpair()
    side = Side(a)
    b.sendall(msgpack.packb([ITEM, [1]]) + data + msgpack.packb([ITEM, [2]]))
    await side.until(lambda: side.closed)
    assert side.frames == [[ITEM, [1]]]
    assert isinstance(side.connection.error, ProtocolError)
    b.close()
