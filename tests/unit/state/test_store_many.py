"""Pins of many objects in one message: given at once or not at all, and as good as those asked for singly."""

from __future__ import annotations

from framework._state.allocator import ALIGNMENT
from framework._state.store import StoreState

ID, OTHER = b"a" * 28, b"b" * 28


def store_with(size: int = ALIGNMENT, blocks: int = 4) -> StoreState:
    """A store with one sealed object of this size, written and owned by "w"."""
    store = StoreState(blocks * ALIGNMENT)
    assert store.create("t", "w", ID, size, "w")[0][0] == "placed"
    store.seal(ID, 0, "w")
    return store


def test_an_object_in_memory_is_pinned() -> None:
    store = store_with()
    assert store.pin_at_once("r", ID) == (store.blocks[ID].offset, ALIGNMENT)
    assert store.pin_at_once("r", ID) is not None
    assert store.stats["pins"] == 2
    store.free(ID)
    assert store.stats["objects"] == 1
    store.unpin(ID, 0, "r")
    assert store.stats["objects"] == 1
    store.unpin(ID, 0, "r")
    assert store.stats["objects"] == 0


def test_what_is_pinned_is_not_spilled() -> None:
    store = store_with(4 * ALIGNMENT)
    store.pin_at_once("r", ID)
    assert [c[0] for c in store.create("t2", "w", OTHER, ALIGNMENT, "w")] == ["recall"]
    assert "spill" in [c[0] for c in store.unpin(ID, 0, "r")]


def test_a_block_on_its_way_to_disk_stays() -> None:
    store = store_with(4 * ALIGNMENT)
    assert [c[0] for c in store.create("t2", "w", OTHER, ALIGNMENT, "w")] == ["spill"]
    assert store.pin_at_once("r", ID) is not None
    assert ("unlink", "file") in store.spilled(ID, 0, "file")
    assert store.blocks[ID].offset >= 0


def test_what_has_to_be_waited_for_is_refused_and_leaves_no_trace() -> None:
    store = store_with(4 * ALIGNMENT)
    assert store.pin_at_once("r", OTHER) is None  # not known
    store.create("t2", "w", OTHER, ALIGNMENT, "w")
    store.spilled(ID, 0, "file")
    assert store.pin_at_once("r", ID) is None  # on disk
    assert store.pin_at_once("r", OTHER) is None  # not sealed
    store.seal(OTHER, 0, "w")
    assert store.pin_at_once("r", OTHER) is not None
    store.free(OTHER)
    assert store.pin_at_once("s", OTHER) is None  # freed, though another reader still holds it
    assert store.stats["pins"] == 1
