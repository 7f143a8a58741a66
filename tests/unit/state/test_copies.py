"""The store of a node in a cluster: copies of what other nodes have, and blocks that are sent there."""

from __future__ import annotations

from typing import Any

import pytest

from framework._state.allocator import ALIGNMENT
from framework._state.copies import SharedStoreState

BLOCK = ALIGNMENT * 16


@pytest.fixture
def store() -> SharedStoreState:
    return SharedStoreState(4 * BLOCK)


def create(store: SharedStoreState, name: bytes, *, copy: bool = False, holder: str = "writer") -> int:
    (placed,) = store.create(name, holder, name, BLOCK, "owner", primary=not copy)
    assert placed[:2] == ("placed", name)
    offset: int = placed[2]
    return offset


def make(store: SharedStoreState, name: bytes, *, copy: bool = False) -> int:
    offset = create(store, name, copy=copy)
    store.seal(name, offset, "writer", version=b"v" if copy else None)
    return offset


def words(commands: list[Any]) -> list[str]:
    return [command[0] for command in commands]


def test_copies_make_room_first_and_are_never_written(store: SharedStoreState) -> None:
    for name in (b"p", b"q"):
        make(store, name)
    for name in (b"c", b"d"):
        make(store, name, copy=True)
    assert store.create(1, "w", b"1", BLOCK, "owner")[0] == ("dropped", b"c"), "the longest unused"
    assert words(store.create(2, "w", b"2", BLOCK, "owner")) == ["dropped", "placed"]
    assert words(store.create(3, "w", b"3", BLOCK, "owner")) == ["spill"]
    assert store.stats["copies"] == 0


def test_a_copy_that_is_read_stays(store: SharedStoreState) -> None:
    for name in (b"c", b"d", b"e", b"f"):
        make(store, name, copy=True)
    offset = store.pin(1, "reader", b"c")[0][2]
    assert store.create(1, "w", b"1", BLOCK, "owner")[0] == ("dropped", b"d")
    store.unpin(b"c", offset, "reader")
    assert store.create(2, "w", b"2", BLOCK, "owner")[0] == ("dropped", b"e"), "used later than these"
    assert store.lease("t", "client", BLOCK)[0] == ("dropped", b"f")


def test_who_is_not_patient_is_refused_when_it_would_have_to_wait(store: SharedStoreState) -> None:
    for name in (b"p", b"q", b"r"):
        make(store, name)
    make(store, b"c", copy=True)
    commands = store.create(1, "w", b"1", BLOCK, None, primary=False, patient=False)
    assert words(commands) == ["dropped", "placed"]
    commands = store.create(2, "w", b"2", BLOCK, None, primary=False, patient=False)
    assert commands[-1][:3] == ("refuse", 2, "ObjectStoreFullError")
    assert store.stats["waiting"] == 0


def test_a_copy_of_what_is_here_is_refused(store: SharedStoreState) -> None:
    make(store, b"p")
    assert store.create(1, "w", b"p", BLOCK, None, primary=False)[0][2] == "FileExistsError"
    assert store.stats["objects"] == 1


def test_a_withdrawn_block_leaves_its_readers_waiting(store: SharedStoreState) -> None:
    offset = create(store, b"c", copy=True)
    assert store.pin(1, "reader", b"c") == []
    store.withdraw(b"c", offset, "writer")
    assert store.stats["objects"] == store.stats["used"] == 0
    make_again = create(store, b"c", copy=True)
    assert ("view", 1, make_again, BLOCK) in store.seal(b"c", make_again, "writer", version=b"v")


def test_it_is_sent_on_while_it_is_written(store: SharedStoreState) -> None:
    offset = create(store, b"c", copy=True)
    assert store.lend("sender", b"c") is None
    block = store.lend_part("sender", b"c")
    assert block is not None and block.offset == offset
    store.seal(b"c", offset, "writer", version=b"v")
    assert "dropped" not in words(store.create(1, "w", b"1", 4 * BLOCK, "owner")), "it is being read"
    store.unpin(b"c", offset, "sender")
    assert not store.knows(b"c") and store.knows(b"1"), "then the next one has its room"


def test_a_part_that_is_sent_on_is_not_reused_when_its_writer_gives_up(store: SharedStoreState) -> None:
    offset = create(store, b"c", copy=True)
    store.lend_part("sender", b"c")
    store.withdraw(b"c", offset, "writer")
    assert store.stats["used"] == BLOCK and not store.knows(b"c")
    store.unpin(b"c", offset, "sender")
    assert store.stats["used"] == 0


def test_a_block_on_disk_is_lent_from_there(store: SharedStoreState) -> None:
    offset = make(store, b"p")
    store.create(1, "w", b"1", 4 * BLOCK, "owner")
    store.spilled(b"p", offset, "file")
    block = store.lend("sender", b"p")
    assert block is not None and block.path == "file" and "sender" not in block.pins


def test_copies_that_are_kept_are_freed_with_their_primary(store: SharedStoreState) -> None:
    make(store, b"p")
    make(store, b"c", copy=True)
    store.keep_copy(b"c")
    assert store.stats["copies"] == 0
    assert store.free_copy(b"p") == [] and store.knows(b"p"), "that is none"
    assert ("freed", b"c") in store.free_copy(b"c") and not store.knows(b"c")
    assert words(store.create(1, "w", b"1", 4 * BLOCK, "owner")) == ["spill"]


def test_a_free_of_what_is_not_here_leaves_no_mark(store: SharedStoreState) -> None:
    assert store.free_known(b"p") == store.free_copy(b"p") == []
    make(store, b"p")
    assert store.knows(b"p")
    assert store.free(b"q") == [("freed", b"q")]
    create(store, b"q")
    assert not store.knows(b"q"), "this one's writer was late"


def test_the_end_of_owners(store: SharedStoreState) -> None:
    offset = create(store, b"c", copy=True)
    store.seal(b"c", offset, "writer", ("node", "process"), version=b"v")
    make(store, b"p")
    commands = store.owners_gone(lambda owner: isinstance(owner, tuple) and owner[0] == "node")
    assert ("freed", b"c") in commands and store.knows(b"p")


def test_versions(store: SharedStoreState) -> None:
    for name in (b"p", b"q"):
        make(store, name)
    make(store, b"c", copy=True)
    versions = [store.blocks[name].version for name in (b"p", b"q", b"c")]
    assert len(set(versions)) == 3 and versions[2] == b"v"
    assert [store.blocks[name].is_copy for name in (b"p", b"q", b"c")] == [False, False, True]
