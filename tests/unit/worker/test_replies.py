"""Results wait for company while more is to be run, and none is lost or overtaken for it."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from framework._base import limits
from framework._runtime.peers import PeerState
from framework._wire import messages as m
from framework._wire.codec import new_packer, unpack_frame
from framework._worker.replies import Replies

PACK = new_packer()


class FakeConnection:
    """Remembers the frames that it has been given, and how many of them were flushed."""

    def __init__(self) -> None:
        self.state = PeerState("unix:caller")
        self.frames: list[list[Any]] = []
        self.flushed = 0
        self.written = True

    def buffer(self, data: bytes) -> None:
        self.frames.append(unpack_frame(data))

    def flush(self, wait: bool = False) -> None:
        self.flushed = len(self.frames)


@pytest.fixture
def more() -> deque[Any]:
    return deque(["another task"])


@pytest.fixture
def replies(more: deque[Any]) -> Replies:
    made = Replies(more)
    made._last = 2**62  # the last flush is not long ago, however slow this machine is
    return made


def test_a_result_with_nothing_behind_it_leaves_alone(replies: Replies, more: deque[Any]) -> None:
    more.clear()
    connection: Any = FakeConnection()
    replies.add(connection, (1, 2, "value"), PACK, 0)
    assert connection.frames == [[m.DONE, 1, 2, "value"]] and connection.flushed == 1


def test_results_of_a_burst_leave_together(replies: Replies, more: deque[Any]) -> None:
    connection: Any = FakeConnection()
    for number in range(3):
        replies.add(connection, (number, 0, None), PACK, 0)
    assert not connection.frames
    more.clear()
    replies.add(connection, (3, 7, 1.5), PACK, 0)
    assert connection.frames == [[m.DONES, [0, 0, None, 1, 0, None, 2, 0, None, 3, 7, 1.5]]]
    assert connection.flushed == 1


def test_none_waits_for_long(replies: Replies) -> None:
    connection: Any = FakeConnection()
    replies.add(connection, (1, 0, None), PACK, 0)
    replies.add(connection, (2, 0, None), PACK, replies._last + limits.FLUSH_AFTER_NS + 1)
    assert connection.frames == [[m.DONES, [1, 0, None, 2, 0, None]]] and connection.flushed == 1


def test_anyone_may_send_what_waits(replies: Replies) -> None:
    one, two = FakeConnection(), FakeConnection()
    for number, connection in enumerate((one, two, one)):
        replies.add(connection, (number, 0, None), PACK, 0)  # type: ignore[arg-type]
    replies.flush(PACK)
    assert one.frames == [[m.DONES, [0, 0, None, 2, 0, None]]] and one.flushed == 1
    assert two.frames == [[m.DONE, 1, 0, None]] and two.flushed == 1
    replies.flush(PACK)
    assert len(one.frames) == len(two.frames) == 1


@pytest.mark.parametrize("at_once", [False, True])
def test_a_frame_does_not_overtake_results(replies: Replies, at_once: bool) -> None:
    connection: Any = FakeConnection()
    replies.add(connection, (1, 0, None), PACK, 0)
    replies.send(connection, PACK([m.RETIRING]), PACK, at_once)
    assert connection.frames == [[m.DONE, 1, 0, None], [m.RETIRING]]
    assert connection.flushed == (2 if at_once else 0)


def test_beside_each_other(replies: Replies) -> None:
    under_way, asked = {1: "call", 2: "call"}, []
    replies.beside(under_way, lambda: asked.append(1))
    connection: Any = FakeConnection()
    replies.add(connection, (1, 0, None), PACK, 0)
    assert asked and not connection.frames, "somebody was asked to flush"
    under_way.clear()
    replies.add(connection, (2, 0, None), PACK, 0)
    assert connection.flushed == 1 and len(asked) == 1, "the last one under way sends for all"
