"""A connection, whatever comes in on it: a message, or a protocol error and its end; in bounded memory, and
without harm to the loop. The long form is tests/fuzz/fuzz_frames.py."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework._base import limits
from framework._net.connection import Connection
from framework._net.listener import Greeter
from framework._node import transfer_io
from framework._wire import messages as m
from framework.exceptions import ProtocolError
from support.hostile import Fields, hello, packed

HEADERS = [b"\xdd\x7f\xff\xff\xff", b"\xdd\x00\x1e\x84\x80", b"\xdf\x00\x01\x86\xa0", b"\xc6\x7f\xff\xff\xff"]
HEADERS += [
    b"\xdb\xff\xff\xff\xff",
    b"\x91",
    b"\xc7\x00\x05",
    b"\xd4\x05x",
    b"\xc1",
    b"\xa2\xff\xfe",
    b"\xc9",
]

frames = st.builds(
    lambda seed, opcode: packed(Fields(seed).frame(opcode)),
    st.integers(0, 10_000),
    st.sampled_from(sorted(m.CATALOGUE)),
)
pieces = st.one_of(
    frames,
    st.binary(max_size=40),
    st.builds(lambda header, count: header * count, st.sampled_from(HEADERS), st.sampled_from([1, 3, 1100])),
    st.builds(lambda frame, cut: frame[: cut % (len(frame) + 1)], frames, st.integers(0, 500)),
    st.builds(
        lambda frame, place, bit: bytes(
            b ^ (1 << bit if i == place % len(frame) else 0) for i, b in enumerate(frame)
        ),
        frames,
        st.integers(0, 500),
        st.integers(0, 7),
    ),
)
streams = st.lists(pieces, min_size=1, max_size=6).map(b"".join)
quiet = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Outcome:
    """What became of a connection that was fed."""

    def __init__(self) -> None:
        self.frames: list[list[Any]] = []
        self.closed: list[BaseException | None] = []
        self.loop_errors: list[Any] = []
        self.connection: Connection | None = None


async def pour(
    data: bytes, sizes: list[int], greeted: bool, handler: Callable[..., None] | None = None
) -> Outcome:
    """Bytes, in pieces of these sizes, to a connection that handles every message; then the end of the
    stream. `greeted`: its peer was let in before."""
    loop = asyncio.get_running_loop()
    found = Outcome()
    loop.set_exception_handler(lambda _, context: found.loop_errors.append(context))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def handled(connection: Connection, frame: list[Any]) -> None:
        found.frames.append(frame)

    def closed(connection: Connection) -> None:
        found.closed.append(connection.error)

    handlers = dict.fromkeys(m.CATALOGUE, handler or handled)
    if greeted:
        connection = Connection(loop, theirs, handlers, on_close=closed)
    else:
        greeter = Greeter(loop, handlers, on_peer=lambda c: None, on_close=closed, ident=b"i")
        connection = greeter._greet(theirs)
    with ours:
        with contextlib.suppress(ConnectionError):
            place = turn = 0
            while place < len(data) and not connection.closed:
                size = sizes[turn % len(sizes)] if sizes else len(data)
                await loop.sock_sendall(ours, data[place : place + size])
                place, turn = place + size, turn + 1
                await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while not connection.closed:
            await asyncio.sleep(0)
    found.connection = connection
    return found


@quiet
@given(streams, st.lists(st.integers(1, 300), max_size=4), st.booleans())
def test_a_message_or_a_protocol_error(data: bytes, sizes: list[int], greeted: bool) -> None:
    logging.disable(logging.CRITICAL)
    try:
        found = asyncio.run(pour(data, sizes, greeted))
    finally:
        logging.disable(logging.NOTSET)
    assert not found.loop_errors, found.loop_errors
    assert found.connection is not None
    error = found.connection.error
    assert error is None or isinstance(error, ProtocolError | ConnectionError | MemoryError), repr(error)
    for frame in found.frames:
        assert m.check(frame) == frame[0]


@quiet
@given(st.lists(frames, max_size=4), st.lists(st.integers(1, 300), max_size=4))
def test_what_is_right_in_form_arrives_however_it_is_cut(messages: list[bytes], sizes: list[int]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        found = asyncio.run(pour(hello() + b"".join(messages), sizes, True))
    finally:
        logging.disable(logging.NOTSET)
    assert not found.loop_errors
    assert found.connection is not None
    if found.connection.error is None:  # (the content of some is refused: all before it have arrived)
        assert len(found.frames) == 1 + len(messages)
    assert [packed(frame) for frame in found.frames[1:]] == messages[: len(found.frames) - 1]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("greeted", [False, True])
async def test_memory_for_what_is_only_announced(header: bytes, greeted: bool) -> None:
    """By a stranger, and by somebody who was let in: a few bytes take little, and the loop goes on."""
    logging.disable(logging.CRITICAL)
    tracemalloc.start()
    try:
        found = await pour(packed([m.FETCH, 1, b"o", True]) + header * 3000, [], greeted)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        logging.disable(logging.NOTSET)
    assert not found.loop_errors
    assert most < (40 if not greeted else 120) * 2**20, f"{most / 2**20:.0f} MiB"


async def test_a_deep_field_ends_the_connection() -> None:
    """(An error while it is said what is wrong is a trap: it would leave the connection half alive.)"""
    found = await pour(b"\x97\x01" + b"\x91" * 1015 + b"\x90" + b"\xc0" * 5, [], True)
    assert not found.loop_errors
    assert found.connection is not None and isinstance(found.connection.error, ProtocolError)


@pytest.mark.parametrize(
    "frame",
    [
        [m.DONE, [], 1, b""],
        [m.ITEM, {}, 1, b""],
        [m.ITEMS, 1, 0, {}],
        [m.UNBORROW, [[]]],
        [m.BORROW, 1, [{}]],
    ],
)
async def test_a_handler_that_stumbles_over_fields_of_hot_messages(frame: list[Any]) -> None:
    """Nobody looks at them before: the peer is to blame nevertheless, and the connection ends."""

    def stumbles(connection: Connection, frame: list[Any]) -> None:
        for field in frame:
            for part in field if isinstance(field, list) else [field]:
                hash(part)
        raise AssertionError

    found = await pour(packed(frame), [], True, stumbles)
    assert found.connection is not None and isinstance(found.connection.error, ProtocolError)
    fine = [m.DONE, 1, 1, b""]
    found = await pour(packed(fine), [], True, stumbles)
    assert found.connection is not None and found.connection.error is None, (
        "that was the handler's own mistake"
    )


async def test_a_peer_that_is_refused_ends_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever its facts are."""
    for wrong in ({"job": []}, {"sys_path": [1]}, {"logging": "x"}, {1: 2}):
        frame = [m.HELLO, limits.PROTOCOL_VERSION, "driver", b"i", 1, "", wrong]
        found = await pour(packed(frame), [], False)
        assert not found.loop_errors and not found.frames
        assert found.connection is not None and isinstance(found.connection.error, ProtocolError)


@quiet
@given(st.binary(max_size=200))
def test_requests_for_data(data: bytes) -> None:
    for received in (data, len(data).to_bytes(4, "little") + data, b"\xff" * 4 + data):
        try:
            message = transfer_io.complete_message(bytearray(received))
        except OSError:
            continue
        assert message is None or type(message) is list


def test_the_long_form_in_short() -> None:
    module = _fuzzer()
    assert module.plain(1.0, seed=3) > 20


def test_memory_of_the_long_form() -> None:
    module = _fuzzer()
    mutator = module.Mutator(4)
    assert max(module.traced(mutator.input()) for _ in range(60)) < 120 * 2**20


def _fuzzer() -> ModuleType:
    path = Path(__file__).parents[2] / "fuzz" / "fuzz_frames.py"
    spec = importlib.util.spec_from_file_location("fuzz_frames", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
