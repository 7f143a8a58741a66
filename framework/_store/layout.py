"""How a value lies in its block: ``[u32 length][msgpack header][pickle][padding][buffer][padding][buffer]…``

The header is ``[pickle offset, pickle length, [[buffer offset, buffer length], …]]``, offsets counted from
the start of the block. Buffers begin at multiples of 64 bytes, as numpy and Arrow like them.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

BUFFER_ALIGNMENT = 64
HEADER_ROOM = 4096
"""Bytes in front of the data of an array that is written in place: its header and pickle are not known until
it is sealed.
"""

_LENGTH = struct.Struct("<I")
_MAX_HEADER = 64 * 1024 * 1024

Layout = tuple[bytes, int, list[tuple[int, int]], int]


def _up(offset: int) -> int:
    return (offset + BUFFER_ALIGNMENT - 1) & -BUFFER_ALIGNMENT


def plan(pickle_size: int, buffer_sizes: list[int]) -> Layout:
    """(header, offset of the pickle, [(offset, size) of each buffer], size of the block)."""
    # Offsets are part of the header, whose length depends on them: plan with room for the longest.
    pickle_offset = _up(_LENGTH.size + 32 + 20 * len(buffer_sizes))
    offset = pickle_offset + pickle_size
    places = []
    for size in buffer_sizes:
        offset = _up(offset)
        places.append((offset, size))
        offset += size
    header: bytes = msgpack.packb([pickle_offset, pickle_size, places])
    assert _LENGTH.size + len(header) <= pickle_offset
    return header, pickle_offset, places, offset


def plan_in_place(pickle_size: int, data_size: int) -> Layout:
    """As `plan`, for one buffer that begins at `HEADER_ROOM` already. `ValueError` when the pickle does not
    fit before it.
    """
    pickle_offset = 128
    if pickle_offset + pickle_size > HEADER_ROOM:
        raise ValueError("the description of the array is too long")
    places = [(HEADER_ROOM, data_size)]
    header: bytes = msgpack.packb([pickle_offset, pickle_size, places])
    return header, pickle_offset, places, HEADER_ROOM + data_size


def write_head(block: memoryview, header: bytes, pickle_offset: int, pickled: Any) -> None:
    """Write everything but the buffers."""
    _LENGTH.pack_into(block, 0, len(header))
    block[_LENGTH.size : _LENGTH.size + len(header)] = header
    block[pickle_offset : pickle_offset + len(pickled)] = pickled


def parts(block: memoryview) -> list[Any]:
    """The pickle and the buffers of a block, as views of it: the wire form 0 of its value."""
    (length,) = _LENGTH.unpack_from(block, 0)
    if length > min(_MAX_HEADER, len(block)):
        raise ValueError("damaged block: its header is longer than the block")
    pickle_offset, pickle_size, places = msgpack.unpackb(block[_LENGTH.size : _LENGTH.size + length])
    return [
        0,
        block[pickle_offset : pickle_offset + pickle_size],
        [],
        *[block[offset : offset + size] for offset, size in places],
    ]
