"""Streams: items once and in order, and a producer that never runs further ahead than its window, over any
attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base import limits
from framework._state.streams import Credits, StreamState


class Producer:
    """One attempt of a generator task: makes items while it has credits."""

    def __init__(self, stream: StreamState) -> None:
        self.stream = stream
        self.credits = stream.window
        self.made = 0

    def may(self) -> bool:
        return self.stream.window < 0 or self.credits > 0

    def make(self) -> None:
        self.credits -= 1
        self.stream.add(self.made, self.made)
        self.made += 1
        self.credits += self.stream.credits_due()


def test_items_come_in_order_and_once() -> None:
    stream = StreamState(4)
    assert stream.take() is None
    assert stream.add(0, "a")
    assert stream.add(1, "b")
    assert not stream.add(0, "a again")
    assert not stream.add(1, "b again")
    assert stream.add(2, "c")
    assert [stream.take(), stream.take(), stream.take(), stream.take()] == ["a", "b", "c", None]


def due_of(stream: StreamState, count: int) -> list[int]:
    """The credits after each of so many items, which are taken when all have come."""
    for index in range(count):
        stream.add(index, index)
    due = []
    for _ in range(count):
        stream.take()
        due.append(stream.credits_due())
    return due


def test_credits_come_in_lots_of_half_a_window() -> None:
    assert due_of(StreamState(8), 8) == [0, 0, 0, 4, 0, 0, 0, 4]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_small_window_never_starves(window: int) -> None:
    stream = StreamState(window)
    producer = Producer(stream)
    for expected in range(50):
        while producer.may():
            producer.make()
        assert stream.take() == expected
        producer.credits += stream.credits_due()


def test_an_unbounded_stream_needs_no_credits() -> None:
    stream = StreamState(-1)
    for index in range(10):
        stream.add(index, index)
        stream.take()
    assert stream.credits_due() == 0


def test_no_credits_before_the_producer_runs() -> None:
    """A frame of credits that arrives before its task has begun is lost."""
    stream = StreamState(2)
    stream.add(0, "a")
    stream.add(1, "b")
    stream.restart()
    assert stream.take() == "a"
    assert stream.take() == "b"
    assert stream.credits_due() == 0
    assert not stream.add(0, "a")
    assert stream.credits_due() == 2, "what was taken before counts for the new attempt"


def test_no_credits_after_the_end() -> None:
    for end in ("finished", "closed"):
        stream = StreamState(1)
        stream.add(0, "a")
        stream.take()
        setattr(stream, end, True)
        assert stream.credits_due() == 0


def test_nothing_is_added_to_a_closed_stream() -> None:
    stream = StreamState(4)
    stream.closed = True
    assert not stream.expects(0)
    assert not stream.add(0, "a")
    assert stream.take() is None


def test_ended() -> None:
    stream = StreamState(4)
    assert not stream.ended
    stream.add(0, "a")
    stream.finished = True
    assert not stream.ended, "an item is left"
    stream.take()
    assert stream.ended
    other = StreamState(4)
    other.closed = True
    assert other.ended


@given(
    window=st.integers(1, 10),
    steps=st.lists(st.sampled_from(["make", "make", "make", "take", "take", "die"]), max_size=300),
)
def test_bounded_complete_and_live_whatever_happens(window: int, steps: list[str]) -> None:
    stream = StreamState(window)
    producer = Producer(stream)
    taken: list[int] = []

    def take() -> None:
        item = stream.take()
        if item is not None:
            taken.append(item)
            producer.credits += stream.credits_due()

    for step in steps:
        if step == "make" and producer.may():
            producer.make()
        elif step == "take":
            take()
        elif step == "die":
            stream.restart()
            producer = Producer(stream)
        assert producer.made <= len(taken) + window, "too far ahead"
    for _ in range(100):  # and it goes on for ever
        while producer.may():
            producer.make()
        assert stream.items, "the producer waits for credits, the consumer for items"
        take()
    assert taken == list(range(len(taken)))


# ---- a producer that may borrow ---------------------------------------------------------------------------

SLOW = limits.QUICK_ITEM_NS + 1


def use_up(credits: Credits, now: int, per_item: int, small: bool = True) -> tuple[int, int]:
    """All that may be made, one after the other, until it has to wait: how many, and when that is."""
    made = 0
    while lot := credits.take(now, small):
        made += lot
        now += lot * per_item
    return made, now


def test_slow_or_large_items_have_the_window_alone() -> None:
    assert use_up(Credits(4, 32), 0, SLOW)[0] == 4
    assert use_up(Credits(4, 32), 0, 0, small=False)[0] == 4
    assert use_up(Credits(4), 0, 0)[0] == 4, "nobody may borrow where a window was asked for"


def test_quick_small_items_may_be_borrowed() -> None:
    credits = Credits(4, 32)
    made, now = use_up(credits, 0, limits.QUICK_ITEM_NS)
    assert made == 32
    now += 10**9  # what it waits for its consumer is not its own time
    credits.grant(8)
    assert use_up(credits, now, 0)[0] == 8


def test_who_has_become_slow_pays_back_first() -> None:
    credits = Credits(4, 32)
    assert credits.take(0, True) == 4
    assert credits.take(0, True) == 4, "borrowed"
    assert credits.take(8 * SLOW, True) == 0
    credits.grant(3)
    assert credits.take(9 * SLOW, True) == 0
    credits.grant(3)
    assert credits.take(10 * SLOW, True) == 2


def test_larger_lots_while_much_is_here() -> None:
    assert due_of(StreamState(4, 32), 20) == [0] * 7 + [8] + [0] * 7 + [8, 0, 2, 0, 2]


@given(
    window=st.integers(1, 10),
    burst=st.integers(0, 100),
    lots=st.lists(st.tuples(st.integers(0, 2 * SLOW), st.booleans(), st.integers(0, 60)), max_size=100),
)
def test_borrowing_is_bounded_and_live(window: int, burst: int, lots: list[tuple[int, bool, int]]) -> None:
    """Producer and consumer with everything in between taken as it comes: per lot the time of an item,
    whether items are small, and how many the consumer takes then."""
    stream = StreamState(window, burst)
    credits = Credits(window, burst)
    now = made = taken = 0
    small = True

    def take(count: int) -> None:
        nonlocal taken
        for _ in range(count):
            if stream.take() is None:
                break
            taken += 1
            credits.grant(stream.credits_due())

    for per_item, next_small, count in lots:
        lot = credits.take(now, small)
        small = next_small
        for _ in range(lot):
            stream.add(made, made)
            made += 1
        now += lot * per_item
        assert made <= taken + max(window, burst), "too far ahead"
        take(count)
    for _ in range(300):  # and it goes on for ever, though it is slow
        lot = credits.take(now, small)
        for _ in range(lot):
            stream.add(made, made)
            made += 1
        now += (lot + 1) * SLOW
        assert stream.items, "the producer waits for credits, the consumer for items"
        take(1)
    take(len(stream.items))
    assert taken == made
