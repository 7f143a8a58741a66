"""The store's index against a model: what is pinned stays where it is, what is alive can be read, nothing
else remains.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from framework._state.allocator import ALIGNMENT, aligned
from framework._state.store import StoreState

CAPACITY = 32 * ALIGNMENT
CLIENTS = ("a", "b", "c")


class StoreMachine(RuleBasedStateMachine):
    """Carries out the commands as the shell would, with a dict for a disk and a bytearray per block for
    contents.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = StoreState(CAPACITY)
        self.memory: dict[int, bytes] = {}  # offset -> contents
        self.disk: dict[str, bytes] = {}
        self.placed: dict[int, tuple[bytes, str, bytes]] = {}  # unsealed: offset -> (id, writer, contents)
        self.waiting_create: dict[tuple[bytes, str, bytes], int] = {}
        self.owners: dict[bytes, str] = {}
        self.alive: dict[bytes, str] = {}  # sealed, not freed: id -> owner
        self.contents: dict[bytes, bytes] = {}
        self.pins: dict[tuple[bytes, int, str], list[bytes]] = {}  # of each pin, what was read
        self.pending_io: list[tuple[Any, ...]] = []
        self.waiting_pins: dict[int, tuple[bytes, str]] = {}
        self.counter = 0

    def run(self, commands: list[tuple[Any, ...]]) -> None:
        for command in commands:
            word = command[0]
            if word == "placed":
                self.waiting_create.pop(command[1])
                self.placed[command[2]] = command[1]
            elif word == "view":
                object_id, reader = self.waiting_pins.pop(command[1])
                # As it is now: it may have been made again, with other contents, since it was asked for.
                assert self.memory[command[2]] == self.contents[object_id]
                self.pins.setdefault((object_id, command[2], reader), []).append(self.memory[command[2]])
            elif word == "refuse":
                token = command[1]
                if isinstance(token, tuple):
                    self.waiting_create.pop(token, None)
                else:
                    object_id, _ = self.waiting_pins.pop(token)
                    lost = command[2] == "ObjectLostError"
                    assert not lost or object_id not in self.alive or not self.store.blocks[object_id].sealed
            elif word in ("spill", "restore"):
                self.pending_io.append(command)
            elif word == "unlink":
                del self.disk[command[1]]

    def is_current(self, object_id: bytes, offset: int) -> bool:
        block = self.store.blocks.get(object_id)
        return block is not None and block.offset == offset

    def begin(self, object_id: bytes, size: int, writer: str) -> None:
        self.counter += 1
        token = (object_id, writer, self.counter.to_bytes(28, "big"))  # the last: its contents, never twice
        self.waiting_create[token] = size
        self.run(self.store.create(token, writer, object_id, size, self.owners[object_id]))

    @rule(
        size=st.integers(1, 12 * ALIGNMENT), writer=st.sampled_from(CLIENTS), owner=st.sampled_from(CLIENTS)
    )
    def create(self, size: int, writer: str, owner: str) -> None:
        self.counter += 1
        object_id = self.counter.to_bytes(28, "big")
        self.owners[object_id] = owner
        self.begin(object_id, size, writer)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), size=st.integers(1, 12 * ALIGNMENT), writer=st.sampled_from(CLIENTS))
    def make_again(self, data: st.DataObject, size: int, writer: str) -> None:
        """While it is read, spilled, or being made again by somebody else."""
        self.begin(data.draw(st.sampled_from(sorted(self.alive))), size, writer)

    @precondition(lambda self: self.placed)
    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.placed)))
        object_id, writer, contents = self.placed.pop(offset)
        self.memory[offset] = contents
        if self.is_current(object_id, offset) and not self.store.blocks[object_id].deleting:
            self.alive[object_id] = self.owners[object_id]
            self.contents[object_id] = contents
        self.run(self.store.seal(object_id, offset, writer))

    @precondition(lambda self: self.placed)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.placed)))
        object_id, writer, _ = self.placed.pop(offset)
        if self.is_current(object_id, offset):
            self.alive.pop(object_id, None)
        self.run(self.store.abort(object_id, offset, writer))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), reader=st.sampled_from(CLIENTS))
    def pin(self, data: st.DataObject, reader: str) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.alive)))
        self.counter += 1
        self.waiting_pins[self.counter] = (object_id, reader)
        self.run(self.store.pin(self.counter, reader, object_id))

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.pins)))
        self.pins[key].pop()
        if not self.pins[key]:
            del self.pins[key]
        self.run(self.store.unpin(*key))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        object_id = data.draw(st.sampled_from(sorted(self.alive)))
        del self.alive[object_id]
        self.run(self.store.free(object_id))

    @precondition(lambda self: self.pending_io)
    @rule(data=st.data(), fails=st.booleans())
    def finish_io(self, data: st.DataObject, fails: bool) -> None:
        command = self.pending_io.pop(data.draw(st.integers(0, len(self.pending_io) - 1)))
        if command[0] == "spill":
            _, object_id, offset, _ = command
            if fails:
                self.run(self.store.spill_failed(object_id, offset, "disk full"))
                return
            self.counter += 1
            path = f"file-{self.counter}"
            self.disk[path] = self.memory[offset]
            self.run(self.store.spilled(object_id, offset, path))
        else:
            _, object_id, path, offset, _ = command
            if fails:
                if self.is_current(object_id, offset):
                    self.alive.pop(object_id, None)
                self.run(self.store.restore_failed(object_id, offset, "damaged"))
                return
            self.memory[offset] = self.disk[path]
            self.run(self.store.restored(object_id, offset))

    @precondition(lambda self: self.waiting_create or self.waiting_pins)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        tokens = [*self.waiting_create, *sorted(self.waiting_pins)]
        self.run(self.store.give_up(data.draw(st.sampled_from(tokens))))

    @rule(client=st.sampled_from(CLIENTS))
    def client_dies(self, client: str) -> None:
        for offset, (object_id, writer, _) in list(self.placed.items()):
            if writer == client:
                del self.placed[offset]
                if self.is_current(object_id, offset):
                    self.alive.pop(object_id, None)
        self.waiting_create = {t: size for t, size in self.waiting_create.items() if t[1] != client}
        self.alive = {i: o for i, o in self.alive.items() if o != client}
        self.pins = {k: v for k, v in self.pins.items() if k[2] != client}
        self.waiting_pins = {t: k for t, k in self.waiting_pins.items() if k[1] != client}
        self.run(self.store.holder_gone(client))

    @invariant()
    def pinned_blocks_do_not_move(self) -> None:
        for (_, offset, _), read in self.pins.items():
            assert all(self.memory[offset] == contents for contents in read)

    @invariant()
    def pins_are_counted(self) -> None:
        assert self.store.stats["pins"] == len(self.placed) + sum(len(read) for read in self.pins.values())

    @invariant()
    def blocks_do_not_overlap(self) -> None:
        position = 0
        for offset, size in sorted(self.store.allocator.blocks().items()):
            assert offset >= position
            position = offset + size

    @invariant()
    def all_that_is_alive_is_known(self) -> None:
        for object_id in self.alive:
            assert object_id in self.store.blocks

    def teardown(self) -> None:
        for object_id in list(self.alive):
            del self.alive[object_id]
            self.run(self.store.free(object_id))
        for client in CLIENTS:
            self.client_dies(client)
        while self.pending_io:
            command = self.pending_io.pop()
            if command[0] == "spill":
                self.run(self.store.spill_failed(command[1], command[2], "end"))
            else:
                self.run(self.store.restored(command[1], command[3]))
        assert self.store.blocks == {}
        assert self.store.allocator.used == 0
        assert self.store.stats["pins"] == 0
        assert self.store.stats["waiting"] == 0
        assert self.disk == {}
        assert self.store.spilled_bytes == 0


TestStore = pytest.mark.slow(StoreMachine.TestCase)
TestStore.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def make(store: StoreState, number: int, size: int) -> bytes:
    object_id = number.to_bytes(28, "big")
    (command,) = store.create("t", "writer", object_id, size, "owner")
    assert command[0] == "placed"
    store.seal(object_id, command[2], "writer")
    return object_id


def test_a_full_store_spills_what_was_unused_longest() -> None:
    store = StoreState(4 * ALIGNMENT)
    first, second = make(store, 1, 2 * ALIGNMENT), make(store, 2, 2 * ALIGNMENT)
    store.pin("p", "reader", first)
    store.unpin(first, 0, "reader")  # used just now
    commands = store.create("t", "writer", b"3" * 28, ALIGNMENT, "owner")
    assert [c[:2] for c in commands] == [("spill", second)]
    assert store.spilled(second, 2 * ALIGNMENT, "path") == [("placed", "t", 2 * ALIGNMENT)]
    assert store.stats["spilled_bytes"] == 2 * ALIGNMENT


def test_nothing_that_is_pinned_is_spilled() -> None:
    store = StoreState(2 * ALIGNMENT)
    only = make(store, 1, 2 * ALIGNMENT)
    store.pin("p", "reader", only)
    assert store.create("t", "writer", b"2" * 28, ALIGNMENT, "owner") == [("recall", "reader", [])]
    ((word, token, kind, text),) = store.give_up("t")
    assert (word, token, kind) == ("refuse", "t", "ObjectStoreFullError")
    assert "read by 1 process" in text and "8192 bytes" in text and only.hex() in text


def test_requests_for_space_are_met_in_order() -> None:
    store = StoreState(4 * ALIGNMENT)
    old = make(store, 1, 4 * ALIGNMENT)
    assert store.create("large", "w", b"2" * 28, 4 * ALIGNMENT, "o")[0][0] == "spill"
    assert store.create("small", "w", b"3" * 28, ALIGNMENT, "o") == []
    assert store.spilled(old, 0, "path") == [("placed", "large", 0)]
    assert store.seal(b"2" * 28, 0, "w")[0][0] == "spill"
    assert store.spilled(b"2" * 28, 0, "path2") == [("placed", "small", 0)]


def test_an_object_larger_than_the_store_is_refused_at_once() -> None:
    store = StoreState(4 * ALIGNMENT)
    ((word, _, kind, text),) = store.create("t", "w", b"1" * 28, 5 * ALIGNMENT, "o")
    assert (word, kind) == ("refuse", "ObjectStoreFullError")
    assert "object_store_memory" in text


def test_a_failing_disk_is_an_error_and_loses_nothing() -> None:
    store = StoreState(2 * ALIGNMENT)
    kept = make(store, 1, 2 * ALIGNMENT)
    store.create("t", "w", b"2" * 28, ALIGNMENT, "o")
    commands = store.spill_failed(kept, 0, "No space left on device")
    assert commands[0][:3] == ("refuse", "t", "OutOfDiskError")
    assert "No space left on device" in commands[0][3]
    assert store.pin("p", "r", kept) == [("view", "p", 0, 2 * ALIGNMENT)]


def test_a_reader_may_ask_before_the_writer_has_reported() -> None:
    store = StoreState(4 * ALIGNMENT)
    object_id = b"1" * 28
    assert store.pin("p", "reader", object_id) == []
    store.create("t", "writer", object_id, 10, "owner")
    assert store.seal(object_id, 0, "writer") == [("view", "p", 0, 10)]
    assert store.pin("q", "reader", b"2" * 28) == []
    assert store.give_up("q")[0][:3] == ("refuse", "q", "ObjectLostError")


def test_an_owner_may_free_before_the_writer_has_reported() -> None:
    store = StoreState(4 * ALIGNMENT)
    object_id = b"1" * 28
    store.free(object_id)
    store.create("t", "writer", object_id, 10, "owner")
    store.seal(object_id, 0, "writer")
    assert store.blocks == {} and store.allocator.used == 0


def test_a_region_is_carved_without_asking_again() -> None:
    store = StoreState(16 * ALIGNMENT)
    assert store.lease("t", "client", 8 * ALIGNMENT) == [("placed", "t", 0)]
    store.adopt("client", b"1" * 28, 0, 3 * ALIGNMENT - 5, "owner")
    store.adopt("client", b"2" * 28, aligned(3 * ALIGNMENT - 5), ALIGNMENT, "owner")
    assert store.stats["objects"] == 2 and store.stats["regions"] == 1
    store.holder_gone("client")
    assert store.allocator.used == 4 * ALIGNMENT
    store.holder_gone("owner")
    assert store.allocator.used == 0


def test_a_result_made_again_replaces_its_spilled_copy() -> None:
    store = StoreState(2 * ALIGNMENT)
    first = make(store, 1, 2 * ALIGNMENT)
    (spill,) = store.create("t", "writer", b"2" * 28, 2 * ALIGNMENT, "owner")
    assert spill[:2] == ("spill", first)
    assert store.spilled(first, 0, "file") == [("placed", "t", 0)]
    store.abort(b"2" * 28, 0, "writer")
    commands = store.create("t", "writer", first, ALIGNMENT, "owner")
    assert ("unlink", "file") in commands
    assert store.stats["spilled_bytes"] == 0


def again(store: StoreState, object_id: bytes, blocks: int) -> int:
    """Make an object once more; where."""
    (command,) = store.create("t", "writer", object_id, blocks * ALIGNMENT, "owner")
    store.seal(object_id, command[2], "writer")
    offset: int = command[2]
    return offset


def test_the_end_of_a_view_unpins_the_block_that_it_was_of() -> None:
    store = StoreState(8 * ALIGNMENT)
    first = make(store, 1, 2 * ALIGNMENT)
    assert store.pin_at_once("reader", first) == (0, 2 * ALIGNMENT)
    new = again(store, first, 2)
    assert store.pin_at_once("reader", first) == (new, 2 * ALIGNMENT)
    store.unpin(first, 0, "reader")
    assert store.stats["pins"] == 1 and store.allocator.blocks() == {new: 2 * ALIGNMENT}
    store.free(first)
    assert store.allocator.blocks() == {new: 2 * ALIGNMENT}  # still read
    store.unpin(first, 0, "reader")  # none left there
    assert store.stats["pins"] == 1
    store.unpin(first, new, "reader")
    assert store.allocator.used == 0


def test_a_writer_that_was_overtaken_seals_nothing_of_the_other() -> None:
    store = StoreState(8 * ALIGNMENT)
    object_id = b"1" * 28
    (slow,) = store.create("t", "slow", object_id, ALIGNMENT, "owner")
    (fast,) = store.create("t", "fast", object_id, ALIGNMENT, "owner")
    assert store.pin("p", "reader", object_id) == []
    assert store.seal(object_id, slow[2], "slow") == []
    assert not store.blocks[object_id].sealed
    assert store.seal(object_id, fast[2], "fast") == [("view", "p", fast[2], ALIGNMENT)]


def test_two_copies_of_an_object_are_spilled_each_to_its_own_file() -> None:
    store = StoreState(4 * ALIGNMENT)
    object_id = make(store, 1, 2 * ALIGNMENT)
    assert [c[0] for c in store.create("t", "w", b"2" * 28, 3 * ALIGNMENT, "owner")] == ["spill"]
    assert store.give_up("t") != []
    new = again(store, object_id, 2)
    assert [c[0] for c in store.create("t", "w", b"2" * 28, 4 * ALIGNMENT, "owner")] == ["spill"]
    assert store.spilled(object_id, 0, "old") == [("unlink", "old")]  # its place is free, the other's is not
    assert store.allocator.blocks() == {new: 2 * ALIGNMENT}
    assert store.spilled(object_id, new, "new") == [("placed", "t", 0)]


def test_who_waits_for_a_spilled_object_gets_the_one_that_is_made_again() -> None:
    store = StoreState(2 * ALIGNMENT)
    first = make(store, 1, 2 * ALIGNMENT)
    store.create("t", "writer", b"2" * 28, 2 * ALIGNMENT, "owner")
    store.spilled(first, 0, "file")
    assert store.pin("p", "reader", first) == []  # no room to read it back
    assert store.create("u", "writer", first, ALIGNMENT, "owner") == []
    store.abort(b"2" * 28, 0, "writer")
    # It has room now, is being read back, and is replaced meanwhile.
    assert store.restored(first, 0)[-1][:2] in (("view", "p"), ("placed", "u"))


def test_a_value_whose_owner_has_ended_does_not_wait_for_room() -> None:
    store = StoreState(2 * ALIGNMENT)
    kept = make(store, 1, 2 * ALIGNMENT)
    store.pin("p", "reader", kept)
    store.create("t", "writer", b"2" * 28, ALIGNMENT, "other")
    assert [c[:3] for c in store.holder_gone("other")] == [("refuse", "t", "OwnerDiedError")]
