"""The decoder: bytes in, frames or an error out, within bounds, however the bytes are cut."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework._base import limits
from framework._wire.codec import DECODE_ERRORS, Decoder, new_packer
from framework.exceptions import ProtocolError

atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=50),
)
frames = st.lists(
    st.recursive(
        atoms,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    ),
    max_size=6,
)


def take(decoder: Decoder, chunks: Iterable[bytes]) -> list[Any]:
    """All frames; ProtocolError as the connection makes it of what the decoder raises."""
    out: list[Any] = []
    for chunk in chunks:
        try:
            out.extend(decoder.feed(chunk))
        except DECODE_ERRORS as error:
            raise ProtocolError(str(error)) from None
    return out


@given(st.lists(frames, max_size=5), st.data())
def test_any_cut_of_the_stream_gives_the_same_frames(messages: list[list[Any]], data: st.DataObject) -> None:
    pack = new_packer()
    stream = b"".join(pack(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    chunks = [stream[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert take(Decoder(), chunks) == messages


@given(st.lists(frames, min_size=1, max_size=3))
@settings(max_examples=30)
def test_byte_by_byte(messages: list[list[Any]]) -> None:
    pack = new_packer()
    stream = b"".join(pack(message) for message in messages)
    assert take(Decoder(), [stream[i : i + 1] for i in range(len(stream))]) == messages


@given(st.binary(max_size=400))
def test_garbage_gives_values_or_a_protocol_error(data: bytes) -> None:
    try:
        take(Decoder(), [data])
    except ProtocolError:
        pass


@given(frames, st.data())
def test_one_flipped_byte(message: list[Any], data: st.DataObject) -> None:
    stream = bytearray(new_packer()(message))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= data.draw(st.integers(1, 255))
    try:
        take(Decoder(), [bytes(stream)])
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\x7f\xff\xff\xff" * 500,  # arrays
        b"\xdf\x7f\xff\xff\xff",  # a map
        b"\xc6\x7f\xff\xff\xff",  # bytes that do not come
        b"\xdb\xff\xff\xff\xff",
        b"\x91" * 60_000,
        b"\xdc\x10\x00" * 20_000,  # nested arrays, each within the limit
        b"\xdd\x00\x00\x10\x00" * 200_000,
    ],
    ids=["arrays", "map", "bin", "str", "deep", "nested", "nested32"],
)
def test_headers_that_promise_much_cost_little(data: bytes) -> None:
    """Before HELLO a peer can have at most this much memory taken by what it announces, but does not send."""
    tracemalloc.start()
    try:
        decoder = Decoder(limits.MAX_HANDSHAKE_FRAME)
        try:
            take(decoder, [data])
        except ProtocolError:
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20, f"{peak / 2**20:.1f} MiB"


def test_a_frame_over_the_limit() -> None:
    with pytest.raises(ProtocolError):
        take(Decoder(1000), [msgpack.packb([b"x" * 2000])])
    with pytest.raises(ProtocolError):
        take(Decoder(1000), [msgpack.packb(["x" * 1001])])
    assert take(Decoder(1000), [msgpack.packb([b"x" * 900])]) == [[b"x" * 900]]


def test_several_frames_may_exceed_the_limit_together() -> None:
    one = msgpack.packb([b"x" * 900])
    assert len(take(Decoder(1000), [one] * 10)) == 10


def test_extension_types_are_refused() -> None:
    with pytest.raises(ProtocolError):
        take(Decoder(), [msgpack.packb(msgpack.ExtType(5, b"x"))])
    with pytest.raises(ProtocolError):
        take(Decoder(), [msgpack.packb(msgpack.Timestamp(1, 2))])


@given(frames, st.binary(max_size=300))
def test_rest_is_what_was_not_iterated_over(message: list[Any], more: bytes) -> None:
    decoder = Decoder()
    iterator = decoder.feed(new_packer()(message) + more)
    assert next(iterator) == message
    assert decoder.rest() == more


def test_packers_survive_an_error() -> None:
    pack = new_packer()
    with pytest.raises((TypeError, ValueError, OverflowError)):
        pack([1, object()])
    with pytest.raises((TypeError, ValueError, OverflowError)):
        pack([1, 2**64])
    assert msgpack.unpackb(pack([1])) == [1]


@given(st.lists(frames, max_size=5), st.data())
def test_whole_only_when_nothing_is_left(messages: list[list[Any]], data: st.DataObject) -> None:
    """`whole` may be wrong about streams that were cut oddly, but only in being too careful."""
    decoder, stream = Decoder(), b"".join(map(new_packer(), messages))
    ends = {len(b"".join(map(new_packer(), messages[:count]))) for count in range(len(messages) + 1)}
    assert decoder.whole
    place = 0
    while place < len(stream):
        size = data.draw(st.integers(1, len(stream) - place))
        place += size
        for number, _ in enumerate(decoder.feed(stream[place - size : place])):
            if number == 0:
                decoder.first()
        assert not decoder.whole or place in ends


def test_whole_after_every_lone_frame() -> None:
    decoder = Decoder()
    for _ in range(3):
        for _ in decoder.feed(new_packer()([1, "two"])):
            decoder.first()
        assert decoder.whole


def test_a_buffer_is_small_until_more_comes_at_a_time() -> None:
    frame_of_some_size = new_packer()([1, b"x" * 20_000])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        decoders = [Decoder(limits.MAX_FRAME) for _ in range(10)]
        for decoder in decoders:
            for _ in range(100):
                assert [len(frame) for frame in decoder.feed(frame_of_some_size)] == [2]
        each = (tracemalloc.get_traced_memory()[0] - before) / len(decoders)
    finally:
        tracemalloc.stop()
    assert each < 4 * limits.DECODER_BUFFER  # (it doubles)
