"""The store client over an arena of its own and a node that is a pure index: no sockets, no loop."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from framework import exceptions
from framework._base import limits
from framework._serial import values
from framework._state.store import StoreState
from framework._store.arena import Arena, create_arena
from framework._store.client import StoreClient
from framework._store.copying import Copying
from framework._wire import messages as m

MIB = 1 << 20
OWNER = b"o" * 16


class FakeNode:
    """Answers at once, from a StoreState; `sent` has the words of all messages."""

    def __init__(self, capacity: int) -> None:
        self.state = StoreState(capacity)
        self.fd = create_arena(capacity, tempfile.gettempdir())
        self.sent: list[int] = []
        self.recalls: list[list[bytes]] = []

    def open_arena(self) -> Arena:
        return Arena(os.dup(self.fd), self.state.allocator.capacity)

    def node_call(self, opcode: int, *fields: Any) -> Any:
        self.sent.append(opcode)
        if opcode == m.STORE_LEASE:
            size = min(fields[0], self.state.allocator.capacity // 16)
            (command,) = self.state.lease("t", self, size)
            if command[0] == "refuse":
                return None
            return [command[2], self.state.allocator.size_of(command[2])]
        if opcode == m.STORE_CREATE:
            commands = self.state.create("t", self, fields[0], fields[1], "owner")
        else:
            commands = self.state.pin("t", self, fields[0])
        for command in commands:
            if command[0] == "placed":
                return command[2]
            if command[0] == "view":
                return command[2:]
            if command[0] == "refuse":
                raise getattr(exceptions, command[2])(command[3])
        raise AssertionError(f"no answer among {commands}")

    def node_cast(self, opcode: int, *fields: Any) -> None:
        self.sent.append(opcode)
        commands: list[Any] = []
        if opcode == m.STORE_ADOPT:
            commands += self.state.adopt(self, fields[0], fields[1], fields[2], "owner")
        elif opcode == m.STORE_SEAL:
            commands += self.state.seal(fields[0], fields[1], self, None, fields[3])
        elif opcode == m.STORE_ABORT:
            commands += self.state.abort(fields[0], fields[1], self)
        elif opcode == m.STORE_UNPIN:
            for object_id, offset in zip(fields[0], fields[1], strict=True):
                commands += self.state.unpin(object_id, offset, self)
        elif opcode == m.STORE_FREE:
            for object_id in fields[0]:
                commands += self.state.free(object_id)
        elif opcode == m.STORE_RETURN:
            commands += self.state.give_back(self, fields[0])
        else:
            raise AssertionError(f"unexpected message {opcode}")
        self.recalls += [command[2] for command in commands if command[0] == "recall"]


@pytest.fixture
def node() -> Iterator[FakeNode]:
    fake = FakeNode(64 * MIB)
    yield fake
    os.close(fake.fd)


@pytest.fixture
def client(node: FakeNode) -> StoreClient:
    return StoreClient(node)


_ids = itertools.count(1)


def stored(client: StoreClient, value: Any) -> bytes:
    object_id = next(_ids).to_bytes(28, "big")
    client.write(object_id, values.encode(value, where="a test").wire, OWNER)
    return object_id


def read(client: StoreClient, object_id: bytes) -> Any:
    return values.decode(client.read(object_id))


@pytest.mark.parametrize("size", [200_000, 3 * MIB])
def test_what_is_written_is_read_without_a_copy(client: StoreClient, size: int) -> None:
    object_id = stored(client, np.arange(size, dtype=np.uint8))
    first, second = read(client, object_id), read(client, object_id)
    assert (first == np.arange(size, dtype=np.uint8)).all()
    assert not first.flags.owndata and not first.flags.writeable
    assert np.shares_memory(first, second)


def test_small_objects_cost_no_round_trip_each(client: StoreClient, node: FakeNode) -> None:
    for _ in range(10):
        stored(client, bytes(200_000))
    assert node.sent.count(m.STORE_LEASE) <= 2  # 64 MiB: regions of 4 MiB
    assert node.sent.count(m.STORE_CREATE) == 0
    assert node.sent.count(m.STORE_ADOPT) == 10


def test_a_region_smaller_than_the_object_is_not_overrun() -> None:
    """A small store leases small regions: the object needs a block of its own."""
    node = FakeNode(16 * MIB)
    client = StoreClient(node)
    ids = [stored(client, np.full(1_900_000, n, dtype=np.uint8)) for n in range(7)]
    assert [int(read(client, i).min()) for i in ids] == list(range(7))
    assert [int(read(client, i).max()) for i in ids] == list(range(7))
    os.close(node.fd)


def test_reading_again_asks_nobody(client: StoreClient, node: FakeNode) -> None:
    object_id = stored(client, bytes(500_000))
    for _ in range(5):
        read(client, object_id)
    assert node.sent.count(m.STORE_PIN) == 1


@pytest.mark.parametrize("how", ["copied", "in place"])
def test_what_this_process_has_put_it_reads_without_asking(
    client: StoreClient, node: FakeNode, how: str
) -> None:
    object_id = put(client, how)
    assert read(client, object_id)[7] == 7 and m.STORE_PIN not in node.sent
    assert node.state.stats["pins"] == 1
    value = read(client, object_id)
    client.free([object_id])
    assert value[7] == 7 and node.state.stats["objects"] == 1
    del value
    client.drain()
    assert node.state.stats["pins"] == 0 and node.state.stats["objects"] == 0
    assert not client._refs and not client._views


@pytest.mark.parametrize("how", ["copied", "in place"])
def test_what_was_put_is_not_kept_where_memory_is_short(
    client: StoreClient, node: FakeNode, how: str
) -> None:
    before = put(client, how)
    client.recall([])
    assert node.state.stats["pins"] == 0
    after = put(client, how)
    client.drain()
    assert node.state.stats["pins"] == 0
    assert read(client, before)[7] == read(client, after)[7] == 7


def test_an_array_that_was_put_in_place_pins_it_as_long_as_it_is_used(
    client: StoreClient, node: FakeNode
) -> None:
    array = client.reserve(b"a" * 28, 3 * MIB, OWNER).view(np.int8)
    array[:] = 7
    assert client.in_place(array, OWNER, values.describe_array, mine=True) is not None
    client.free([b"a" * 28])
    assert node.state.stats["pins"] == 1 and array.sum() == 7 * 3 * MIB
    del array
    client.drain()
    assert node.state.stats["pins"] == 0 and node.state.stats["objects"] == 0


def put(client: StoreClient, how: str) -> bytes:
    object_id = next(_ids).to_bytes(28, "big")
    if how == "copied":
        array = np.arange(400_000)
        client.write(object_id, values.encode(array, where="a test").wire, OWNER, mine=True)
    else:
        array = client.reserve(object_id, 3_200_000, OWNER).view(np.int64)
        array[:] = np.arange(400_000)
        assert client.in_place(array, OWNER, values.describe_array, mine=True) is not None
    return object_id


def test_the_last_view_takes_the_pin_along(client: StoreClient, node: FakeNode) -> None:
    object_id = stored(client, np.arange(100_000))
    view = read(client, object_id)[10:20].reshape(2, 5)
    client.free([object_id])
    gc.collect()
    client.drain()
    assert node.state.stats["pins"] == 1 and node.state.stats["objects"] == 1
    assert view.sum() == sum(range(10, 20))
    del view
    assert client.waiting
    client.drain()
    assert node.state.stats["pins"] == 0 and node.state.stats["objects"] == 0


@pytest.mark.parametrize("when", ["before the view is here", "while it is used"])
def test_what_was_recalled_is_kept_no_longer_than_it_is_used(
    client: StoreClient, node: FakeNode, when: str
) -> None:
    """The node says so once, and that may come before the answer that brings the view has been dealt with."""
    object_id = stored(client, np.arange(100_000))
    pinned = node.node_call(m.STORE_PIN, object_id)
    if when == "before the view is here":
        client.recall([object_id])
    view = client.arrived(object_id, *pinned)
    if when == "while it is used":
        client.recall([object_id])
    value = read(client, object_id)
    del view
    client.drain()
    assert node.state.stats["pins"] == 1 and value[7] == 7
    del value
    client.drain()
    assert node.state.stats["pins"] == 0


def test_not_everything_that_was_recalled_is_remembered(
    client: StoreClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORE_RECALLED", 3)
    ids = [stored(client, np.arange(20_000)) for _ in range(5)]
    client.recall(ids)
    for object_id in ids:
        read(client, object_id)
    assert [client.at_hand(object_id) for object_id in ids] == [True, True, False, False, False]
    client.drain()
    client.recall([ids[0]])
    read(client, ids[4])
    assert client.at_hand(ids[4]), "its view had ended, and with it what was said of it"


def test_a_recall_takes_views_that_nobody_uses_and_the_region(client: StoreClient, node: FakeNode) -> None:
    used, unused = stored(client, bytes(200_000)), stored(client, np.zeros(50_000))
    keep = read(client, unused)
    read(client, used)
    assert node.state.stats["pins"] == 2 and node.state.stats["regions"] == 1
    client.recall([])
    assert node.state.stats["pins"] == 1 and node.state.stats["regions"] == 0
    assert not keep.any()


def test_a_recall_during_a_write_gets_the_region_when_it_is_done(
    client: StoreClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = StoreClient._fill

    def recalled(*args: Any) -> None:
        client.recall([])  # the lock is taken: it cannot be returned now
        fill(*args)

    stored(client, bytes(200_000))
    monkeypatch.setattr(StoreClient, "_fill", staticmethod(recalled))
    stored(client, bytes(200_000))
    assert node.state.stats["regions"] == 0


def test_a_failed_write_leaves_nothing(
    client: StoreClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(Copying, "run", broken)
    with pytest.raises(OSError):
        stored(client, bytes(4 * MIB))
    assert node.state.stats["objects"] == 0 and node.state.stats["used"] == 0


def sealed(client: StoreClient, array: Any) -> tuple[bytes, int] | None:
    return client.in_place(array, OWNER, lambda a: values.describe_array(a))


def test_an_array_is_sealed_where_it_is(client: StoreClient, node: FakeNode) -> None:
    array = client.reserve(b"a" * 28, 80_000, OWNER).view(np.float64).reshape(100, 100)
    array[:] = 5
    found = sealed(client, array)
    assert found is not None and found[0] == b"a" * 28
    again = read(client, b"a" * 28)
    assert np.shares_memory(array, again) and again.shape == (100, 100) and (again == 5).all()
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    assert not client.has_unsealed
    assert sealed(client, array) is None  # once


def test_what_somebody_else_can_write_is_not_sealed(client: StoreClient) -> None:
    array = client.reserve(b"a" * 28, 80_000, OWNER).view(np.float64)
    other = array[5:]
    assert sealed(client, array) is None
    assert sealed(client, other) is None
    assert array.flags.writeable
    del other
    assert sealed(client, array) is not None


def test_other_arrays_are_not_sealed(client: StoreClient) -> None:
    array = client.reserve(b"a" * 28, 80_000, OWNER).view(np.float64)
    assert sealed(client, np.zeros(10_000)) is None
    assert sealed(client, array[:5000]) is None
    assert sealed(client, array.view(np.ma.MaskedArray)) is None
    assert sealed(client, "array") is None
    assert client.has_unsealed


def test_an_abandoned_array_is_freed(client: StoreClient, node: FakeNode) -> None:
    array = client.reserve(b"a" * 28, 5 * MIB, OWNER)
    view = array[3:]
    del array
    assert not client.waiting and node.state.stats["objects"] == 1
    del view
    assert client.waiting
    client.drain()
    assert node.state.stats["objects"] == 0 and node.state.stats["used"] == 0


def test_pickles_and_buffers_mix(client: StoreClient) -> None:
    value = {"a": np.arange(50_000), "b": b"x" * 20_000, "c": bytearray(30_000), "d": [1, "two", None]}
    found = read(client, stored(client, value))
    assert (found["a"] == value["a"]).all()
    assert (found["b"], found["c"], found["d"]) == (value["b"], value["c"], value["d"])
    assert pickle.dumps(found["d"]) == pickle.dumps(value["d"])


def test_the_store_is_too_small(client: StoreClient) -> None:
    with pytest.raises(exceptions.ObjectStoreFullError, match="object_store_memory"):
        stored(client, np.zeros(65 * MIB, dtype=np.uint8))


def test_a_sealed_array_cannot_be_made_writable_again(client: StoreClient) -> None:
    array = client.reserve(b"a" * 28, 80_000, OWNER).view(np.float64).reshape(100, 100)
    array[:] = 5
    assert sealed(client, array) is not None
    for view in (array, array.base, array[3:], array.reshape(-1), array.view(np.int64)):
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
    assert (array == 5).all()


def test_an_array_whose_buffer_was_taken_is_not_sealed(client: StoreClient) -> None:
    array = client.reserve(b"a" * 28, 80_000, OWNER).view(np.float64)
    taken = array.base.base[:8]  # the memory itself, from behind numpy
    assert sealed(client, array) is None
    assert array.flags.writeable
    taken[0] = 1


def test_the_end_of_an_old_view_is_told_by_its_place(client: StoreClient, node: FakeNode) -> None:
    """An object that was lost and made again: views of both are alive."""
    object_id = stored(client, np.full(50_000, 1.0))
    old = read(client, object_id)
    client.forget(object_id)
    client.write(object_id, values.encode(np.full(50_000, 2.0)).wire, OWNER)
    fresh = StoreClient(node)
    new = values.decode(fresh.read(object_id))
    assert node.state.stats["pins"] == 2
    del old
    gc.collect()
    client.drain()
    assert node.state.stats["pins"] == 1
    client.free([object_id])
    assert (new == 2.0).all() and node.state.stats["objects"] == 1
    del new
    fresh.recall([])
    assert node.state.stats["objects"] == 0
