"""Whoever waits for an object is called once it is done, however long the chain of those who wait for each
other."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from framework._runtime.objects import Objects
from framework._runtime.waiters import register
from framework._state.objects import FAILED, READY, Entry


def objects() -> tuple[Objects, list[Any]]:
    discarded: list[Any] = []
    runtime = mock.Mock()
    runtime.discard = discarded.append
    return Objects(runtime), discarded


def test_a_chain_longer_than_the_stack() -> None:
    table, _ = objects()
    chain = [Entry(number.to_bytes(28, "big")) for number in range(5_000)]
    for before, after in zip(chain, chain[1:], strict=False):
        register(before, lambda done, after=after: table.fail(after, done.value))  # type: ignore[misc]
    error = ValueError("the first")
    table.fail(chain[0], error)
    assert all(entry.state == FAILED and entry.value is error for entry in chain)


def test_a_waiter_that_raises_does_not_stop_those_that_come_later() -> None:
    table, _ = objects()
    one, two = Entry(b"1"), Entry(b"2")
    called: list[Entry] = []

    def fails(_: Entry) -> None:
        raise RuntimeError("a waiter's own mistake")

    register(one, fails)
    register(two, called.append)
    with pytest.raises(RuntimeError):
        table.complete(one, 1)
    table.complete(two, 2)
    assert called == [two]


def test_what_is_completed_inside_of_a_waiter_is_told_after_it() -> None:
    table, _ = objects()
    one, two = Entry(b"1"), Entry(b"2")
    order: list[str] = []

    def first(_: Entry) -> None:
        table.complete(two, 2)
        assert two.state == READY, "the object itself is done at once"
        order.append("one")

    register(one, first)
    register(two, lambda _: order.append("two"))
    table.complete(one, 1)
    assert order == ["one", "two"]


def test_a_second_copy_of_what_nobody_needs_is_discarded() -> None:
    table, discarded = objects()
    entry = Entry(b"1")
    wire = [3, b"1", "unix:x", 10, [], b""]
    table.complete(entry, wire)
    table.complete(entry, wire)
    assert discarded == [], "it is the same block"
    entry.freed = True
    table.complete(entry, wire)
    assert discarded == [wire]
