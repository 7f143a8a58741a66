"""Streams that other processes read, whose connections are lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from framework._runtime.streams import Streams
from framework._state.streams import StreamState
from framework._wire import messages as m
from support.runtime import FakeConnection, FakeRuntime

GENERATOR = b"g" * 28
ITEMS = [bytes([number]) * 28 for number in range(4)]


class Source:
    """A process with a stream of four items, and those who read it."""

    def __init__(self) -> None:
        self.runtime = FakeRuntime()
        self.streams = self.runtime.streams = Streams(self.runtime)  # type: ignore[arg-type, assignment]
        self.stream = StreamState(-1)
        self.streams._streams[GENERATOR] = (self.stream, SimpleNamespace())  # type: ignore[assignment]
        for index, object_id in enumerate(ITEMS):
            self.stream.add(index, self.runtime.new(object_id, index))
        self._asked = 0

    def next(self, connection: Any, received: int, number: int = 0) -> Any:
        """What it is answered that asks for an item."""
        self._asked += 1
        frame = [m.NEXT_ITEM, self._asked, GENERATOR, number, received]
        self.streams.handlers[m.NEXT_ITEM](connection, frame)
        self.runtime.turn()
        return connection.replies.get(self._asked)

    def again(self, connection: Any, ids: list[bytes], streams: list[list[Any]]) -> None:
        self.runtime.objects.handlers[m.BORROW_AGAIN](connection, [m.BORROW_AGAIN, 0, ids, streams])
        self.runtime.turn()

    def alive(self) -> list[bytes]:
        return [object_id for object_id in ITEMS if self.runtime.objects.table.get(object_id)]


@pytest.fixture
def source() -> Source:
    return Source()


def test_items_that_have_not_arrived_come_first_again(source: Source) -> None:
    reader: Any = FakeConnection("tcp:r")
    assert [source.next(reader, 0), source.next(reader, 1), source.next(reader, 1)] == ITEMS[:3]
    back: Any = FakeConnection("tcp:r")
    source.again(back, ITEMS[:1], [[GENERATOR, 0, 1]])
    assert source.alive() == ITEMS
    assert [source.next(back, received) for received in (1, 2, 3)] == ITEMS[1:]
    source.runtime.objects.handlers[m.UNBORROW](back, [m.UNBORROW, ITEMS])
    assert source.alive() == []


def test_items_that_have_arrived_and_were_dropped_are_not_sent_again(source: Source) -> None:
    reader: Any = FakeConnection("tcp:r")
    assert [source.next(reader, 0), source.next(reader, 1)] == ITEMS[:2]
    source.again(FakeConnection("tcp:r"), [], [[GENERATOR, 0, 2]])
    assert source.alive() == ITEMS[2:]
    assert source.next(FakeConnection("tcp:r"), 2) == ITEMS[2]


def test_what_has_not_arrived_may_go_to_another_reader(source: Source) -> None:
    one: Any = FakeConnection("tcp:r")
    other: Any = FakeConnection("tcp:s")
    assert [source.next(one, 0), source.next(other, 0)] == ITEMS[:2]
    source.again(FakeConnection("tcp:r"), [], [[GENERATOR, 0, 0]])
    assert [source.next(other, 1), source.next(other, 2)] == [ITEMS[0], ITEMS[2]]


def test_a_reader_that_has_begun_anew_has_received_nothing_yet(source: Source) -> None:
    reader: Any = FakeConnection("tcp:r")
    assert [source.next(reader, 0), source.next(reader, 1)] == ITEMS[:2]
    assert source.next(reader, 0, number=1) == ITEMS[2]
    source.again(FakeConnection("tcp:r"), [], [[GENERATOR, 1, 0]])
    assert source.alive() == ITEMS[2:], "what the one before had received is its own business"
    assert source.next(FakeConnection("tcp:r"), 0, number=1) == ITEMS[2]


@pytest.mark.parametrize("ended", [True, False])
def test_what_was_sent_to_one_who_reads_no_more_is_gone(source: Source, ended: bool) -> None:
    reader: Any = FakeConnection("tcp:r")
    assert source.next(reader, 0) == ITEMS[0]
    if ended:
        source.runtime.objects.process_lost(reader)
    else:
        source.again(FakeConnection("tcp:r"), [], [])
    source.runtime.turn()
    assert source.alive() == ITEMS[1:]
    assert source.next(FakeConnection("tcp:s"), 0) == ITEMS[1]
