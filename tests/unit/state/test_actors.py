"""The directory of actors: names, aliases, watchers, restarts, ends."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import pytest

from framework._base.limits import DEAD_BYTES_KEPT, MAX_DEAD_KEPT
from framework._state.actor_records import ALIVE, DEAD, RESTARTING
from framework._state.actors import ActorDirectory
from framework.exceptions import ActorAlreadyExistsError

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16

NODE = b"n" * 28


class Somebody:
    """A connection, say."""


def spec(**options: Any) -> dict[str, Any]:
    return {"class_name": "Counter", "namespace": "here", "max_restarts": 0, **options}


def words(commands: list[tuple[Any, ...]]) -> list[str]:
    return [command[0] for command in commands]


def published(commands: list[tuple[Any, ...]]) -> list[tuple[Any, str, bytes]]:
    """(watcher, state, id) of what is published."""
    return [(command[1], command[2].state, command[3]) for command in commands if command[0] == "publish"]


def alive(directory: ActorDirectory, actor: bytes = A, **options: Any) -> ActorDirectory:
    directory.create(actor, spec(**options), "owner")
    directory.placed(actor, 0, b"w", "unix:w", 7, None)
    return directory


def test_created_then_placed_then_published_to_its_owner() -> None:
    directory = ActorDirectory()
    assert directory.create(A, spec(), "owner") == [("place", A, spec(), 0)]
    commands = directory.placed(A, 0, b"w", "unix:w", 7, None)
    assert published(commands) == [("owner", ALIVE, A)]
    record = directory.records[A]
    assert (record.address, record.pid, record.incarnation) == ("unix:w", 7, 0)


def test_creating_twice_places_once() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(), "owner")
    assert directory.create(A, spec(), "owner") == []


def test_an_announced_actor_has_its_name_and_is_placed_when_its_arguments_are_there() -> None:
    directory = ActorDirectory()
    assert directory.create(A, spec(name="x"), "owner", waiting=True) == []
    assert directory.find("x", "here") is directory.records[A]
    assert directory.watch(A, "friend") is directory.records[A]
    full = spec(name="x", args=[1])
    assert directory.create(A, full, "owner") == [("place", A, full, 0)]
    assert directory.create(A, full, "owner") == []
    commands = directory.placed(A, 0, b"w", "unix:w", 7, None)
    assert sorted(published(commands)) == [("friend", ALIVE, A), ("owner", ALIVE, A)]


def test_killed_while_announced_it_is_not_placed_later() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(), "owner", waiting=True)
    assert published(directory.kill(A, True, "enough")) == [("owner", DEAD, A)]
    assert directory.create(A, spec(), "owner") == []


def test_a_watcher_may_come_before_the_actor() -> None:
    directory = ActorDirectory()
    assert directory.watch(A, "friend") is None
    directory.create(A, spec(), "owner")
    commands = directory.placed(A, 0, b"w", "unix:w", 7, None)
    assert sorted(published(commands)) == [("friend", ALIVE, A), ("owner", ALIVE, A)]
    assert directory.never_born(A) == []


def test_a_watcher_of_nothing_is_told_in_the_end() -> None:
    directory = ActorDirectory()
    directory.watch(A, "friend")
    directory.watch(A, "gone")
    directory.owner_gone("gone")
    assert directory.never_born(A) == ["friend"]
    assert directory.never_born(A) == []


def test_a_name_belongs_to_one_living_actor_of_a_namespace() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(name="x"), "owner")
    with pytest.raises(ActorAlreadyExistsError, match="'x' is taken .* namespace 'here'"):
        directory.create(B, spec(name="x"), "owner")
    assert B not in directory.records
    directory.create(B, spec(name="x", namespace="there"), "owner")
    assert directory.named(None) == [("here", "x"), ("there", "x")]
    assert directory.named("there") == [("there", "x")]
    directory.kill(A, True, "enough")
    assert directory.find("x", "here") is None
    directory.create(C, spec(name="x"), "owner")
    assert directory.find("x", "here") is directory.records[C]


def test_get_if_exists_makes_an_alias_that_hears_what_the_actor_does() -> None:
    directory = alive(ActorDirectory(), name="x", max_restarts=1)
    assert directory.watch(B, "early") is None
    commands = directory.create(B, spec(name="x", get_if_exists=True), "other")
    assert sorted(published(commands)) == [("early", ALIVE, B), ("other", ALIVE, B)]
    assert directory.create(B, spec(name="x", get_if_exists=True), "other") == []
    commands = directory.gone(A, 0, "exited with code 1", False)
    assert sorted(published(commands)) == [
        ("early", RESTARTING, B),
        ("other", RESTARTING, B),
        ("owner", RESTARTING, A),
    ]


def test_an_alias_that_goes_out_of_scope_leaves_the_actor_alone() -> None:
    directory = alive(ActorDirectory(), name="x")
    directory.create(B, spec(name="x", get_if_exists=True), "owner")
    assert directory.out_of_scope(B, "no handle") == []
    assert directory.records[A].state == ALIVE
    assert published(directory.kill(A, True, "enough")) == [("owner", DEAD, A)]


def test_killing_an_alias_kills_the_actor() -> None:
    directory = alive(ActorDirectory(), name="x")
    directory.create(B, spec(name="x", get_if_exists=True), "other")
    commands = directory.kill(B, True, "enough")
    assert ("end", A, 0, True, "enough") in commands
    assert sorted(published(commands)) == [("other", DEAD, B), ("owner", DEAD, A)]


def test_a_constructor_that_fails_is_the_end() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(max_restarts=5), "owner")
    commands = directory.placed(A, 0, b"w", "unix:w", 7, [2, 0])
    assert published(commands) == [("owner", DEAD, A)]
    assert directory.records[A].detail == {
        "text": "its constructor raised an exception",
        "error": [2, 0],
        "pid": 7,
    }


def test_an_end_for_want_of_memory_is_told_as_such() -> None:
    directory = alive(ActorDirectory(), max_restarts=1)
    for incarnation in (0, 1):
        directory.gone(A, incarnation, "the node ran out of memory", False, 5, "memory")
        detail = directory.records[A].detail
        assert detail is not None
        assert (detail["kind"], detail["running"]) == ("memory", 5)
    assert directory.records[A].state == DEAD


def test_restarts_are_counted_and_told_in_the_end() -> None:
    directory = alive(ActorDirectory(), max_restarts=1)
    commands = directory.gone(A, 0, "exited with code 1", False)
    assert words(commands) == ["publish", "place"] and commands[-1][3] == 1
    assert directory.records[A].state == RESTARTING
    directory.placed(A, 1, b"v", "unix:v", 8, None)
    assert directory.gone(A, 0, "an old story", False) == []
    commands = directory.gone(A, 1, "exited with code 2", False)
    assert published(commands) == [("owner", DEAD, A)]
    detail = directory.records[A].detail
    assert detail is not None
    assert detail["text"] == "exited with code 2; it had been restarted 1 time(s) (max_restarts=1)"


def test_minus_one_restarts_without_end() -> None:
    directory = alive(ActorDirectory(), max_restarts=-1)
    for incarnation in range(20):
        commands = directory.gone(A, incarnation, "crash", False)
        assert commands[-1][:2] == ("place", A)
        directory.placed(A, incarnation + 1, b"w", "unix:w", 7, None)
    assert directory.records[A].state == ALIVE


def test_an_intended_end_is_not_restarted() -> None:
    directory = alive(ActorDirectory(), max_restarts=-1)
    assert published(directory.gone(A, 0, "it was asked to end", True)) == [("owner", DEAD, A)]


def test_a_late_start_of_an_old_incarnation_is_ended() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(max_restarts=1), "owner")
    directory.gone(A, 0, "crash", False)
    assert directory.placed(A, 0, b"w", "unix:w", 7, None) == [
        ("end", A, 0, True, "it is not wanted any more")
    ]
    assert directory.records[A].state == RESTARTING
    assert directory.placed(C, 0, b"w", "unix:w", 7, None)[0][:2] == ("end", C)


def test_kill_is_final_even_with_restarts_left() -> None:
    directory = alive(ActorDirectory(), max_restarts=-1)
    commands = directory.kill(A, True, "enough")
    assert commands[0] == ("end", A, 0, True, "enough")
    assert published(commands) == [("owner", DEAD, A)]
    assert directory.gone(A, 0, "killed by signal 9", False) == []
    assert directory.kill(A, True, "again") == []


def test_kill_with_restart_is_a_crash() -> None:
    directory = alive(ActorDirectory(), max_restarts=1)
    assert directory.kill(A, False, "kick") == [("end", A, 0, True, "kick")]
    assert words(directory.gone(A, 0, "killed", False)) == ["publish", "place"]


def test_kill_with_restart_while_it_starts_begins_the_next_attempt() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(max_restarts=1), "owner")
    commands = directory.kill(A, False, "kick")
    assert words(commands) == ["end", "publish", "place"]
    assert (commands[0][2], commands[-1][3]) == (0, 1)
    assert directory.gone(A, 0, "killed", False) == []
    assert published(directory.kill(A, False, "kick")) == [("owner", DEAD, A)]


@pytest.mark.parametrize("news", ["gone", "refused", "node_gone", "placed"])
def test_killed_while_a_node_starts_it_the_next_life_waits_for_the_end_of_this_one(news: str) -> None:
    directory = ActorDirectory()
    directory.create(A, spec(max_restarts=1), "owner")
    directory.placing(A, NODE)
    assert directory.kill(A, False, "kick") == [("end", A, 0, True, "kick")]
    if news == "gone":
        commands = directory.gone(A, 0, "killed", False)
    elif news == "refused":
        commands = directory.refused(A)
    elif news == "node_gone":
        commands = directory.node_gone(NODE, "pulled the plug")
    else:  # it was there before the node heard of it
        assert words(directory.placed(A, 0, b"worker", "tcp:there", 7, None)) == ["publish"]
        commands = directory.gone(A, 0, "killed", False)
    assert words(commands) == ["publish", "place"] and commands[-1][3] == 1
    assert directory.records[A].restarts == 1 and directory.records[A].ending is None


def test_killed_while_it_waits_for_a_place() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(), "owner")
    assert words(directory.kill(A, True, "enough")) == ["end", "unplace", "publish"]


def test_out_of_scope_ends_in_order_and_frees_the_name_at_once() -> None:
    directory = alive(ActorDirectory(), name="x", max_restarts=-1)
    assert directory.out_of_scope(A, "no handle") == [("end", A, 0, False, "no handle")]
    assert directory.find("x", "here") is None
    directory.create(B, spec(name="x"), "owner")
    assert published(directory.gone(A, 0, "left", False)) == [("owner", DEAD, A)]
    assert directory.find("x", "here") is directory.records[B]


def test_a_detached_actor_outlives_its_handles_and_its_owner() -> None:
    directory = alive(ActorDirectory(), name="x", lifetime="detached")
    assert directory.out_of_scope(A, "no handle") == []
    assert directory.owner_gone("owner") == []
    assert directory.find("x", "here") is directory.records[A]


def test_a_detached_actor_whose_argument_failed_ends() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(name="x", lifetime="detached"), "owner", waiting=True)
    assert published(directory.out_of_scope(A, "an argument has failed", force=True)) == [("owner", DEAD, A)]


def test_an_actor_ends_with_its_owner_and_others_hear_of_it() -> None:
    directory = alive(ActorDirectory())
    directory.watch(A, "friend")
    commands = directory.owner_gone("owner")
    assert words(commands) == ["end", "publish"]
    assert published(commands) == [("friend", DEAD, A)]


def test_the_news_of_the_dead_is_kept_for_late_watchers_up_to_a_bound() -> None:
    directory = alive(ActorDirectory())
    directory.kill(A, True, "enough")
    record = directory.watch(A, "late")
    assert record is not None and record.state == DEAD and record.detail is not None
    assert record.watchers == {}
    for number in range(MAX_DEAD_KEPT):
        other = number.to_bytes(16, "big")
        directory.create(other, spec(), "owner")
        directory.kill(other, True, "enough")
    assert A not in directory.records
    assert len(directory.records) == MAX_DEAD_KEPT


def test_dead_records_are_small_and_forget_their_aliases_with_them() -> None:
    directory = alive(ActorDirectory(), name="x", payload=b"x" * 1000)
    directory.create(B, spec(name="x", get_if_exists=True), "owner")
    directory.kill(A, True, "enough")
    assert "payload" not in directory.records[A].spec
    record = directory.record(B)
    assert record is not None and (record.actor_id, record.state, record.aliases) == (A, DEAD, {B})
    directory.out_of_scope(B, "dropped")
    assert directory.record(B) is None and directory.records[A].aliases == set()


def test_nobody_is_kept_alive_by_a_dead_actor() -> None:
    directory = ActorDirectory()
    owner, watcher = Somebody(), Somebody()
    directory.create(A, spec(), owner)
    directory.watch(A, watcher)
    gone = weakref.ref(owner), weakref.ref(watcher)
    directory.owner_gone(owner)
    assert directory.records[A].state == DEAD
    del owner, watcher
    assert (gone[0](), gone[1]()) == (None, None)


def test_a_dead_actor_weighs_the_same_whatever_its_life_was() -> None:
    directory = ActorDirectory()

    def never_lived(actor: bytes) -> None:
        directory.create(actor, spec(class_name="C", job=b"j"), "owner")
        directory.kill(actor, True, "enough")

    def lived(actor: bytes) -> None:
        directory.create(actor, spec(class_name="C", job=b"j", payload=b"x" * 1000), f"owner {actor!r}")
        directory.placing(actor, b"n" * 28)
        directory.placed(actor, 0, bytes(actor), f"unix:{actor!r}", 100_000, None)
        directory.watch(actor, f"watcher {actor!r}")
        directory.gone(actor, 0, f"it crashed {actor!r}", False)

    blocks = []
    for number, live in enumerate((never_lived, never_lived, lived)):
        gc.collect()
        before = sys.getallocatedblocks()
        for index in range(200):
            live(bytes([number]) * 12 + index.to_bytes(4, "big"))
        gc.collect()
        blocks.append(sys.getallocatedblocks() - before)
    assert len(directory.records) == 600 and not directory.records.living
    assert blocks[1] < 200 * 2.5 and blocks[2] < 200 * 2.5, "an id and a piece of bytes"


def test_long_errors_of_the_dead_are_kept_up_to_a_bound() -> None:
    directory = ActorDirectory()
    size = DEAD_BYTES_KEPT // 16
    for number in range(40):
        other = number.to_bytes(16, "big")
        directory.create(other, spec(), "owner")
        directory.placed(other, 0, b"", "", 8, [2, 1, bytes(size), "Error", "text"])
    assert len(directory.records) == 15
    detail = directory.records[other].detail
    assert detail is not None and detail["error"] == [2, 1, bytes(size), "Error", "text"]


# ---- supervised actors -------------------------------------------------------------------------------------


def test_a_supervised_actor_waits_for_its_supervisor() -> None:
    directory = alive(ActorDirectory(), supervised=True)
    commands = directory.gone(A, 0, "it crashed", False)
    assert published(commands) == [("owner", RESTARTING, A)]
    assert words(commands) == ["publish"], "it is not placed before the supervisor says so"
    assert [command[0] for command in directory.restart(A)] == ["place"]
    assert directory.restart(A) == [], "a repetition changes nothing"
    assert published(directory.placed(A, 1, b"w", "unix:w", 8, None)) == [("owner", ALIVE, A)]


@pytest.mark.parametrize("intended", [True, False])
def test_its_supervisor_learns_whether_the_end_was_orderly(intended: bool) -> None:
    directory = alive(ActorDirectory(), supervised=True)
    directory.gone(A, 0, "it left", intended)
    record = directory.records[A]
    assert (record.state, record.detail and record.detail["orderly"]) == (RESTARTING, intended)


def test_kill_by_others_leaves_the_verdict_to_the_supervisor() -> None:
    directory = alive(ActorDirectory(), supervised=True)
    assert words(directory.kill(A, True, "kill()")) == ["end"]
    directory.gone(A, 0, "killed", False)
    assert directory.records[A].held
    assert directory.kill(A, True, "kill()") == [], "there is nothing to kill"


def test_a_constructor_that_fails_in_a_restart_is_one_more_death() -> None:
    directory = alive(ActorDirectory(), supervised=True)
    directory.gone(A, 0, "it crashed", False)
    directory.restart(A)
    commands = directory.placed(A, 1, b"w", "", 8, [2, "error"])
    assert published(commands) == [("owner", RESTARTING, A)]
    assert directory.records[A].held


def test_a_constructor_that_fails_at_first_is_the_end_also_of_a_supervised_actor() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(supervised=True), "owner")
    directory.placed(A, 0, b"w", "", 8, [2, "error"])
    assert directory.records[A].state == DEAD


@pytest.mark.parametrize("held", [True, False])
def test_the_end_of_the_supervisor_is_final(held: bool) -> None:
    directory = alive(ActorDirectory(), supervised=True)
    if held:
        directory.gone(A, 0, "it crashed", False)
    directory.owner_gone("owner")
    assert directory.records[A].state == DEAD
    assert directory.restart(A) == []


# ---- saved state -------------------------------------------------------------------------------------------


def test_a_saved_state_comes_with_the_next_incarnation() -> None:
    directory = alive(ActorDirectory(), max_restarts=1)
    assert directory.save(A, 0, [0, b"state"], None) == []
    *_, (word, actor, placed, incarnation) = directory.gone(A, 0, "it crashed", False)
    assert (word, actor, placed["saved"], incarnation) == ("place", A, [[0, b"state"]], 1)


def test_a_stored_state_is_freed_when_replaced_and_at_the_end() -> None:
    directory = alive(ActorDirectory())
    assert directory.save(A, 0, [3], b"first") == []
    assert directory.save(A, 0, [3], b"second") == [("unstore", A, b"first")]
    assert ("unstore", A, b"second") in directory.kill(A, True, "kill()")


def test_an_old_incarnation_cannot_save() -> None:
    directory = alive(ActorDirectory(), max_restarts=1)
    directory.gone(A, 0, "it crashed", False)
    with pytest.raises(ValueError, match="is over"):
        directory.save(A, 0, 1, None)


def test_an_actor_with_a_shutdown_hook_is_asked_first_when_its_owner_ends() -> None:
    directory = alive(ActorDirectory(), shutdown_hook=True)
    commands = directory.owner_gone("owner")
    assert [command[0] for command in commands] == ["end", "end_later"]
    assert commands[0][3] is False, "not by force"
