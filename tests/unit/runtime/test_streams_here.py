"""Streams in the process that owns them: items that come together, and the credits for what was taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from framework._runtime.streams import FIRST_ITEM_INDEX, Streams
from framework._state.objects import Entry
from framework._state.streams import StreamState
from framework._wire import messages as m
from framework._wire.codec import unpack_frame
from support.runtime import FakeRuntime, Ref

GENERATOR = b"g" * 24 + (1).to_bytes(4, "little")
UNIQUE = 5


class Producer:
    """The connection to it."""

    def __init__(self) -> None:
        self.closed = False
        self.waiting: list[list[Any]] = []
        self.sent: list[list[Any]] = []

    def buffer(self, data: bytes) -> None:
        self.waiting.append(unpack_frame(data))

    def flush(self) -> None:
        self.sent += self.waiting
        self.waiting.clear()


class World:
    def __init__(self, window: int = 4) -> None:
        self.runtime: Any = FakeRuntime()
        self.runtime.ref_class = type("ListedRef", (), {})
        self.streams = self.runtime.streams = Streams(self.runtime)
        self.runtime.ref_of = lambda entry: Ref(self.runtime.objects, entry)
        self.producer = Producer()
        self.entry = Entry(GENERATOR)
        self.stream = StreamState(window)
        self.task: Any = SimpleNamespace(
            entries=[self.entry],
            stream=self.stream,
            unique=UNIQUE,
            lost=False,
            lease=SimpleNamespace(connection=self.producer),
            actor=None,
        )
        self.streams.add(self.task)

    def values(self) -> list[Any]:
        return [ref._entry.value for ref in self.stream.items]


@pytest.fixture
def world() -> World:
    return World()


def test_items_that_come_together(world: World) -> None:
    woken: list[Any] = []
    world.stream.waiters.append(woken.append)
    assert world.streams.all_arrived(world.task, 0, [1, "two", b"pickle"])
    assert world.streams.all_arrived(world.task, 3, [None, 4.5])
    assert world.values() == [1, "two", b"pickle", None, 4.5] and woken == [None]
    assert (world.stream.arrived, world.stream.running) == (5, True)
    for index, ref in enumerate(world.stream.items):
        entry = ref._entry
        assert entry.id == GENERATOR[:24] + (index + FIRST_ITEM_INDEX).to_bytes(4, "little")
        assert world.runtime.objects.table.get(entry.id) is entry and entry.done
        assert ref._runtime is world.runtime


@pytest.mark.parametrize("why", ["known", "lost", "closed", "stored"])
def test_items_that_need_a_closer_look(world: World, why: str) -> None:
    wires: list[Any] = [1, 2]
    if why == "known":
        world.stream.add(0, object())
    elif why == "lost":
        world.task.lost = True
    elif why == "closed":
        world.stream.closed = True
    else:
        wires = [1, [0, b"pickle", []]]
    before = len(world.stream.items)
    assert not world.streams.all_arrived(world.task, 0, wires)
    assert len(world.stream.items) == before and not world.runtime.objects.table.entries


def test_who_takes_items_returns_the_credits(world: World) -> None:
    world.streams.all_arrived(world.task, 0, [0, 1, 2, 3])
    taken = []
    for count in range(1, 5):
        taken.append(world.streams.take_here(world.entry))
        assert world.producer.sent == [[m.CREDIT, UNIQUE, 2]] * (count // 2)
    assert [ref._entry.value for ref in taken] == [0, 1, 2, 3]
    assert world.streams.take_here(world.entry) is None
    assert world.streams.take_here(Entry(b"of nobody")) is None
    assert not world.producer.waiting


def test_no_credits_for_a_producer_that_is_not_there(world: World) -> None:
    world.streams.all_arrived(world.task, 0, [0, 1, 2, 3])
    world.streams.restart(world.stream)
    world.streams.take_here(world.entry), world.streams.take_here(world.entry)
    assert not world.producer.sent
    world.streams.all_arrived(world.task, 0, [0])  # (known: taken in one by one)
    world.streams.arrived(world.task, world.producer, 0, 0)  # type: ignore[arg-type]
    assert world.producer.sent == [[m.CREDIT, UNIQUE, 2]]


@pytest.mark.parametrize("place", ["before", "buffered", "flushed"])
def test_credits_are_not_lost_by_an_interruption(world: World, place: str) -> None:
    """Ctrl-C in the thread that takes items, at the worst moments."""
    buffer, flush = world.producer.buffer, world.producer.flush
    strikes = [place]

    def interrupted_buffer(data: bytes) -> None:
        if strikes == ["before"]:
            strikes.clear()
            raise KeyboardInterrupt
        buffer(data)
        if strikes == ["buffered"]:
            strikes.clear()
            raise KeyboardInterrupt

    def interrupted_flush() -> None:
        if strikes == ["flushed"]:
            strikes.clear()
            raise KeyboardInterrupt
        flush()

    world.producer.buffer = interrupted_buffer  # type: ignore[method-assign]
    world.producer.flush = interrupted_flush  # type: ignore[method-assign]
    world.streams.all_arrived(world.task, 0, [0, 1, 2, 3])
    world.streams.take_here(world.entry)
    with pytest.raises(KeyboardInterrupt):
        world.streams.take_here(world.entry)
    world.runtime.turn()
    world.streams.take_here(world.entry)
    assert sum(frame[2] for frame in world.producer.sent) >= 2, "the producer would wait for ever"
