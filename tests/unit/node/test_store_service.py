"""The store's service over a real loop, arena and disk, with connections that only take notes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framework import exceptions
from framework._base import limits
from framework._node.store_service import StoreService
from framework._store.arena import Arena, receive_arena
from framework._wire import messages as m

MIB = 1 << 20
CAPACITY = 4 * MIB
OWNER = b"owner"


class Peer:
    """A process of the node."""

    def __init__(self, service: StoreService) -> None:
        self.service = service
        self.closed = False
        self.answers: dict[int, Any] = {}
        self.casts: list[tuple[Any, ...]] = []
        self._rid = 0

    def reply(self, rid: int, value: Any = None) -> None:
        self.answers[rid] = value

    fail = reply

    def cast(self, opcode: int, *fields: Any) -> None:
        self.casts.append((opcode, *fields))

    def call(self, opcode: int, *fields: Any) -> int:
        self._rid += 1
        self.service.handlers[opcode](self, [opcode, self._rid, *fields])  # type: ignore[arg-type]
        return self._rid

    def send(self, opcode: int, *fields: Any) -> None:
        self.service.handlers[opcode](self, [opcode, *fields])  # type: ignore[arg-type]


class Node:
    def __init__(self, session_dir: Path) -> None:
        (session_dir / "sockets").mkdir()
        self.dir = session_dir
        self.loop = asyncio.new_event_loop()
        self.peers: dict[bytes, Peer] = {}
        self.service = StoreService(
            self.loop,
            str(session_dir),
            CAPACITY,
            None,
            self.peers.get,  # type: ignore[arg-type]
        )
        self.owner = self.peers[OWNER] = Peer(self.service)

    def until(self, condition: Callable[[], bool]) -> None:
        async def turn() -> None:
            async with asyncio.timeout(10):
                while not condition():
                    await asyncio.sleep(0.001)

        self.loop.run_until_complete(turn())

    def call(self, peer: Peer, opcode: int, *fields: Any) -> Any:
        """The answer; raised if it is an error."""
        rid = peer.call(opcode, *fields)
        self.until(lambda: rid in peer.answers)
        answer = peer.answers[rid]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def make(self, number: int, mib: int = 1) -> bytes:
        object_id = bytes([number]) * 28
        offset = self.call(self.owner, m.STORE_CREATE, object_id, mib * MIB, OWNER)
        self.memory(offset, mib * MIB)[:8] = bytes([number]) * 8
        self.owner.send(m.STORE_SEAL, object_id, offset, b"", False)
        return object_id

    def memory(self, offset: int, size: int) -> memoryview:
        return self.service.arena().memory(offset, size)

    @property
    def stats(self) -> dict[str, int]:
        return self.service.state.stats


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path)
    yield found
    found.service.close()
    found.loop.run_until_complete(found.loop.shutdown_default_executor())
    found.loop.close()


def test_written_pinned_read_freed(node: Node) -> None:
    object_id = node.make(1)
    reader = Peer(node.service)
    offset, size = node.call(reader, m.STORE_PIN, object_id, b"", 0)
    assert bytes(node.memory(offset, 8)) == b"\1" * 8 and size == MIB
    node.owner.send(m.STORE_FREE, [object_id])
    assert reader.casts == [(m.STORE_RECALL, [object_id])]
    assert node.stats["objects"] == 1
    reader.send(m.STORE_UNPIN, [object_id], [offset])
    assert node.stats["objects"] == node.stats["used"] == 0


def test_many_pins_in_one_message(node: Node) -> None:
    first, second = node.make(1), node.make(2)
    places = node.call(node.owner, m.STORE_PIN_MANY, [first, b"?" * 28, second])
    assert places[1::2] == [MIB, 0, MIB] and places[2] == -1
    node.owner.send(m.STORE_UNPIN, [first, second], [places[0], places[4]])
    assert node.stats["pins"] == 0


def test_an_aborted_block_is_free_again(node: Node) -> None:
    offset = node.call(node.owner, m.STORE_CREATE, b"1" * 28, MIB, OWNER)
    node.owner.send(m.STORE_ABORT, b"1" * 28, offset)
    assert node.stats["used"] == 0


def test_a_region_and_what_is_placed_in_it(node: Node) -> None:
    offset, room = node.call(node.owner, m.STORE_LEASE, limits.STORE_REGION)
    assert room == CAPACITY // 16
    node.owner.send(m.STORE_ADOPT, b"1" * 28, offset, 5000, OWNER)
    assert node.stats["objects"] == 1 and node.stats["regions"] == 1
    node.owner.send(m.STORE_RETURN, offset + 8192)
    assert node.stats["regions"] == 0 and node.stats["used"] == 8192


def test_copies_make_room_for_a_region(node: Node) -> None:
    state, writer = node.service.state, Peer(node.service)
    for number in range(1, 5):
        object_id = bytes([number]) * 28
        ((_, _, offset),) = state.create("t", writer, object_id, MIB, "elsewhere", primary=False)
        state.seal(object_id, offset, writer)
    assert state.stats["copies"] == 4 and not state.stats["pins"]
    offset, size = node.call(writer, m.STORE_LEASE, MIB)
    assert size == CAPACITY // 16 and state.stats["copies"] == 3
    node.memory(offset, size)[:1] = b"x"


def test_values_of_an_owner_that_is_gone_are_refused_or_dropped(node: Node) -> None:
    with pytest.raises(exceptions.OwnerDiedError):
        node.call(node.owner, m.STORE_CREATE, b"1" * 28, MIB, b"gone")
    offset, _ = node.call(node.owner, m.STORE_LEASE, MIB)
    node.owner.send(m.STORE_ADOPT, b"2" * 28, offset, 5000, b"gone")
    offset = node.call(node.owner, m.STORE_CREATE, b"3" * 28, MIB, OWNER)
    node.owner.send(m.STORE_SEAL, b"3" * 28, offset, b"gone", False)
    assert node.stats["objects"] == 0


def test_a_full_store_goes_to_disk_and_comes_back(node: Node) -> None:
    ids = [node.make(n) for n in range(1, 9)]
    assert node.stats["spilled_bytes"] >= 4 * MIB
    for number, object_id in enumerate(ids, 1):
        offset, _ = node.call(node.owner, m.STORE_PIN, object_id, b"", 0)
        assert bytes(node.memory(offset, 8)) == bytes([number]) * 8
        node.owner.send(m.STORE_UNPIN, [object_id], [offset])
    node.owner.send(m.STORE_FREE, ids)
    node.until(lambda: node.stats["objects"] == 0)
    node.until(lambda: not os.listdir(node.dir / "spill"))
    assert node.stats["spilled_bytes"] == node.stats["used"] == 0


def test_a_damaged_file_is_a_lost_object(node: Node) -> None:
    ids = [node.make(n) for n in range(1, 6)]
    node.until(lambda: node.stats["spilled_bytes"] > 0)
    for name in os.listdir(node.dir / "spill"):
        os.truncate(node.dir / "spill" / name, 10)
    with pytest.raises(exceptions.ObjectLostError, match="shorter than the object"):
        node.call(node.owner, m.STORE_PIN, ids[0], b"", 0)


def test_who_waits_too_long_is_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_FULL_GRACE", 0.02)
    with pytest.raises(exceptions.ObjectLostError):
        node.call(node.owner, m.STORE_PIN, b"?" * 28, b"", 0)
    object_id = node.make(1, 4)
    offset, _ = node.call(node.owner, m.STORE_PIN, object_id, b"", 0)
    with pytest.raises(exceptions.ObjectStoreFullError, match="read by 1 process"):
        node.call(node.owner, m.STORE_CREATE, b"2" * 28, MIB, OWNER)
    assert (m.STORE_RECALL, []) in node.owner.casts
    node.owner.send(m.STORE_UNPIN, [object_id], [offset])


def test_the_end_of_a_process_frees_what_it_held(node: Node) -> None:
    object_id = node.make(1)
    other = Peer(node.service)
    node.call(other, m.STORE_PIN, object_id, b"", 0)
    node.call(other, m.STORE_CREATE, b"2" * 28, MIB, OWNER)
    node.call(other, m.STORE_LEASE, MIB)
    node.service.peer_lost(other)  # type: ignore[arg-type]
    assert (node.stats["objects"], node.stats["pins"], node.stats["regions"]) == (1, 0, 0)
    node.service.peer_lost(node.owner)  # type: ignore[arg-type]
    assert node.stats["objects"] == node.stats["used"] == 0


def test_answers_for_a_process_that_has_gone_are_dropped(node: Node) -> None:
    other = Peer(node.service)
    other.closed = True
    other.call(m.STORE_CREATE, b"2" * 28, MIB, OWNER)
    assert other.answers == {}
    node.service.peer_lost(other)  # type: ignore[arg-type]
    assert node.stats["used"] == 0


def test_lists_what_is_alive(node: Node) -> None:
    object_id = node.make(1)
    found = node.call(node.owner, m.STORE_LIST)
    assert [row["object_id"] for row in found["objects"]] == [object_id]
    assert found["stats"]["objects"] == 1


def test_the_arena_is_handed_to_whoever_connects(node: Node) -> None:
    object_id = node.make(7)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(node.dir / "sockets" / "store"))
        node.loop.run_until_complete(asyncio.sleep(0.001))
        arena = Arena(*receive_arena(sock))
    offset, _ = node.call(node.owner, m.STORE_PIN, object_id, b"", 0)
    assert bytes(arena.memory(offset, 8)) == b"\7" * 8
    assert (os.stat(node.dir / "sockets" / "store").st_mode & 0o777) == 0o600


def test_closing_twice_and_with_work_under_way(node: Node) -> None:
    for number in range(1, 5):
        node.make(number)
    node.owner.call(m.STORE_CREATE, b"x" * 28, 3 * MIB, OWNER)  # spills, which is not waited for
    node.service.close()
    node.service.close()
