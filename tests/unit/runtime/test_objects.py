"""Custody: what a process holds for others, registers with others, and lets go of, in the right order."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from framework._serial.errors import encode_error, error_from_wire
from framework._state.objects import FAILED, PENDING, READY, Entry
from framework._wire import messages as m
from framework.exceptions import ObjectLostError, OwnerDiedError
from support.runtime import FakeConnection, FakeRuntime

MINE, THEIRS, OTHER = b"m" * 28, b"t" * 28, b"o" * 28


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


def value_with(*refs: tuple[bytes, str]) -> list[Any]:
    return [0, b"pickle", [[object_id, owner] for object_id, owner in refs]]


def error_with(*refs: tuple[bytes, str]) -> list[Any]:
    wire, _ = encode_error(ValueError(1), function_name="f", pid=1, ip="")
    return [*wire, [[object_id, owner] for object_id, owner in refs]]


def local(runtime: FakeRuntime, object_id: bytes) -> int:
    entry = runtime.objects.table.get(object_id)
    return entry.local if entry is not None else 0


@pytest.mark.parametrize("wire_with", [value_with, error_with])
def test_what_a_value_or_error_contains_lives_as_long_as_it(runtime: FakeRuntime, wire_with: Any) -> None:
    inner = runtime.new(MINE, 1)
    outer = runtime.new(OTHER, wire_with((MINE, runtime.address)))
    del inner
    runtime.turn()
    assert (local(runtime, MINE), runtime.freed) == (1, [])
    del outer
    runtime.turn()
    assert sorted(runtime.freed) == sorted([MINE, OTHER])


@pytest.mark.parametrize("wire_with", [value_with, error_with])
def test_the_sender_keeps_it_until_its_owner_knows_of_the_receiver(
    runtime: FakeRuntime, wire_with: Any
) -> None:
    worker, owner = FakeConnection("worker"), runtime.to("unix:owner")
    ref = runtime.new(OTHER, wire_with((THEIRS, "unix:owner")))
    runtime.objects.release_when_registered(worker, 7, 1)
    runtime.turn()
    ((fields, answer),) = owner.calls
    assert fields == (m.BORROW, [THEIRS])
    assert worker.casts == []
    answer.set_result([])
    assert worker.casts == [(m.RELEASE_HELD, 7, 1)]
    del ref
    runtime.turn()
    assert owner.casts == [(m.UNBORROW, [THEIRS])]


def test_what_is_held_for_several_attempts_is_released_one_by_one(runtime: FakeRuntime) -> None:
    receiver: Any = FakeConnection("driver")
    first, second = runtime.new(MINE, 1), runtime.new(OTHER, 2)
    runtime.objects.hold(receiver, 7, 1, [first])
    runtime.objects.hold(receiver, 7, 1, [second])
    del first, second
    release = runtime.objects.handlers[m.RELEASE_HELD]
    release(receiver, [m.RELEASE_HELD, 7, 1])
    runtime.turn()
    assert (local(runtime, MINE), local(runtime, OTHER)) == (0, 1), "the oldest"
    release(receiver, [m.RELEASE_HELD, 7, 2])
    runtime.turn()
    assert local(runtime, OTHER) == 1, "another place"
    release(receiver, [m.RELEASE_HELD, 7, 1])
    release(receiver, [m.RELEASE_HELD, 7, 1])
    runtime.turn()
    assert local(runtime, OTHER) == 0


def test_nothing_is_held_for_who_is_gone(runtime: FakeRuntime) -> None:
    receiver: Any = FakeConnection("driver")
    runtime.objects.hold(receiver, 7, 1, [runtime.new(MINE, 1)])
    receiver.closed = True
    runtime.objects.borrower_lost(receiver)
    runtime.objects.hold(receiver, 8, 1, [runtime.new(OTHER, 1)])
    runtime.turn()
    assert (local(runtime, MINE), local(runtime, OTHER)) == (0, 0)


def test_a_task_that_keeps_a_reference_registers_before_its_reply(runtime: FakeRuntime) -> None:
    runtime.task_runs = True
    said: list[str] = []
    assert not runtime.objects.register_provisional(lambda: said.append("never"))
    kept, passing = runtime.make_ref(THEIRS, "unix:owner"), runtime.make_ref(OTHER, "unix:owner")
    del passing
    assert runtime.objects.register_provisional(lambda: said.append("reply"))
    runtime.turn()
    ((fields, answer),) = runtime.to("unix:owner").calls
    assert fields == (m.BORROW, [THEIRS]), "and not what it has dropped"
    assert said == []
    answer.set_result([])
    assert said == ["reply"]
    assert not runtime.objects.register_provisional(lambda: None)
    del kept


def test_no_release_overtakes_a_registration(runtime: FakeRuntime) -> None:
    one = runtime.make_ref(THEIRS, "unix:owner")
    runtime.turn()
    owner = runtime.to("unix:owner")
    two = runtime.make_ref(OTHER, "unix:owner")
    runtime.turn()
    del one
    runtime.turn()
    assert owner.casts == []
    owner.calls[0][1].set_result([])
    assert owner.casts == [], "another one, begun before the release, has no answer"
    owner.calls[1][1].set_result([])
    assert owner.casts == [(m.UNBORROW, [THEIRS])]
    del two


def test_what_comes_back_before_its_release_was_sent_stays(runtime: FakeRuntime) -> None:
    ref = runtime.make_ref(THEIRS, "unix:owner")
    runtime.turn()
    owner = runtime.to("unix:owner")
    del ref
    runtime.turn()
    again = runtime.make_ref(THEIRS, "unix:owner")
    runtime.turn()
    for _, answer in owner.calls:
        answer.set_result([])
    runtime.turn()
    assert owner.casts == []
    assert local(runtime, THEIRS) == 1
    del again


def test_an_owner_that_does_not_know_it_and_one_that_is_gone(runtime: FakeRuntime) -> None:
    runtime.gone.add("unix:gone")
    unknown, orphan = runtime.make_ref(THEIRS, "unix:owner"), runtime.make_ref(OTHER, "unix:gone")
    runtime.turn()
    runtime.to("unix:owner").calls[0][1].set_result([THEIRS])
    for ref, kind in ((unknown, ObjectLostError), (orphan, OwnerDiedError)):
        error = runtime.objects.error(ref._entry)
        assert type(error) is kind
        assert ref._entry.id.hex() in str(error)


def test_a_reference_of_ours_that_arrives_too_late(runtime: FakeRuntime) -> None:
    ref = runtime.make_ref(MINE, runtime.address)
    assert ref._entry.state == FAILED
    assert "freed by its owner" in str(runtime.objects.error(ref._entry))


def test_borrowers_keep_an_object_and_lose_it(runtime: FakeRuntime) -> None:
    ref = runtime.new(MINE, 1)
    one: Any = FakeConnection("one")
    two: Any = FakeConnection("two")
    borrow, unborrow = runtime.objects.handlers[m.BORROW], runtime.objects.handlers[m.UNBORROW]
    borrow(one, [m.BORROW, 1, [MINE, OTHER]])
    borrow(two, [m.BORROW, 1, [MINE]])
    assert (one.replies, two.replies) == ({1: [OTHER]}, {1: []}), "what is not known here"
    del ref
    runtime.turn()
    unborrow(one, [m.UNBORROW, [MINE]])
    assert runtime.freed == []
    runtime.objects.borrower_lost(two)
    assert runtime.freed == [MINE]


def test_who_asks_for_a_failed_object_gets_its_error(runtime: FakeRuntime) -> None:
    wire = error_with((THEIRS, "unix:owner"))
    ref = runtime.new(MINE, wire)
    borrower: Any = FakeConnection("borrower")
    for rid, wanted in ((1, True), (2, False)):
        runtime.objects.handlers[m.FETCH](borrower, [m.FETCH, rid, MINE, wanted])
    assert borrower.replies == {1: wire, 2: wire}
    assert isinstance(error_from_wire(borrower.replies[1]), ValueError)
    assert ref._entry.seen


def test_a_result_that_is_made_again_brings_its_references(runtime: FakeRuntime) -> None:
    def stored(name: bytes, *refs: tuple[bytes, str]) -> list[Any]:
        return [3, name, runtime.address, 10, [[i, o] for i, o in refs], b""]

    old, new = runtime.new(THEIRS, 1), runtime.new(OTHER, 2)
    ref = runtime.new(MINE, stored(MINE, (THEIRS, runtime.address)))
    runtime.objects.replace(ref._entry, stored(MINE, (OTHER, runtime.address)))
    del old, new
    runtime.turn()
    assert (local(runtime, THEIRS), local(runtime, OTHER)) == (0, 1)
    assert runtime.discarded == []
    elsewhere = stored(b"e" * 28)
    runtime.objects.replace(ref._entry, elsewhere)
    assert ref._entry.value == elsewhere
    assert [wire[1] for wire in runtime.discarded] == [MINE], "the copy that it replaces"


def test_a_late_error_for_a_freed_object_takes_nothing_into_custody(runtime: FakeRuntime) -> None:
    entry = runtime.objects.new(MINE)
    ref = runtime.ref_of(entry)
    del ref
    runtime.turn()
    assert entry.freed
    runtime.objects.complete(entry, error_with((THEIRS, "unix:owner")))
    gc.collect()
    assert entry.contained is None
    assert runtime.objects.table.get(THEIRS) is None


def test_each_reader_gets_an_error_of_its_own(runtime: FakeRuntime) -> None:
    entry = Entry(MINE)
    runtime.objects.fail(entry, ObjectLostError("ff", "for a reason"))
    one, two = runtime.objects.error(entry), runtime.objects.error(entry)
    assert one is not two
    assert (type(one), str(one)) == (ObjectLostError, str(entry.value))
    assert entry.seen


def test_states(runtime: FakeRuntime) -> None:
    entry = Entry(MINE)
    assert entry.state == PENDING
    runtime.objects.complete(entry, 5)
    runtime.objects.complete(entry, 6)
    runtime.objects.fail(entry, ValueError())
    assert (entry.state, entry.value) == (READY, 5), "the first outcome counts"
