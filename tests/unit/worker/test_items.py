"""The items of a generator wait for company, keep their order, and none is left behind."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from framework._base import limits
from framework._wire import messages as m
from framework._wire.codec import new_packer, unpack_frame
from framework._worker.items import Items
from framework._worker.results import Results

UNIQUE = 7
NEVER = 2**62  #: as the time of the last sending: that was not long ago, however slow this machine is


class FakeConnection:
    def __init__(self) -> None:
        self.frames: list[list[Any]] = []
        self.flushed = 0
        self.closed = False
        self.full = False
        self.written = True
        self.ident, self.state = b"", SimpleNamespace(address="")

    def buffer(self, data: bytes) -> None:
        self.frames.append(unpack_frame(data))

    def flush(self, wait: bool = False) -> None:
        self.flushed = len(self.frames)

    def items(self) -> list[tuple[int, Any]]:
        """What was sent, in its order."""
        found: list[tuple[int, Any]] = []
        for opcode, unique, index, content in self.frames:
            assert unique == UNIQUE
            found += enumerate(content, index) if opcode == m.ITEMS else [(index, content)]
        return found


class World:
    """One generator, the connection to its owner, and the runtime's loop, whose timers the test fires."""

    def __init__(self, careful: bool = False) -> None:
        self.connection: Any = FakeConnection()
        self.posted: list[Any] = []
        self.timers: list[Any] = []
        runtime = SimpleNamespace(
            post=self.posted.append,
            loop=SimpleNamespace(call_later=lambda seconds, function: self.timers.append(function)),
            store=SimpleNamespace(seal_array=lambda *_: None),
        )
        executor: Any = SimpleNamespace(runtime=runtime, thread=threading.local())
        executor.thread.pack = new_packer()
        executor.results = Results(executor)
        template: Any = SimpleNamespace(careful=careful, name="count")
        self.items = Items(executor, self.connection, template, UNIQUE)
        self.items._last = NEVER

    def loop_looks(self) -> None:
        for function in self.posted:
            function()
        self.posted.clear()
        timers, self.timers[:] = list(self.timers), []
        for function in timers:
            function()


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_item_leaves_at_once(world: World) -> None:
    world.items._last = 0
    world.items.add(0, "first")
    assert world.connection.frames == [[m.ITEM, UNIQUE, 0, "first"]] and world.connection.flushed == 1
    assert not world.posted


def test_items_of_a_burst_leave_together(world: World) -> None:
    values = [None, True, 1, 2.5, "text", -(2**63), 2**64 - 1]
    for index, value in enumerate(values):
        world.items.add(index, value)
    assert not world.connection.frames
    world.items.flush()
    assert world.connection.frames == [[m.ITEMS, UNIQUE, 0, values]] and world.connection.flushed == 1
    world.items.flush()
    assert len(world.connection.frames) == 1


def test_there_is_a_limit_to_waiting(world: World) -> None:
    for index in range(limits.ITEMS_IN_FRAME * 2 + 1):
        world.items.add(index, index)
    assert [len(frame[3]) for frame in world.connection.frames] == [limits.ITEMS_IN_FRAME] * 2
    world.items._last = 0  # a while ago
    world.items.add(limits.ITEMS_IN_FRAME * 2 + 1, "x")
    assert world.connection.items()[-2:] == [(64, 64), (65, "x")] and world.connection.flushed == 3


def test_the_loop_sends_what_a_slow_generator_has_left(world: World) -> None:
    world.items.add(0, "a")
    world.items.add(1, "b")
    assert len(world.posted) == 1, "the loop is asked once"
    world.loop_looks()
    assert world.connection.items() == [(0, "a"), (1, "b")] and world.connection.flushed == 1
    world.items._last = NEVER
    world.items.add(2, "c")  # it looks again, by itself
    assert not world.posted
    world.loop_looks()
    assert world.connection.items()[2:] == [(2, "c")]
    world.loop_looks()  # nothing new: it stops
    assert not world.timers
    world.items._last = NEVER
    world.items.add(3, "d")
    assert len(world.posted) == 1


@pytest.mark.parametrize(
    "large", ["x" * 2000, b"x" * 2000, [1] * 2000, b"x" * 200_000], ids=["text", "bytes", "list", "buffer"]
)
def test_what_is_large_travels_alone_and_in_its_place(world: World, large: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(limits, "INLINE_LIMIT", 1_000_000)
    for index, value in enumerate([1, 2, large, 3, 4]):
        world.items.add(index, value)
    world.items.flush()
    assert [frame[0] for frame in world.connection.frames] == [m.ITEMS, m.ITEM, m.ITEMS]
    assert [index for index, _ in world.connection.items()] == [0, 1, 2, 3, 4]


def test_a_careful_task_lets_nothing_wait() -> None:
    world = World(careful=True)
    for index in range(3):
        world.items.add(index, index)
        assert world.connection.flushed == index + 1
    assert world.connection.items() == [(0, 0), (1, 1), (2, 2)]


def test_items_that_are_made_again_keep_their_numbers(world: World) -> None:
    world.items.alone(3, "three")
    world.items.alone(17, "seventeen")
    assert world.connection.items() == [(3, "three"), (17, "seventeen")]


def test_threads_that_send_do_not_overtake_each_other(world: World) -> None:
    """As the loop does while the generator goes on."""
    end = threading.Event()

    def send() -> None:
        world.items._executor.thread.pack = new_packer()
        while not end.wait(0.0001):
            world.items.flush()

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for index in range(400):
            world.items.add(index, index if index % 50 else "x" * 2000)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    world.items.flush()
    assert [index for index, _ in world.connection.items()] == list(range(400))
