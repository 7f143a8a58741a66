"""Connections that can be sent to before the other side has been reached."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

import pytest

from framework._base import limits
from framework._net.connection import Connection, Frame, Handler
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import ConnectionFailedError, NodeDiedError

ITEM = m.UNBORROW  # a message with one list


class Side:
    """A connection, opening if it has no socket, and what has come in on it."""

    def __init__(self, sock: socket.socket | None, **handlers: Handler) -> None:
        self.frames: list[Frame] = []
        self.closed = 0
        table: dict[int, Handler] = {ITEM: self._frame, m.FUNCTION: self._frame}
        table |= {getattr(m, name): handler for name, handler in handlers.items()}
        self.connection = Connection(
            asyncio.get_running_loop(), sock, table, on_close=self._closed, name="test"
        )

    def _frame(self, connection: Connection, frame: Frame) -> None:
        self.frames.append(frame)

    def _closed(self, connection: Connection) -> None:
        self.closed += 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def numbers(side: Side) -> list[int]:
    return [frame[1][0] for frame in side.frames if frame[0] == ITEM]


async def test_what_was_sent_meanwhile_arrives_first_and_in_order() -> None:
    a, b = socket.socketpair()
    opening, other = Side(None), Side(b)
    connection, pack = opening.connection, new_packer()

    def send_some(first: int) -> None:
        for n in range(first, first + 99, 3):
            connection.post(pack([ITEM, [n]]))
            connection.buffer(pack([ITEM, [n + 1]]))
            connection.send(pack([ITEM, [n + 2]]))

    assert connection.opening and not connection.full
    send_some(0)
    connection.flush()
    connection.flush(wait=True)
    await asyncio.sleep(0)
    assert connection.opening and not connection.written and connection.congested
    connection.adopt(a)
    assert not connection.opening
    send_some(99)
    await until(lambda: len(other.frames) == 198)
    assert numbers(other) == list(range(198))
    assert connection.written and not connection.congested
    send_some(198)
    await until(lambda: len(other.frames) == 297)
    other.connection.cast(ITEM, [1])
    await until(lambda: opening.frames)
    connection.close()
    await until(lambda: other.closed)
    assert opening.closed == other.closed == 1


async def test_nothing_was_sent_meanwhile() -> None:
    a, b = socket.socketpair()
    opening, other = Side(None), Side(b)
    opening.connection.adopt(a)
    await asyncio.sleep(0.01)
    assert not opening.connection.congested
    opening.connection.send(new_packer()([ITEM, [1]]))
    await until(lambda: other.frames)
    opening.connection.close()
    other.connection.close()


async def test_threads_that_send_while_it_opens() -> None:
    a, b = socket.socketpair()
    opening, other = Side(None), Side(b)
    start = threading.Barrier(5)

    def work(sender: int) -> None:
        pack = new_packer()
        start.wait()
        for n in range(2000):
            opening.connection.send(pack([ITEM, [sender, n]]))

    threads = [threading.Thread(target=work, args=(sender,)) for sender in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    await until(lambda: len(opening.connection._out) > 500)
    opening.connection.adopt(a)
    await until(lambda: len(other.frames) == 8000)
    for thread in threads:
        thread.join()
    for sender in range(4):
        assert [frame[1][1] for frame in other.frames if frame[1][0] == sender] == list(range(2000))
    opening.connection.close()
    other.connection.close()


async def test_calls_are_answered_when_it_is_open() -> None:
    a, b = socket.socketpair()
    opening = Side(None)
    call = opening.connection.call(m.RESOURCES, True)
    other = Side(b, RESOURCES=lambda connection, frame: connection.reply(frame[1], "answer"))
    opening.connection.adopt(a)
    assert await call == "answer"
    opening.connection.close()
    other.connection.close()


async def test_it_is_full_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_HIGH_WATER", 100_000)
    monkeypatch.setattr(limits, "SEND_LOW_WATER", 50_000)
    a, b = socket.socketpair()
    opening, pack = Side(None), new_packer()
    connection = opening.connection
    drained: list[bool] = []
    while not connection.full:
        connection.send(pack([m.FUNCTION, b"", b"x" * 10_000]))
    assert 9 <= len(connection._out) <= 11
    connection.when_drained(lambda: drained.append(connection.full))
    waiting = asyncio.ensure_future(connection.drained())
    await asyncio.sleep(0.01)
    assert not drained and not waiting.done()
    other = Side(b)
    connection.adopt(a)
    await asyncio.wait_for(waiting, 10)
    assert drained == [False] and not connection.full
    await until(lambda: len(other.frames) >= 10)
    connection.close()
    other.connection.close()


async def test_more_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_HIGH_WATER", 100_000)
    monkeypatch.setattr(limits, "SEND_MAX", 1_000_000)
    opening, pack = Side(None), new_packer()
    for _ in range(30):
        opening.connection.send(pack([m.FUNCTION, b"", b"x" * 50_000]))
    await until(lambda: opening.closed)
    assert "does not take" in str(opening.connection.error)
    assert not opening.connection._out


async def test_it_cannot_be_opened() -> None:
    opening = Side(None)
    connection = opening.connection
    calls = [connection.call(m.NODES) for _ in range(2)]
    told: list[bool] = []
    for _ in range(1000):
        connection.cast(ITEM, [1])
    connection.when_drained(lambda: told.append(connection.closed))
    error = NodeDiedError("the node abc has died: no heartbeat")
    connection.close(error)
    connection.close(None)
    assert opening.closed == 1 and connection.error is error and not connection.opening
    for call in calls:
        with pytest.raises(ConnectionFailedError, match="the node abc has died: no heartbeat"):
            await call
    with pytest.raises(ConnectionFailedError):
        await connection.call(m.NODES)
    connection.send(b"x")
    connection.cast(ITEM, [1])
    await asyncio.sleep(0.01)
    assert told == [True] and not connection._out and connection.written


async def test_a_socket_that_comes_too_late_is_closed() -> None:
    a, b = socket.socketpair()
    opening = Side(None)
    opening.connection.close()
    opening.connection.adopt(a)
    assert a.fileno() == -1
    b.close()


async def test_the_end_of_it_ends_what_opens_it() -> None:
    opening = Side(None)
    opener = asyncio.ensure_future(asyncio.Event().wait())
    opening.connection.opener = opener  # type: ignore[assignment]
    opening.connection.close()
    with contextlib.suppress(asyncio.CancelledError):
        await opener
    assert opener.cancelled()
