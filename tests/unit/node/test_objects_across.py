"""Stores of several nodes in one process, joined by real connections over loopback."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from framework import exceptions
from framework._base import limits
from framework._net.address import NODE_DIGITS
from framework._net.tcp import open_authenticated
from framework._node import transfer_io, transfer_service
from framework._node.neighbours import Neighbours
from framework._node.objects_across import ObjectsAcross
from framework._node.store_service import StoreService
from framework._wire import messages as m
from support.clusters import cluster_facts
from support.leaks import open_descriptors

MIB = 1 << 20
SIZE = 8 * MIB
CAPACITY = 64 * MIB


class Peer:
    """A process of a node."""

    kind = "driver"

    def __init__(self, node: Node, ident: bytes) -> None:
        self.node = node
        self.ident = ident
        self.closed = False
        self.answers: dict[int, Any] = {}
        self._rid = 0
        node.processes[ident] = self

    def reply(self, rid: int, value: Any = None) -> None:
        self.answers[rid] = value

    fail = reply

    def cast(self, *frame: Any) -> None:
        """It keeps nothing."""

    def call(self, opcode: int, *fields: Any) -> int:
        self._rid += 1
        self.node.handlers[opcode](self, [opcode, self._rid, *fields])
        return self._rid

    def send(self, opcode: int, *fields: Any) -> None:
        self.node.handlers[opcode](self, [opcode, *fields])

    async def ask(self, opcode: int, *fields: Any) -> Any:
        """A call, and its answer; raised if it is an error."""
        rid = self.call(opcode, *fields)
        await until(lambda: rid in self.answers)
        answer = self.answers[rid]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        self.closed = True
        del self.node.processes[self.ident]
        self.node.store.peer_lost(self)  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Node:
    def __init__(self, number: int, directory: Path, tls: bool) -> None:
        self.id = bytes([number]) * 28
        directory.mkdir()
        (directory / "sockets").mkdir()
        loop = asyncio.get_running_loop()
        facts = cluster_facts(node_id=self.id, tls=tls)
        self.facts = facts
        self.is_closed = False
        self.processes: dict[bytes, Any] = {}
        self.store = StoreService(loop, str(directory), CAPACITY, None, self.processes.get)
        self.neighbours = Neighbours(loop, facts)
        self.objects = ObjectsAcross(loop, facts, self.store, self.neighbours)
        self.handlers: dict[int, Any] = {**self.store.handlers, **self.objects.handlers}
        self.port, self.data_port = self.neighbours.listen(), self.objects.listen()
        self.process = Peer(self, bytes([100 + number]) * 28)

    @property
    def row(self) -> dict[str, Any]:
        ports = {"port": self.port, "data_port": self.data_port}
        return {"node_id": self.id, "alive": True, "host": "127.0.0.1", **ports}

    async def make(
        self, object_id: bytes, size: int = SIZE, owner: bytes | None = None, salt: int = 0
    ) -> bytes:
        """An object of this node with contents of its own; these."""
        name = owner or self.process.ident
        offset = await self.process.ask(m.STORE_CREATE, object_id, size, name)
        content = bytes((i * 7 + salt) & 0xFF for i in range(4096)) * (size // 4096)
        self.store.arena().memory(offset, size)[:] = content
        self.process.send(m.STORE_SEAL, object_id, offset, b"", False)
        return content

    async def read(self, object_id: bytes, node: Node, size: int = SIZE) -> bytes:
        offset, there = await self.process.ask(m.STORE_PIN, object_id, node.id, size)
        data = bytes(self.store.arena().memory(offset, there))
        self.process.send(m.STORE_UNPIN, [object_id], [offset])
        return data

    @property
    def stats(self) -> dict[str, int]:
        return {**self.store.state.stats, **self.objects.stats}

    def is_empty(self) -> bool:
        stats = self.stats
        return (
            stats["objects"]
            == stats["used"]
            == stats["pins"]
            == stats["pulls"]
            == stats["copied_objects"]
            == 0
        )

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self.objects.close()
        self.neighbours.close()
        self.store.close()


class Nodes(list[Node]):
    def kill(self, node: Node) -> None:
        """Its connections end, and the head says that it is dead."""
        node.close()
        self.remove(node)
        for other in self:
            other.neighbours.gone(node.id, "it died")

    async def empty(self) -> None:
        await until(lambda: all(node.is_empty() for node in self))


def left_open(before: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Sockets and files that were not open then. (A mapping keeps its file open for good.)"""
    return {
        (fd, what)
        for fd, what in open_descriptors().items()
        if (fd, what) not in before and ("socket" in what or "spill" in what)
    }


@pytest.fixture(params=["plain"])
async def nodes(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    before = set(open_descriptors().items())
    found = Nodes(Node(number, tmp_path / str(number), request.param == "tls") for number in range(1, 5))
    rows = [node.row for node in found]
    for node in found:
        node.neighbours.update(rows)
        node.objects.update(rows)
    everyone = list(found)
    yield found
    for node in everyone:
        node.close()
    try:
        await until(lambda: not left_open(before))
    except TimeoutError:
        raise AssertionError(left_open(before)) from None


ID = b"o" * 28


@pytest.mark.parametrize("nodes", ["plain", "tls"], indirect=True)
async def test_copied_once_and_freed_everywhere(nodes: Nodes) -> None:
    a, b, c, _ = nodes
    content = await a.make(ID)
    assert await asyncio.gather(*(b.read(ID, a) for _ in range(5))) == [content] * 5
    assert b.stats["objects_received"] == 1 and b.stats["copies"] == 1
    assert await c.read(ID, a) == content
    a.process.send(m.STORE_FREE, [ID])
    await nodes.empty()


@pytest.mark.parametrize("nodes", ["plain", "tls"], indirect=True)
async def test_nothing_is_left_of_a_transfer(nodes: Nodes) -> None:
    a, b, *_ = nodes
    gc.collect()
    gc.disable()
    try:
        for number in range(5):
            ident = bytes([number]) * 28
            await a.make(ident, 4096)
            await b.read(ident, a, 4096)
            a.process.send(m.STORE_FREE, [ident])
        await nodes.empty()
        assert not [one for one in gc.get_objects() if type(one) is transfer_io.Progress]
    finally:
        gc.enable()


async def test_from_where_it_was_spilled_to(nodes: Nodes) -> None:
    a, b, *_ = nodes
    content = await a.make(ID)
    for number in range(8):
        await a.make(bytes([number]) * 28)
    await until(lambda: a.stats["spilled_objects"])
    assert a.store.state.blocks[ID].path is not None
    assert await b.read(ID, a) == content
    assert a.stats["restored_objects"] == 0, "straight from the file"


async def test_small_ones_share_a_connection(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, *_ = nodes
    opened: list[Any] = []

    async def opening(*arguments: Any) -> Any:
        opened.append(arguments)
        return await open_authenticated(*arguments)

    monkeypatch.setattr(transfer_service, "open_authenticated", opening)
    contents = {}
    for number in range(50):
        object_id = bytes([number]) * 28
        contents[object_id] = await a.make(object_id, 4096, salt=number)
    for object_id, content in contents.items():
        assert await b.read(object_id, a, 4096) == content
    assert len(opened) == 1
    assert sum(map(len, b.objects.transfers._spare.values())) == 1


# ---- what breaks ---------------------------------------------------------------------------------------


class Valve:
    """Lets a number of bytes of transfers pass; then senders wait, or break off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self.passed = 0
        self.limit = 1 << 60
        self.breaks = False
        write_all = transfer_io.Channel.write_all

        def limited(channel: Any, memory: Any) -> None:
            for start in range(0, len(memory), 65536):
                piece = memoryview(memory)[start : start + 65536]
                if len(memory) > 4096 and self.passed >= self.limit:
                    if self.breaks:
                        self.limit = 1 << 60
                        raise ConnectionResetError("cut")
                    while not self._open.wait(0.01):
                        channel.check()
                write_all(channel, piece)
                self.passed += len(piece)

        monkeypatch.setattr(transfer_io.Channel, "write_all", limited)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def valve(monkeypatch: pytest.MonkeyPatch) -> Valve:
    return Valve(monkeypatch)


async def test_another_copy_goes_on_where_the_source_broke_off(nodes: Nodes, valve: Valve) -> None:
    a, b, c, _ = nodes
    content = await a.make(ID)
    await b.read(ID, a)
    valve.limit, valve.breaks = valve.passed + SIZE // 2, True
    assert await c.read(ID, a) == content
    assert 0 < b.stats["bytes_sent"] <= SIZE // 2 + MIB


async def test_a_source_that_dies_is_replaced(nodes: Nodes, valve: Valve) -> None:
    a, b, c, _ = nodes
    content = await a.make(ID)
    await b.read(ID, a)
    valve.limit = valve.passed + SIZE // 2
    reading = asyncio.ensure_future(c.read(ID, a))
    await until(lambda: valve.passed >= valve.limit)
    nodes.kill(a)
    valve.open()
    assert await reading == content
    assert b.store.state.blocks[ID].primary, "it is kept like a primary now"
    with pytest.raises(exceptions.ObjectLostError):
        await c.read(b"?" * 28, a)
    b.process.send(m.STORE_FREE_AT, a.id, [ID])
    await until(lambda: all(node.stats["objects"] == 0 for node in nodes))


async def test_nobody_else_has_it(nodes: Nodes, valve: Valve) -> None:
    a, b, *_ = nodes
    await a.make(ID)
    valve.limit = SIZE // 2
    reading = asyncio.ensure_future(b.read(ID, a))
    await until(lambda: valve.passed >= valve.limit)
    nodes.kill(a)
    with pytest.raises(exceptions.ObjectLostError):
        await reading
    await until(b.is_empty)


async def test_made_again_with_other_contents_in_the_middle(nodes: Nodes, valve: Valve) -> None:
    a, b, *_ = nodes
    await a.make(ID)
    valve.limit = SIZE // 2
    reading = asyncio.ensure_future(b.read(ID, a))
    await until(lambda: valve.passed >= valve.limit)
    a.store.state.blocks[ID].version = 99  # as if it were another
    a.store.arena().memory(a.store.state.blocks[ID].offset, SIZE)[:] = b"z" * SIZE
    valve.breaks = True
    a_channel = next(iter(a.objects.sender._busy))
    a_channel.stop = True
    await until(lambda: not a.objects.sender._busy)
    valve.limit = 1 << 60
    valve.open()
    assert await reading == b"z" * SIZE, "nothing of the old one"


async def test_who_has_a_part_sends_it_on(nodes: Nodes, valve: Valve) -> None:
    a, b, c, d = nodes
    content = await a.make(ID)
    a.objects.sender.copies._fan_out = 1
    valve.limit = SIZE // 2
    first = asyncio.ensure_future(b.read(ID, a))
    await until(lambda: b.objects.transfers.coming(ID) is not None)
    await until(lambda: (b.objects.transfers.coming(ID) or transfer_io.Progress(bool)).done)
    others = [asyncio.ensure_future(node.read(ID, a)) for node in (c, d)]
    await until(
        lambda: len(b.objects.sender._busy) + len(c.objects.sender._busy) + len(d.objects.sender._busy)
    )
    valve.open()
    assert await asyncio.gather(first, *others) == [content] * 3
    await until(lambda: sum(node.stats["bytes_sent"] for node in nodes) == 3 * SIZE)
    assert a.stats["bytes_sent"] < 3 * SIZE  # (who asks when the first has everything may get it from `a`)
    a.process.send(m.STORE_FREE, [ID])
    await nodes.empty()


async def test_nobody_waits_any_more(nodes: Nodes, valve: Valve) -> None:
    a, b, *_ = nodes
    await a.make(ID)
    valve.limit = SIZE // 2
    reader = Peer(b, b"r" * 28)
    reader.call(m.STORE_PIN, ID, a.id, SIZE)
    await until(lambda: valve.passed >= valve.limit)
    reader.end()
    await until(b.is_empty)
    valve.open()
    a.process.send(m.STORE_FREE, [ID])
    await nodes.empty()


async def test_freed_on_its_way(nodes: Nodes, valve: Valve) -> None:
    a, b, *_ = nodes
    await a.make(ID)
    valve.limit = SIZE // 2
    reading = asyncio.ensure_future(b.read(ID, a))
    await until(lambda: valve.passed >= valve.limit)
    a.process.send(m.STORE_FREE, [ID])
    with pytest.raises(exceptions.ObjectLostError):
        await reading
    valve.open()
    await nodes.empty()


async def test_a_reader_may_ask_before_the_writer_has_reported(nodes: Nodes) -> None:
    a, b, *_ = nodes
    reading = asyncio.ensure_future(b.read(ID, a))
    await until(lambda: ID in a.store.state._parked)
    content = await a.make(ID)
    assert await reading == content


async def test_what_a_living_node_does_not_have_is_lost_soon(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SOURCE_GRACE", 0.05)
    a, b, *_ = nodes
    with pytest.raises(exceptions.ObjectLostError):
        await b.read(ID, a)


@pytest.mark.parametrize("garbage", [b"\xff" * 100, b"\x05\0\0\0\xc1\xc1\xc1\xc1\xc1", b"\x01\0\0\0\x90"])
async def test_garbage_ends_its_connection_alone(nodes: Nodes, garbage: bytes) -> None:
    a, b, *_ = nodes
    content = await a.make(ID)
    loop = asyncio.get_running_loop()
    sock = await open_authenticated(loop, "127.0.0.1", a.data_port, b.facts)
    sock.send(garbage)

    def is_closed() -> bool:
        try:
            return sock.recv(10) == b""
        except BlockingIOError:
            return False

    await until(is_closed)
    sock.close()
    assert await b.read(ID, a) == content


# ---- owners and copies ---------------------------------------------------------------------------------


async def test_the_end_of_an_owner_on_another_node(nodes: Nodes) -> None:
    a, b, c, _ = nodes
    owner = Peer(b, b"w" * 28)
    name = owner.ident + b.id[: NODE_DIGITS // 2]
    await a.make(ID, owner=name)
    await a.make(b"2" * 28, owner=name)
    await c.read(ID, a)
    await until(lambda: b.objects._watchers.get(owner.ident) == {a.id, c.id})
    owner.end()
    await nodes.empty()
    assert not a.objects._watched and not c.objects._watched


async def test_an_owner_that_has_ended_before_anybody_asked(nodes: Nodes) -> None:
    a, b, *_ = nodes
    await a.make(ID, owner=b"w" * 28 + b.id[: NODE_DIGITS // 2])
    await nodes.empty()


async def test_the_node_of_an_owner_dies(nodes: Nodes) -> None:
    a, b, *_ = nodes
    await a.make(ID, owner=b.process.ident + b.id[: NODE_DIGITS // 2])
    await until(lambda: b.objects._watchers)
    nodes.kill(b)
    await nodes.empty()


async def test_copies_that_stay(nodes: Nodes) -> None:
    a, b, *_ = nodes
    content = await a.make(ID)
    assert await a.process.ask(m.STORE_REPLICATE, ID, SIZE, 2) == 2
    assert sum(node.store.state.knows(ID) for node in nodes) == 3
    assert await a.process.ask(m.STORE_REPLICATE, ID, SIZE, 9) == 3, "all there are"
    nodes.kill(a)
    b.store.run(b.store.state.free_known(ID))
    assert await b.read(ID, a) == content
    b.process.send(m.STORE_FREE_AT, a.id, [ID])
    await until(lambda: all(node.stats["objects"] == 0 for node in nodes))


async def test_frees_reach_copies_that_stay_too(nodes: Nodes) -> None:
    a, *_ = nodes
    await a.make(ID)
    await a.process.ask(m.STORE_REPLICATE, ID, SIZE, 3)
    a.process.send(m.STORE_FREE, [ID])
    await nodes.empty()


async def test_an_owner_elsewhere_frees_by_way_of_its_own_node(nodes: Nodes) -> None:
    a, b, c, _ = nodes
    await a.make(ID, owner=b.process.ident + b.id[: NODE_DIGITS // 2])
    await asyncio.gather(b.read(ID, a), c.read(ID, a))
    b.process.send(m.STORE_FREE_AT, a.id, [ID])
    await nodes.empty()


async def test_arguments_are_fetched_ahead_if_there_is_room(nodes: Nodes) -> None:
    a, b, *_ = nodes
    content = await a.make(ID)
    b.process.send(m.STORE_PREFETCH, [[ID, a.id, SIZE]])
    await until(lambda: b.stats["copies"] == 1)
    assert await b.read(ID, a) == content
    assert b.stats["objects_received"] == 1
    pinned = [await b.process.ask(m.STORE_CREATE, bytes([n]) * 28, SIZE, b.process.ident) for n in range(8)]
    assert len(pinned) == 8 and b.stats["copies"] == 0, "it had to make room"
    b.process.send(m.STORE_PREFETCH, [[ID, a.id, SIZE]])
    await until(lambda: not b.stats["pulls"])
    assert b.stats["copies"] == 0, "nobody waits for it: it does not wait for room"


async def test_a_pull_that_nobody_waits_for_any_more_ends(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, _ = nodes
    await a.make(ID)
    valve = Valve(monkeypatch)
    valve.limit = MIB
    first, other = b.process, Peer(b, b"x" * 28)
    for peer in (first, other):
        peer.call(m.STORE_PULL, ID, a.id, SIZE)
    c.process.send(m.STORE_PREFETCH, [[ID, a.id, SIZE]])
    c.process.call(m.STORE_PULL, ID, a.id, SIZE)
    await until(lambda: valve.passed >= MIB)
    first.send(m.STORE_UNPULL, ID)
    c.process.send(m.STORE_UNPULL, ID)
    await until(lambda: 1 in first.answers and 1 in c.process.answers)
    assert b.stats["pulls"] == 1, "another process still waits"
    assert 1 not in other.answers
    other.send(m.STORE_UNPULL, ID)
    await until(lambda: b.stats["pulls"] == 0)
    assert c.stats["pulls"] == 1, "it was fetched as an argument, too"
    valve.open()
    await until(lambda: c.stats["copies"] == 1)
    assert b.stats["objects"] == 0
    assert len(await b.read(ID, a)) == SIZE, "and may be asked for again"


async def test_pulled_without_being_read(nodes: Nodes) -> None:
    a, b, *_ = nodes
    await a.make(ID)
    assert await b.process.ask(m.STORE_PULL, ID, a.id, SIZE) is None
    assert b.stats["copies"] == 1 and b.stats["pins"] == 0
    nodes.kill(a)
    with pytest.raises(exceptions.ObjectLostError):
        await b.process.ask(m.STORE_PULL, b"?" * 28, a.id, SIZE)


async def test_a_node_that_drains_has_work_until_others_have_its_objects(nodes: Nodes) -> None:
    a, b, c, d = nodes
    content = await a.make(ID)
    await a.make(b"2" * 28)
    assert a.objects.without_copy()["objects"] == 0, "it does not drain"
    told: list[dict[str, int]] = []
    a.objects.on_handed_over = lambda: told.append(a.objects.without_copy())
    a.objects.drain()
    # From the first moment on: the node's answer reckons them in, whatever comes first, it or the news.
    assert a.objects.without_copy() == {"objects": 2, "bytes": 2 * SIZE, "lost": 0, "lost_bytes": 0}
    a.objects.update([{**a.row, "draining": True}])
    await until(lambda: told)
    assert told[0] == {"objects": 0, "bytes": 0, "lost": 0, "lost_bytes": 0}
    nodes.kill(a)
    assert await b.read(ID, a) == content
    for node in (b, c, d):
        node.process.send(m.STORE_FREE_AT, a.id, [ID, b"2" * 28])
    await until(lambda: not any(node.stats["objects"] for node in (b, c, d)))


async def test_what_finds_no_room_elsewhere_does_not_keep_a_node_from_ending(nodes: Nodes) -> None:
    a, *others = nodes
    await a.make(ID)
    for node in others:
        nodes.kill(node)
    a.objects.drain()
    await until(lambda: not a.objects.without_copy()["objects"])
    assert a.objects.without_copy() == {"objects": 0, "bytes": 0, "lost": 1, "lost_bytes": SIZE}
    a.process.send(m.STORE_FREE, [ID])
    assert a.objects.without_copy()["lost"] == 0
