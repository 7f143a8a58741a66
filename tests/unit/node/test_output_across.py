"""Printed lines on their way from node to node, with the other ends played by this test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from framework._base import limits
from framework._node.logtail import LogBatch
from framework._node.output_across import OutputAcross
from framework._wire import messages as m

JOB = b"\1\0\0\0"
HERE, THERE = b"h" * 28, b"t" * 28


class Output:
    """An `OutputService`."""

    def __init__(self) -> None:
        self.drivers: dict[Any, bytes] = {}
        self.elsewhere: Callable[[bytes, Any], None] | None = None
        self.slow_elsewhere: Callable[[], set[bytes]] = set
        self.flushed: list[bytes | None] = []

    def flush_job(self, job: bytes | None) -> None:
        self.flushed.append(job)


class Peer:
    """A connection; what was sent over it."""

    closed = congested = False

    def __init__(self, ident: bytes = THERE) -> None:
        self.ident = ident
        self.state = {"log_to_driver": True}
        self.sent: list[Any] = []
        self.calls: list[asyncio.Future[Any]] = []
        self.waiters: list[Callable[[], object]] = []

    def cast(self, *frame: object) -> None:
        self.sent.append(frame)

    def call(self, *frame: object) -> asyncio.Future[Any]:
        self.sent.append(frame)
        self.calls.append(asyncio.get_running_loop().create_future())
        return self.calls[-1]

    def reply(self, rid: int, value: object) -> None:
        self.sent.append(("reply", rid, value))

    def when_drained(self, callback: Callable[[], object]) -> None:
        self.waiters.append(callback)


class Head:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    def call(self, opcode: int, *fields: object) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future


def batch(text: str) -> LogBatch:
    return LogBatch(b"w", 5, False, [("task", text)])


def make(output: Output, head: Head, peer: Peer) -> OutputAcross:
    return OutputAcross(
        asyncio.get_running_loop(),
        output,  # type: ignore[arg-type]
        head,
        "10.0.0.1",
        connect=lambda node_id: peer if node_id == THERE else None,  # type: ignore[arg-type,return-value]
        others=lambda: [THERE],
    )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_lines_go_where_the_head_says() -> None:
    output, head, peer = Output(), Head(THERE), Peer()
    make(output, head, peer)
    assert output.elsewhere is not None
    for text in ("a", "b", "c"):
        output.elsewhere(JOB, batch(text))
    assert peer.sent == []
    await settle()
    output.elsewhere(JOB, batch("d"))
    assert head.asked == 1
    assert peer.sent == [(m.OUTPUT, JOB, "10.0.0.1", 5, False, [["task", text]]) for text in "abcd"]


async def test_jobs_whose_lines_nobody_wants_are_remembered_up_to_a_bound() -> None:
    output, head, peer = Output(), Head(None), Peer()
    across = make(output, head, peer)
    assert output.elsewhere is not None
    for number in range(limits.JOBS_OVER_KEPT + 20):
        output.elsewhere(number.to_bytes(4, "little"), batch("late"))
        await settle()
    assert len(across._where) == limits.JOBS_OVER_KEPT
    assert (limits.JOBS_OVER_KEPT + 19).to_bytes(4, "little") in across._where
    assert peer.sent == []


async def test_nobody_wants_them() -> None:
    output, head, peer = Output(), Head(None), Peer()
    across = make(output, head, peer)
    assert output.elsewhere is not None
    output.elsewhere(JOB, batch("a"))
    await settle()
    output.elsewhere(JOB, batch("b"))
    assert (peer.sent, head.asked) == ([], 1)
    across.job_over(JOB)
    output.elsewhere(JOB, batch("c"))
    await settle()
    assert head.asked == 2, "another job may get its number"


async def test_the_head_was_away() -> None:
    output, head, peer = Output(), Head(ConnectionError("away"), THERE), Peer()
    make(output, head, peer)
    assert output.elsewhere is not None
    output.elsewhere(JOB, batch("a"))
    while not peer.sent:
        await asyncio.sleep(0.01)
    assert head.asked == 2


async def test_a_driver_that_takes_nothing_holds_its_lines_up() -> None:
    output, head, peer = Output(), Head(THERE), Peer()
    make(output, head, peer)
    assert output.elsewhere is not None
    output.elsewhere(JOB, batch("a"))
    await settle()
    for _ in range(limits.OUTPUT_UNDERWAY - 1):
        assert output.slow_elsewhere() == set()
        output.elsewhere(JOB, batch("b"))
    assert output.slow_elsewhere() == {JOB}
    peer.calls[0].set_result(None)
    await settle()
    assert output.slow_elsewhere() == set()
    peer.calls[1].set_exception(ConnectionError("lost"))
    await settle()


async def test_the_drivers_node_passes_them_on() -> None:
    output, peer = Output(), Peer()
    mine, other, deaf = Peer(b"d"), Peer(b"e"), Peer(b"f")
    deaf.state = {"log_to_driver": False}
    output.drivers = {mine: JOB, other: b"\2\0\0\0", deaf: JOB}
    across = make(output, Head(None), peer)
    arrived = across.handlers[m.OUTPUT]
    arrived(peer, [m.OUTPUT, 7, JOB, "10.0.0.9", 5, True, [["task", "a"]]])  # type: ignore[arg-type]
    assert mine.sent == [(m.LOG_LINES_FROM, "10.0.0.9", 5, True, [["task", "a"]])]
    assert other.sent == deaf.sent == []
    assert peer.sent == [("reply", 7, None)]
    mine.congested = True
    arrived(peer, [m.OUTPUT, 8, JOB, "10.0.0.9", 5, True, [["task", "b"]]])  # type: ignore[arg-type]
    assert peer.sent == [("reply", 7, None)], "not before the driver takes more"
    (taken,) = mine.waiters
    taken()
    assert peer.sent[-1] == ("reply", 8, None)


async def test_a_flush_brings_everything_first() -> None:
    """Also what waits for an answer of the head."""
    output, head, peer = Output(), Head(THERE), Peer()
    across = make(output, head, peer)
    assert output.elsewhere is not None
    output.elsewhere(JOB, batch("a"))
    across.handlers[m.OUTPUT_FLUSH](peer, [m.OUTPUT_FLUSH, 3, JOB])  # type: ignore[arg-type]
    assert [frame[0] for frame in peer.sent] == [m.OUTPUT, "reply"]
    assert output.flushed == [JOB]
    await settle()
    assert len(peer.sent) == 2, "once"


async def test_the_node_of_a_driver_is_gone() -> None:
    output, head, peer = Output(), Head(THERE), Peer()
    across = make(output, head, peer)
    assert output.elsewhere is not None
    output.elsewhere(JOB, batch("a"))
    await settle()
    across.node_gone(THERE)
    output.elsewhere(JOB, batch("b"))
    assert len(peer.sent) == 1
