"""Custody: what a process holds for others, registers with others, and lets go of, in the right order."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from framework._runtime.waiters import ThreadWaiter, register, register_all
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


def stored(name: bytes, *refs: tuple[bytes, str]) -> list[Any]:
    return [3, name, "unix:me", 10, [[i, o] for i, o in refs], b""]


def test_a_result_that_is_made_again_brings_its_references(runtime: FakeRuntime) -> None:
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


def test_references_at_hand_are_those_of_the_value_that_is_read(runtime: FakeRuntime) -> None:
    """A thread reads a value while another takes its place, with other references in it."""
    ref = runtime.new(MINE, stored(MINE, (THEIRS, "unix:owner")))
    entry, objects = ref._entry, runtime.objects
    entry.contained = [runtime.make_ref(THEIRS, "unix:owner")]
    old = entry.value
    assert objects.contained_in(entry, old) is entry.contained
    assert [ref._entry.id for ref in entry.contained] == [THEIRS]
    new = stored(MINE, (OTHER, "unix:owner"))
    seen: list[Any] = []

    class Watched(Entry):
        """An entry that is looked at after each step of whoever changes it."""

        __slots__ = ()

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            for wire, object_id in ((old, THEIRS), (new, OTHER)):
                found = objects.contained_in(self, wire)
                if found is not None:
                    seen.append(object_id)
                    assert [ref._entry.id for ref in found] == [object_id]

    entry.__class__ = Watched
    objects.replace(entry, new)
    assert entry.value == new and OTHER in seen
    entry.__class__ = Entry
    assert objects.contained_in(entry, old) is None
    entry.contained = None
    assert objects.contained_in(entry, new) is None


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


# ---- connections that are lost -----------------------------------------------------------------------


def borrower(runtime: FakeRuntime, name: str) -> Any:
    """The end here of a connection that a process has made which borrows."""
    connection: Any = FakeConnection(name)
    runtime.present.add(name)
    return connection


def leave(runtime: FakeRuntime, connection: Any) -> None:
    """It is lost, and its process lives, for all that is known."""
    runtime.present.discard(connection.name)
    connection.closed = True
    runtime.objects.connection_lost(connection)


def test_an_owner_keeps_the_counts_of_a_borrower_it_has_lost_sight_of(runtime: FakeRuntime) -> None:
    handlers = runtime.objects.handlers
    mine, other = runtime.new(MINE, 1), runtime.new(OTHER, 2)
    first = borrower(runtime, "tcp:b")
    handlers[m.BORROW](first, [m.BORROW, 1, [MINE, OTHER]])
    del mine, other
    runtime.turn()
    leave(runtime, first)
    assert runtime.freed == []
    assert "tcp:b" in runtime.connections, "it is looked for"
    second = borrower(runtime, "tcp:b")
    handlers[m.BORROW_AGAIN](second, [m.BORROW_AGAIN, 1, [OTHER, THEIRS], []])
    assert second.replies == {1: [THEIRS]}
    assert runtime.freed == [MINE], "it had let go of it, and that had not arrived"
    handlers[m.UNBORROW](second, [m.UNBORROW, [OTHER]])
    assert runtime.freed == [MINE, OTHER]


def test_a_borrower_that_cannot_be_found_again_has_ended(runtime: FakeRuntime) -> None:
    first = borrower(runtime, "tcp:b")
    mine = runtime.new(MINE, 1)
    runtime.objects.handlers[m.BORROW](first, [m.BORROW, 1, [MINE]])
    del mine
    runtime.turn()
    leave(runtime, first)
    runtime.over.add("tcp:b")
    runtime.lose("tcp:b")
    assert runtime.freed == [MINE]


def test_one_of_two_connections_of_a_borrower_is_lost(runtime: FakeRuntime) -> None:
    first = borrower(runtime, "tcp:b")
    mine = runtime.new(MINE, 1)
    runtime.objects.handlers[m.BORROW](first, [m.BORROW, 1, [MINE]])
    del mine
    runtime.turn()
    runtime.over.add("tcp:b")
    runtime.to("tcp:b")
    runtime.lose("tcp:b")
    assert runtime.freed == [], "it has one to us: it lives"
    runtime.present.clear()
    runtime.objects.process_lost(first)
    assert runtime.freed == [MINE]


def test_a_borrower_says_again_what_it_borrows(runtime: FakeRuntime) -> None:
    runtime.streams.read_from.return_value = [[OTHER, 3, 5]]
    kept, dropped = runtime.make_ref(THEIRS, "tcp:o"), runtime.make_ref(OTHER, "tcp:o")
    runtime.turn()
    before = runtime.to("tcp:o")
    ((_, answer),) = before.calls
    answer.set_result([])
    del dropped
    runtime.turn()
    runtime.lose("tcp:o")
    now = runtime.to("tcp:o")
    ((fields, answer),) = now.calls
    assert fields == (m.BORROW_AGAIN, [THEIRS], [[OTHER, 3, 5]])
    assert not kept._entry.state
    answer.set_result([THEIRS])
    assert isinstance(runtime.objects.error(kept._entry), ObjectLostError)


def test_what_had_no_answer_is_asked_again(runtime: FakeRuntime) -> None:
    worker = FakeConnection("worker")
    ref = runtime.make_ref(THEIRS, "tcp:o")
    runtime.objects.release_when_registered(worker, 7, 1)
    runtime.turn()
    runtime.objects.need(ref._entry)
    runtime.lose("tcp:o")
    now = runtime.to("tcp:o")
    asked = [fields for fields, _ in now.calls]
    assert asked == [
        (m.BORROW_AGAIN, [THEIRS], runtime.streams.read_from.return_value),
        (m.BORROW, [THEIRS]),
        (m.FETCH, THEIRS, True),
    ], "in this order"
    assert worker.casts == [], "its owner does not know of us"
    now.calls[1][1].set_result([])
    assert worker.casts == [(m.RELEASE_HELD, 7, 1)]
    now.calls[2][1].set_result(5)
    assert (ref._entry.state, ref._entry.value) == (READY, 5)


def test_who_asks_for_a_lost_object_asks_for_its_value_afterwards(runtime: FakeRuntime) -> None:
    ref = runtime.make_ref(THEIRS, "tcp:o")
    runtime.objects.ask(ref._entry, m.RECOVER, b"s", b"n")
    runtime.lose("tcp:o")
    assert [fields for fields, _ in runtime.to("tcp:o").calls] == [(m.FETCH, THEIRS, True)], (
        "it may have been made again by now: nobody needs to do so twice"
    )


def test_an_owner_that_has_ended_while_it_was_out_of_sight(runtime: FakeRuntime) -> None:
    ref = runtime.make_ref(THEIRS, "tcp:o")
    runtime.turn()
    runtime.objects.need(ref._entry)
    runtime.lose("tcp:o")
    assert not ref._entry.state
    runtime.over.add("tcp:o")
    runtime.lose("tcp:o")
    assert isinstance(runtime.objects.error(ref._entry), OwnerDiedError)
    assert runtime.objects.all_handed_over()


def test_a_release_that_waits_for_a_registration_waits_over_a_lost_connection(runtime: FakeRuntime) -> None:
    """`THEIRS` is let go of while `OTHER`, of another owner, is being registered."""
    one = runtime.make_ref(THEIRS, "tcp:o")
    runtime.turn()
    runtime.to("tcp:o").calls[0][1].set_result([])
    two = runtime.make_ref(OTHER, "tcp:p")
    runtime.turn()
    del one
    runtime.turn()
    runtime.lose("tcp:o")
    ((fields, _),) = runtime.to("tcp:o").calls
    assert fields[1] == [THEIRS], "it is ours until the other one is"
    runtime.to("tcp:p").calls[0][1].set_result([])
    assert runtime.to("tcp:o").casts == [(m.UNBORROW, [THEIRS])]
    del two


def test_references_in_what_was_sent_outlive_the_connection_for_a_while(runtime: FakeRuntime) -> None:
    receiver = borrower(runtime, "tcp:r")
    ended = borrower(runtime, "tcp:e")
    runtime.objects.hold(receiver, 7, 1, [runtime.new(MINE, 1)])
    runtime.objects.hold(ended, 7, 1, [runtime.new(OTHER, 1)])
    leave(runtime, receiver)
    leave(runtime, ended)
    runtime.turn()
    assert (local(runtime, MINE), local(runtime, OTHER)) == (1, 1)
    assert not runtime.objects.all_handed_over()
    runtime.objects.process_lost(ended)
    runtime.turn()
    assert (local(runtime, MINE), local(runtime, OTHER)) == (1, 0)
    function, args = runtime.timers[0]
    function(*args)
    runtime.turn()
    assert local(runtime, MINE) == 0
    assert runtime.objects.all_handed_over()


def test_what_is_used_here_of_a_caller_that_is_out_of_sight_is_registered_at_once(
    runtime: FakeRuntime,
) -> None:
    runtime.task_runs = True
    used = runtime.make_ref(THEIRS, "tcp:o")
    runtime.turn()
    assert not runtime.connections
    runtime.objects.register_used()
    assert [fields for fields, _ in runtime.to("tcp:o").calls] == [(m.BORROW, [THEIRS])]
    del used


def test_many_that_are_completed_together(runtime: FakeRuntime) -> None:
    """As one by one: threads that wait for many, other waiters, those that are done already."""
    entries = [Entry(number.to_bytes(28, "little")) for number in range(8)]
    objects = runtime.objects
    mine, other = ThreadWaiter(entries[:6], 6, True), ThreadWaiter(entries[4:6], 2, True)
    register_all(entries[:4], mine)
    register_all(entries[4:5], other)
    register_all(entries[4:6], mine)  # beside another one
    called: list[Entry] = []
    register(entries[6], called.append)
    objects.complete(entries[7], "before")
    objects.complete_all(entries[:5], list(range(5)))
    assert not mine.wait(0) and not other.wait(0)
    objects.complete_all(entries[5:], ["five", "six", "seven"])
    assert mine.wait(0)
    assert other._remaining == {entries[5]}, "it has not registered there"
    assert called == [entries[6]]
    assert [entry.value for entry in entries] == [0, 1, 2, 3, 4, "five", "six", "before"]
    assert not any(entry.waiters for entry in entries) and all(entry.done for entry in entries)
