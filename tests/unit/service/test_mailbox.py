"""The mailbox of a loop: everything posted is called, in order, on the loop, whatever threads and errors
do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from framework._service.mailbox import Mailbox


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop do what is due."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_in_order_with_arguments(loop: asyncio.AbstractEventLoop) -> None:
    mailbox, called = Mailbox(loop), []
    for i in range(100):
        mailbox.post(called.append, i)
    assert called == []
    turn(loop)
    assert called == list(range(100))


def test_a_burst_wakes_the_loop_once(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes: list[Any] = []
    wake = loop.call_soon_threadsafe

    def counted(*args: Any) -> Any:
        wakes.append(args)
        return wake(*args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    mailbox = Mailbox(loop)
    for _ in range(50):
        mailbox.post(lambda: None)
    assert len(wakes) == 1
    turn(loop)
    mailbox.post(lambda: None)
    assert len(wakes) == 2


def test_what_is_posted_meanwhile_is_called_too(loop: asyncio.AbstractEventLoop) -> None:
    mailbox, called = Mailbox(loop), []

    def again(n: int) -> None:
        called.append(n)
        if n:
            mailbox.post(again, n - 1)

    mailbox.post(again, 5)
    turn(loop)
    assert called == [5, 4, 3, 2, 1, 0]


def test_an_error_goes_to_the_loop_and_the_rest_is_called(loop: asyncio.AbstractEventLoop) -> None:
    mailbox, called = Mailbox(loop), []
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))

    def fail() -> None:
        raise LookupError("in a post")

    mailbox.post(called.append, 1)
    mailbox.post(fail)
    mailbox.post(called.append, 2)
    turn(loop)
    assert called == [1, 2]
    assert [str(problem["exception"]) for problem in problems] == ["in a post"]
    assert "fail" in problems[0]["message"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_the_rest_for_the_next_run(
    loop: asyncio.AbstractEventLoop, kind: type[BaseException]
) -> None:
    mailbox, called = Mailbox(loop), []

    def interrupt() -> None:
        raise kind

    mailbox.post(called.append, 1)
    mailbox.post(interrupt)
    mailbox.post(called.append, 2)
    with pytest.raises(kind):
        turn(loop)
    assert called == [1]
    turn(loop)
    assert called == [1, 2]
    mailbox.post(called.append, 3)
    turn(loop)
    assert called == [1, 2, 3]


def test_a_closed_loop_is_no_error() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    mailbox = Mailbox(loop)
    mailbox.post(print)
    mailbox.post(print)


def test_many_threads_lose_nothing(loop: asyncio.AbstractEventLoop) -> None:
    mailbox = Mailbox(loop)
    counts = dict.fromkeys(range(4), 0)
    total = 4 * 2000

    def count(name: int, expected: int) -> None:
        assert counts[name] == expected, "out of order"
        counts[name] += 1
        if sum(counts.values()) == total:
            loop.stop()

    def post(name: int) -> None:
        for i in range(2000):
            mailbox.post(count, name, i)

    threads = [threading.Thread(target=post, args=(name,)) for name in counts]
    for thread in threads:
        thread.start()
    loop.call_later(20, loop.stop)
    loop.run_forever()
    for thread in threads:
        thread.join()
    assert counts == dict.fromkeys(range(4), 2000)


def test_the_loop_was_interrupted_before_it_called(loop: asyncio.AbstractEventLoop) -> None:
    """Ctrl-C in the loop itself: the handle is out of its queue, and nobody calls it."""
    mailbox, called = Mailbox(loop), []
    mailbox.post(called.append, 1)
    loop._ready.clear()  # type: ignore[attr-defined]
    mailbox.post(called.append, 2)
    turn(loop)
    assert called == []
    loop.call_soon(mailbox.look_after)
    turn(loop)
    turn(loop)
    assert called == [1, 2]
    mailbox.look_after()
    assert not loop._ready  # type: ignore[attr-defined]
