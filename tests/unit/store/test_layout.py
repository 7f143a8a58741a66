"""The layout of blocks: whatever is planned and written is read back, as views, at aligned places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._store import layout


def written(pickled: bytes, buffers: list[bytes]) -> memoryview:
    header, pickle_offset, places, size = layout.plan(len(pickled), [len(b) for b in buffers])
    block = memoryview(bytearray(b"\xaa" * size))
    layout.write_head(block, header, pickle_offset, pickled)
    for (offset, length), buffer in zip(places, buffers, strict=True):
        assert length == len(buffer)
        block[offset : offset + length] = buffer
    return block


@given(st.binary(max_size=300), st.lists(st.binary(max_size=200), max_size=40))
def test_what_is_written_is_read(pickled: bytes, buffers: list[bytes]) -> None:
    form, found, refs, *views = layout.parts(written(pickled, buffers))
    assert (form, bytes(found), refs) == (0, pickled, [])
    assert [bytes(view) for view in views] == buffers


@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**40), max_size=50))
def test_parts_are_aligned_and_do_not_overlap(pickle_size: int, sizes: list[int]) -> None:
    header, pickle_offset, places, size = layout.plan(pickle_size, sizes)
    end = 4 + len(header)
    for offset, length in [(pickle_offset, pickle_size), *places]:
        assert offset % layout.BUFFER_ALIGNMENT == 0
        assert offset >= end
        end = offset + length
    assert end == size


def test_parts_are_views_of_the_block() -> None:
    block = written(b"p", [b"0" * 100])
    view = layout.parts(block)[3]
    offset = len(block) - 100
    block[offset] = ord("7")
    assert view[0] == ord("7")


@given(st.integers(1, layout.HEADER_ROOM - 128), st.integers(0, 10_000))
def test_in_place_the_data_stays_where_it_is(pickle_size: int, data_size: int) -> None:
    header, pickle_offset, places, size = layout.plan_in_place(pickle_size, data_size)
    assert places == [(layout.HEADER_ROOM, data_size)]
    assert 4 + len(header) <= pickle_offset
    assert pickle_offset + pickle_size <= layout.HEADER_ROOM
    assert size == layout.HEADER_ROOM + data_size


def test_in_place_a_long_description_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        layout.plan_in_place(layout.HEADER_ROOM, 100)


def test_a_damaged_header_is_an_error() -> None:
    block = memoryview(bytearray(b"\xff" * 64))
    with pytest.raises(ValueError, match="damaged"):
        layout.parts(block)
