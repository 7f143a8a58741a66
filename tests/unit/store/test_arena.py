"""The arena: handed over between processes, copied into, and kept by every view of it."""

from __future__ import annotations

import gc
import os
import socket
import sys
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base import limits
from framework._store import arena as arena_module
from framework._store.arena import Arena, create_arena, receive_arena, send_arena, views_of

MIB = 1 << 20
CAPACITY = 8 * MIB


@pytest.fixture
def arena() -> Arena:
    return Arena(create_arena(CAPACITY, tempfile.gettempdir()), CAPACITY)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_both_sides_of_a_hand_over_see_the_same_memory(pair: tuple[socket.socket, socket.socket]) -> None:
    fd = create_arena(CAPACITY, tempfile.gettempdir())
    send_arena(pair[0], fd, CAPACITY)
    here, there = Arena(fd, CAPACITY), Arena(*receive_arena(pair[1]))
    assert there.capacity == CAPACITY and there.address() != here.address()
    here.copy_in(5000, b"hello")
    assert bytes(there.memory(5000, 5)) == b"hello"


def test_a_node_that_hangs_up_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    with pytest.raises(OSError, match="did not hand over"):
        receive_arena(pair[1])


def test_a_message_without_a_descriptor_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].send(bytes(8))
    with pytest.raises(OSError, match="did not hand over"):
        receive_arena(pair[1])


def test_without_memfd_it_is_a_file_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, arena: Arena
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    found = Arena(create_arena(CAPACITY, str(tmp_path)), CAPACITY)
    found.copy_in(0, b"abc")
    assert bytes(found.memory(0, 3)) == b"abc"
    assert os.listdir(tmp_path) == []


def test_what_is_made_of_a_view_keeps_its_base(arena: Arena) -> None:
    base = arena.base(4096, 4096)
    end = weakref.ref(base)
    views = views_of(base)
    del base
    part = np.frombuffer(views[100:200], dtype=np.uint8)[5:].reshape(5, 19)
    more = memoryview(part)[1:]
    del views, part
    gc.collect()
    assert end() is not None
    del more
    gc.collect()
    assert end() is None


def test_a_view_cannot_be_written_nor_made_writable(arena: Arena) -> None:
    views = views_of(arena.base(0, 4096))
    assert views.readonly
    array = np.frombuffer(views, dtype=np.int32)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(ValueError, match="WRITEABLE"):
        array[3:].flags.writeable = True
    with pytest.raises(BufferError):
        views.obj.release()  # what it was made of cannot be taken away either


def test_a_writable_base_is_shared(arena: Arena) -> None:
    array = np.frombuffer(views_of(arena.base(4096, 800, writable=True)), dtype=np.float64)
    array[:] = 7
    assert (np.frombuffer(arena.memory(4096, 800), dtype=np.float64) == 7).all()


@pytest.mark.parametrize("size", [0, 1, 4096, 511 * 1024, 600 * 1024, 3 * MIB])
@pytest.mark.parametrize("kind", ["bytes", "bytearray", "read-only view", "array", "read-only array"])
def test_copies_of_all_sizes_and_kinds(arena: Arena, size: int, kind: str) -> None:
    data = os.urandom(size)
    source: Any = data
    if kind == "bytearray":
        source = bytearray(data)
    elif kind == "read-only view":
        source = memoryview(data)
    elif "array" in kind and size:
        source = np.frombuffer(data, dtype=np.uint8).copy()
        if size % 1024 == 0:
            source = source.view(np.float32).reshape(2, -1)
        source.flags.writeable = "read-only" not in kind
    arena.copy_in(100, source)
    assert bytes(arena.memory(100, size)) == data
    assert arena.memory(99, 1)[0] == 0 and arena.memory(100 + size, 1)[0] == 0


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_nothing_is_copied_beyond_the_end(arena: Arena, size: int) -> None:
    for offset in (CAPACITY - size + 1, CAPACITY, -1):
        with pytest.raises(ValueError, match="outside"):
            arena.copy_in(offset, bytes(size))


def test_a_large_copy_leaves_the_source_alone(arena: Arena) -> None:
    """The address of a buffer is found through the C API: its export has to be given back."""
    source = bytearray(b"x" * MIB)
    count = sys.getrefcount(source)
    for _ in range(3):
        arena.copy_in(0, source)
    source += b"y"  # BufferError if somebody still held it
    assert sys.getrefcount(source) == count


# ---- memory ahead of writing -------------------------------------------------------------------------


class Counting(Arena):
    __slots__ = ("provided",)

    def populate(self, offset: int, size: int) -> bool:
        self.provided.append((offset, size))
        return True


@given(st.lists(st.tuples(st.integers(0, CAPACITY - 1), st.integers(1, 3 * MIB)), max_size=12))
def test_each_piece_is_provided_once_and_before_use(ranges: list[tuple[int, int]]) -> None:
    capacity = CAPACITY - 4096  # the last piece is a short one
    arena = Counting(create_arena(capacity, tempfile.gettempdir()), capacity)
    arena.provided = []
    for offset, size in ranges:
        offset = min(offset, capacity - 1)
        size = min(size, capacity - offset)
        arena.prepare(offset, size)
        position, end = offset, offset + size
        while position < end:  # covered, piece by piece
            piece = next(p for p in arena.provided if p[0] <= position < sum(p))
            position = sum(piece)
    chunks = [n for start, size in arena.provided for n in range(start // MIB, -(-(start + size) // MIB))]
    assert len(chunks) == len(set(chunks))
    assert all(start % limits.STORE_CHUNK == 0 and start + size <= capacity for start, size in arena.provided)


def test_providing_memory_does_not_change_it(arena: Arena) -> None:
    arena.copy_in(0, b"abc")
    assert arena.populate(0, 2 * MIB) in (True, False)  # an old system cannot
    assert bytes(arena.memory(0, 4)) == b"abc\0"


def test_a_system_that_cannot_provide_memory(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "_madvise", lambda *_: -1)
    assert not arena.populate(0, MIB)
    arena.prepare(0, MIB)
    arena.copy_in(0, b"abc")
    assert bytes(arena.memory(0, 3)) == b"abc"
