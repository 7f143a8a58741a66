"""Waiting for entries: registered before or after they are done, woken once, given up, from several threads
and loops."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._runtime.objects import Objects
from framework._runtime.waiters import (
    FutureWaiter,
    ThreadWaiter,
    first_done,
    mailbox_of,
    register,
    register_all,
    unregister,
    wait_set,
    without,
)
from framework._state.objects import FAILED, READY, Entry


def entry(number: int = 0) -> Entry:
    return Entry(number.to_bytes(28, "little"))


def complete(target: Entry, state: int = READY) -> None:
    target.state = state
    Objects(mock.Mock()).notify(target)


def test_a_waiter_is_called_when_the_entry_is_done() -> None:
    target, called = entry(), []
    register(target, called.append)
    assert called == []
    complete(target)
    assert called == [target]
    assert target.waiters is None


def test_a_waiter_that_comes_late_is_called_at_once() -> None:
    target, called = entry(), []
    complete(target)
    register(target, called.append)
    assert called == [target]


def test_a_waiter_that_gives_up_is_forgotten() -> None:
    target, called = entry(), []
    register(target, called.append)
    other: list[Entry] = []
    keep = other.append
    register(target, keep)
    unregister(target, called.append)
    unregister(target, called.append)  # twice does no harm
    assert target.waiters == [keep]
    complete(target)
    assert (called, other) == ([], [target])
    unregister(target, keep)  # too late does no harm


def test_a_thread_waits_for_all() -> None:
    entries = [entry(i) for i in range(3)]
    waiter = ThreadWaiter(entries, 3, False)
    for target in entries:
        register(target, waiter)
    for target in entries[:2]:
        complete(target)
    assert not waiter.wait(0)
    complete(entries[2])
    assert waiter.wait(0)


def test_a_thread_registers_with_many_at_a_time() -> None:
    entries = [entry(i) for i in range(4)]
    called: list[Any] = []
    register(entries[1], called.append)
    complete(entries[3])
    waiter = ThreadWaiter(entries, 4, False)
    register_all([*entries, entries[2]], waiter)  # one of them twice
    register(entries[0], called.append)
    assert not entries[3].waiters, "it is done, and has been told"
    for target in entries[:3]:
        assert not waiter.wait(0)
        complete(target)
    assert waiter.wait(0)
    assert called == entries[:2]


def test_a_thread_hears_of_several_at_a_time() -> None:
    entries = [entry(i) for i in range(4)]
    waiter = ThreadWaiter(entries, 3, True)
    waiter.have_values(entries[:2])
    waiter.have_values(entries[1:2])  # once more
    assert not waiter.wait(0)
    waiter.have_values(entries[2:])
    assert waiter.wait(0)


def test_a_thread_that_has_registered_with_many_gives_up() -> None:
    entries = [entry(i) for i in range(3)]
    waiter, keep = ThreadWaiter(entries, 3, False), [].append
    register_all(entries, waiter)
    register(entries[0], keep)
    for target in entries:
        unregister(target, keep if target is entries[1] else waiter)  # (that one is not registered there)
    assert entries[0].waiters == [keep]
    assert (entries[1].waiters, entries[2].waiters) == ((waiter,), None)


def test_a_thread_waits_for_some() -> None:
    entries = [entry(i) for i in range(5)]
    waiter = ThreadWaiter(entries, 2, False)
    for target in entries:
        register(target, waiter)
    complete(entries[4])
    assert not waiter.wait(0)
    complete(entries[1], FAILED)
    complete(entries[0])  # more than enough
    assert waiter.wait(0)


def test_an_eager_waiter_is_woken_by_a_failure() -> None:
    entries = [entry(i) for i in range(5)]
    eager, patient = ThreadWaiter(entries, 5, True), ThreadWaiter(entries, 5, False)
    for target in entries:
        register(target, eager)
        register(target, patient)
    complete(entries[3], FAILED)
    assert eager.wait(0)
    assert not patient.wait(0)


def test_the_same_entry_twice_counts_once() -> None:
    """Loop and registering thread may both call a waiter for one entry."""
    entries = [entry(i) for i in range(2)]
    waiter = ThreadWaiter(entries, 2, False)
    waiter(entries[0])
    waiter(entries[0])
    assert not waiter.wait(0)
    waiter(entries[1])
    assert waiter.wait(0)


def test_a_waiter_for_nothing_in_particular_is_woken_by_anything() -> None:
    waiter = ThreadWaiter((), 0, False)
    assert not waiter.wait(0)
    waiter(entry())
    waiter(entry())
    assert waiter.wait(0)


@pytest.mark.parametrize("timeout", [-5.0, 0, 0.001])
def test_a_timeout_ends_the_waiting(timeout: float) -> None:
    assert not ThreadWaiter([entry()], 1, False).wait(timeout)


def test_a_huge_timeout_is_no_error() -> None:
    waiter = ThreadWaiter([entry()], 1, False)
    waiter.wake()
    assert waiter.wait(1e300)


def test_no_wake_up_is_lost_between_threads() -> None:
    """Registration and completion race: in whatever order they come, the waiter is woken."""
    for _ in range(300):
        target = entry()
        waiter = ThreadWaiter([target], 1, False)
        start = threading.Barrier(2)

        def finish(target: Entry = target, start: threading.Barrier = start) -> None:
            start.wait()
            complete(target)

        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        start.wait()
        register(target, waiter)
        assert waiter.wait(10)
        thread.join()


async def test_a_future_of_a_loop() -> None:
    target = entry()
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(3)]
    for future in futures:
        register(target, FutureWaiter(mailbox_of(loop), future))
    futures[1].cancel()
    thread = threading.Thread(target=complete, args=(target,))
    thread.start()
    async with asyncio.timeout(10):
        assert await futures[0] is None
        assert await futures[2] is None
    thread.join()
    assert futures[1].cancelled()


def test_each_loop_of_a_thread_has_its_mailbox() -> None:
    seen: list[Any] = []

    async def note() -> None:
        loop = asyncio.get_running_loop()
        assert mailbox_of(loop) is mailbox_of(loop)
        seen.append(mailbox_of(loop))

    for _ in range(3):
        asyncio.run(note())
    assert len({id(mailbox) for mailbox in seen}) == 3


# ---- the loop around wait ----------------------------------------------------------------------------


def test_the_first_that_are_done() -> None:
    entries = [entry(n) for n in range(6)]
    for n in (1, 4, 5):
        complete(entries[n])
    assert first_done(entries, 2) == [1, 4]
    assert first_done(entries, 6) == [1, 4, 5]
    assert first_done([], 1) == []


@given(st.lists(st.booleans(), max_size=30), st.booleans())
def test_all_but_some(chosen: list[bool], as_tuple: bool) -> None:
    items = [object() for _ in chosen]
    positions = [position for position, one in enumerate(chosen) if one]
    rest = without(tuple(items) if as_tuple else items, positions)
    assert rest == [item for item, one in zip(items, chosen, strict=True) if not one]
    assert rest is not items and len(items) == len(chosen)


def test_a_loop_registers_with_each_once() -> None:
    entries = [entry(n) for n in range(50)]
    left = list(entries)
    while left:
        with wait_set() as several:
            timer = threading.Timer(0, complete, [left[len(left) // 2]])
            timer.start()
            assert several.wait_for(left, 1, 20)
            timer.join()
        assert len(first_done(left, 50)) == 1
        left = [e for e in left if not e.state]
        assert all(e.waiters == [several] for e in left)
    assert not any(e.waiters for e in entries)


def test_what_is_done_before_the_turn_counts() -> None:
    first, second = entry(1), entry(2)
    with wait_set() as several:
        complete(first)
        assert several.wait_for([first, second], 1, 20)
        complete(second)  # between two turns, when it is registered already
        assert several.wait_for([second], 1, 20)


def test_what_is_done_of_an_earlier_turn_does_not_count() -> None:
    old, done, new = entry(1), entry(2), entry(3)
    complete(done)
    with wait_set() as several:
        assert several.wait_for([old, done], 1, 20)
        complete(old)
        assert not several.wait_for([new], 1, 0.01)


def test_a_late_waking_does_not_end_the_next_turn() -> None:
    done, new = entry(1), entry(2)
    complete(done)
    with wait_set() as several:
        assert several.wait_for([done], 1, 20)
        late = threading.Timer(0, several._lock.release)
        late.start()
        assert not several.wait_for([new], 1, 0.05)
        late.join()


def test_a_turn_that_ends_without_success_leaves_nothing() -> None:
    entries = [entry(n) for n in range(10)]
    with wait_set() as several:
        assert not several.wait_for(entries, 1, 0)
    assert not any(e.waiters for e in entries)


def test_between_two_turns_it_refers_to_no_entry() -> None:
    done, left = entry(1), entry(2)
    complete(done)
    before = sys.getrefcount(left)
    with wait_set() as several:
        assert several.wait_for([done, left], 1, 20)
    assert left.waiters == [several]
    assert sys.getrefcount(left) == before


def test_a_turn_inside_of_a_turn_has_a_set_of_its_own() -> None:
    outer_entry, inner_entry, left = entry(1), entry(2), entry(3)
    with wait_set() as outer:
        with wait_set() as inner:
            assert inner is not outer
            complete(inner_entry)
            assert inner.wait_for([inner_entry, left], 1, 20)
        assert not left.waiters  # nobody will use that one again
        complete(outer_entry)
        assert outer.wait_for([outer_entry], 1, 20)
    with wait_set() as again:
        assert again is outer


@pytest.mark.slow
def test_no_waking_is_lost_between_threads() -> None:
    objects = Objects(mock.Mock())
    entries = [entry(n) for n in range(5000)]
    order = random.Random(3).sample(entries, len(entries))

    def work() -> None:
        for target in order:
            target.state = READY
            objects.notify(target)

    thread = threading.Thread(target=work)
    left = list(entries)
    thread.start()
    while left:
        done = first_done(left, 7)
        needed = min(7, len(left))
        if len(done) < needed:
            with wait_set() as several:
                assert several.wait_for(left, needed, 20)
            done = first_done(left, 7)
            assert len(done) == needed
        for position in reversed(done):
            del left[position]
    thread.join()
