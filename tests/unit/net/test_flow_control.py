"""A peer that does not read: what waits for it is counted, senders are told, requests are not read, and at
some point it is cut off. Nobody ever blocks."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from framework._base import limits
from framework._net.connection import Connection, Frame, Handler
from framework._wire import messages as m
from framework._wire.codec import new_packer
from framework.exceptions import ConnectionFailedError

CHUNK = 50_000
PAYLOAD = new_packer()([m.FUNCTION, b"", b"x" * CHUNK])


async def spin(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Slow:
    """A connection whose peer, `reader`, reads only when told."""

    def __init__(self, serves: bool = False, handlers: dict[int, Handler] | None = None) -> None:
        ours, self.reader = socket.socketpair()
        self.reader.setblocking(False)
        self.closed: list[Connection] = []
        self.frames: list[Frame] = []
        self.connection = Connection(
            asyncio.get_running_loop(),
            ours,
            {m.RESOURCES: lambda _, frame: self.frames.append(frame), **(handlers or {})},
            on_close=self.closed.append,
            serves=serves,
        )

    def send_bytes(self, size: int) -> int:
        """Send frames until about so many bytes are not taken yet; the bytes sent."""
        sent = 0
        while sent < size:
            self.connection.send(PAYLOAD)
            sent += len(PAYLOAD)
        return sent

    async def read(self, size: int) -> None:
        """Take that many bytes."""
        loop = asyncio.get_running_loop()
        while size > 0:
            size -= len(await loop.sock_recv(self.reader, min(size, 1 << 20)))

    async def read_all(self) -> int:
        """Take everything there is; the bytes."""
        loop, size = asyncio.get_running_loop(), 0
        while not self.connection.written:
            size += len(await loop.sock_recv(self.reader, 1 << 20))
        while True:
            try:
                size += len(self.reader.recv(1 << 20))
            except BlockingIOError:
                return size


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower ones, so that the tests are fast."""
    monkeypatch.setattr(limits, "SEND_HIGH_WATER", 2 * 2**20)
    monkeypatch.setattr(limits, "SEND_LOW_WATER", 2**19)


@pytest.fixture
async def slow(marks: None) -> AsyncIterator[Slow]:
    slow = Slow()
    yield slow
    slow.connection.close()
    slow.reader.close()


async def test_a_peer_that_reads_never_fills_the_connection(slow: Slow) -> None:
    for _ in range(200):
        await slow.read(slow.send_bytes(CHUNK))
        assert not slow.connection.full


async def test_full_at_the_high_mark_until_the_low_one(slow: Slow) -> None:
    sent = slow.send_bytes(limits.SEND_HIGH_WATER // 2)
    assert slow.connection.congested and not slow.connection.full
    sent += slow.send_bytes(limits.SEND_HIGH_WATER)
    assert slow.connection.full
    await slow.read(sent - limits.SEND_HIGH_WATER)
    await turns()
    assert slow.connection.full, "between the marks nothing changes"
    await slow.read_all()
    await spin(lambda: not slow.connection.full)


@pytest.mark.parametrize("way", ["send", "post", "buffer"])
async def test_every_way_of_sending_counts(slow: Slow, way: str) -> None:
    slow.send_bytes(2**20)  # more than the socket takes
    assert not slow.connection.full
    for _ in range(limits.SEND_HIGH_WATER // CHUNK + 1):
        getattr(slow.connection, way)(PAYLOAD)
    assert slow.connection.full


async def test_nothing_is_lost_and_the_order_stays(slow: Slow) -> None:
    sent = slow.send_bytes(3 * limits.SEND_HIGH_WATER)
    assert slow.connection.full
    assert await slow.read_all() == sent
    await spin(lambda: not slow.connection.congested)
    await slow.read(slow.send_bytes(1))


async def test_whoever_waits_is_told_once(slow: Slow) -> None:
    told: list[str] = []
    slow.connection.when_drained(lambda: told.append("at once"))
    assert told == [], "never in the middle of the caller"
    await spin(lambda: told)
    slow.send_bytes(2 * limits.SEND_HIGH_WATER)
    for name in ("a", "b"):
        slow.connection.when_drained(lambda name=name: told.append(name))  # type: ignore[misc]
    await turns()
    assert told == ["at once"]
    await slow.read_all()
    await spin(lambda: len(told) == 3)
    slow.send_bytes(2 * limits.SEND_HIGH_WATER)
    await slow.read_all()
    await spin(lambda: not slow.connection.full)
    await turns()
    assert told == ["at once", "a", "b"]


async def test_a_service_awaits_room(slow: Slow) -> None:
    """The most that ever waits is the mark and one message."""
    most = sent = 0

    async def produce() -> None:
        nonlocal most, sent
        for _ in range(300):
            await slow.connection.drained()
            slow.connection.send(PAYLOAD)
            sent += len(PAYLOAD)
            most = max(most, slow.connection._backlog)

    producer = asyncio.ensure_future(produce())
    await spin(lambda: slow.connection.full)
    await turns(20)
    assert not producer.done() and sent < 300 * len(PAYLOAD)
    received = 0
    while not producer.done():
        received += await slow.read_all()
        await asyncio.sleep(0)
    received += await slow.read_all()
    assert received == sent == 300 * len(PAYLOAD)
    assert most <= limits.SEND_HIGH_WATER + len(PAYLOAD)


async def test_other_threads_are_counted_and_can_wait(slow: Slow) -> None:
    room = threading.Event()

    def work() -> None:
        for _ in range(100):
            while slow.connection.full:
                room.clear()
                slow.connection.when_drained(room.set)
                assert room.wait(10)
            slow.connection.send(PAYLOAD)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    await spin(lambda: slow.connection.full)
    received = 0
    while any(thread.is_alive() for thread in threads) or not slow.connection.written:
        received += await slow.read_all()
        await asyncio.sleep(0)
    assert received + await slow.read_all() == 300 * len(PAYLOAD)


async def test_the_end_of_the_connection_ends_the_waiting(slow: Slow) -> None:
    slow.send_bytes(2 * limits.SEND_HIGH_WATER)
    waiting = asyncio.ensure_future(slow.connection.drained())
    await turns()
    assert not waiting.done()
    slow.connection.close()
    await asyncio.wait_for(waiting, 10)
    assert not slow.connection.full
    for _ in range(100):
        slow.connection.send(PAYLOAD)
    assert not slow.connection._out, "what is sent to nobody is not kept"


@pytest.mark.parametrize("serves", [True, False])
async def test_only_a_service_stops_reading(marks: None, serves: bool) -> None:
    slow = Slow(serves)
    slow.reader.sendall(new_packer()([m.RESOURCES, 1, True]))
    await spin(lambda: slow.frames)
    slow.send_bytes(2 * limits.SEND_HIGH_WATER)
    await turns()
    slow.reader.sendall(new_packer()([m.RESOURCES, 2, True]))
    if serves:
        await turns(20)
        assert len(slow.frames) == 1, "a request is not read while the answers before it are not taken"
        await slow.read_all()
    await spin(lambda: len(slow.frames) == 2)
    slow.connection.close()
    slow.reader.close()


async def test_a_peer_that_is_gone_is_noticed_although_nothing_is_read(marks: None) -> None:
    slow = Slow(serves=True)
    slow.send_bytes(2 * limits.SEND_HIGH_WATER)
    await turns()
    slow.reader.close()
    await spin(lambda: slow.closed)


async def test_a_peer_for_which_too_much_waits_is_cut_off(
    marks: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "SEND_MAX", 4 * 2**20)
    slow = Slow()
    call = slow.connection.call(m.NODES)
    slow.send_bytes(6 * 2**20)
    await spin(lambda: slow.closed)
    assert isinstance(slow.connection.error, ConnectionFailedError)
    assert "does not take what is sent to it" in caplog.text
    with pytest.raises(ConnectionFailedError):
        await call
    slow.reader.close()


async def test_one_long_frame_is_no_reason_to_cut_off(marks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_MAX", 4 * 2**20)
    slow = Slow()
    frame = new_packer()([m.FUNCTION, b"", bytes(16 * 2**20)])
    slow.connection.send(frame)
    slow.connection.send(PAYLOAD)
    await turns()
    assert slow.connection.full and not slow.closed
    assert await slow.read_all() == len(frame) + len(PAYLOAD)
    slow.connection.close()
    slow.reader.close()
