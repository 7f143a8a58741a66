"""The directory of actors in a cluster: nodes that die, come back and are drained; restarts of the head."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from framework._state.actor_records import ALIVE, DEAD, PENDING, RESTARTING
from framework._state.actors import ActorDirectory
from framework.exceptions import ActorAlreadyExistsError

A, B = b"a" * 16, b"b" * 16
HERE, THERE = b"h" * 28, b"t" * 28


def spec(**options: Any) -> dict[str, Any]:
    return {"class_name": "Counter", "namespace": "here", "max_restarts": 0, **options}


def words(commands: list[tuple[Any, ...]]) -> list[str]:
    return [command[0] for command in commands if command[0] != "publish"]


def alive(directory: ActorDirectory, actor: bytes = A, node: bytes = HERE, **options: Any) -> ActorDirectory:
    directory.create(actor, spec(**options), b"owner", watcher="its connection")
    directory.placing(actor, node)
    directory.placed(actor, 0, b"w", "tcp:w", 7, None)
    return directory


def restarted(directory: ActorDirectory) -> tuple[ActorDirectory, list[tuple[Any, ...]]]:
    """As a head finds it that has been killed and started again."""
    kept = []
    for actor, record in directory.records.items():
        facts = directory.export(actor)
        kept.append(
            (actor, msgpack.unpackb(msgpack.packb(facts)), msgpack.unpackb(msgpack.packb(record.spec)))
        )
    fresh = ActorDirectory()
    return fresh, fresh.restore(kept)


def test_its_owner_is_told_by_its_connection_and_known_by_its_id() -> None:
    directory = alive(ActorDirectory())
    assert directory.records[A].owner == b"owner" and list(directory.records[A].watchers) == [
        "its connection"
    ]
    directory.watcher_gone("its connection")
    assert directory.records[A].state == ALIVE and not directory.records[A].watchers
    assert words(directory.owner_gone(b"owner")) == ["end"]
    assert directory.records[A].state == DEAD


def test_a_dead_node_takes_its_actors_along_or_they_start_elsewhere() -> None:
    directory = alive(alive(ActorDirectory(), max_restarts=1), B)
    commands = directory.node_gone(HERE, "its node x died: cable")
    assert words(commands) == ["place"]
    record = directory.records[A]
    assert (record.state, record.incarnation, record.node) == (RESTARTING, 1, b"")
    assert directory.records[B].state == DEAD
    detail = directory.records[B].detail
    assert detail is not None and detail["text"] == "its node x died: cable" and detail["kind"] == "node"
    assert directory.node_gone(HERE, "again") == []


def test_one_that_was_being_started_there_is_started_elsewhere_at_no_cost() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(), b"owner")
    directory.placing(A, HERE)
    assert words(directory.node_gone(HERE, "dead")) == ["place"]
    record = directory.records[A]
    assert (record.state, record.incarnation, record.restarts, record.node) == (PENDING, 0, 0, b"")


def test_a_supervised_one_waits_for_its_supervisor() -> None:
    directory = alive(ActorDirectory(), supervised=True)
    assert words(directory.node_gone(HERE, "dead")) == []
    assert directory.records[A].held
    assert words(directory.restart(A)) == ["place"]


def test_what_a_node_reports_is_believed() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(), b"owner", watcher="w")
    directory.placing(A, HERE)
    commands = directory.reported(HERE, [[A, 0, b"w", "tcp:w", 7]])
    assert [c[0] for c in commands] == ["publish"] and directory.records[A].state == ALIVE
    assert directory.reported(HERE, [[A, 0, b"w", "tcp:w", 7]]) == []


def test_what_it_does_not_report_is_gone() -> None:
    directory = alive(alive(ActorDirectory(), max_restarts=1), B)
    assert words(directory.reported(HERE, [])) == ["place"]
    assert directory.records[A].state == RESTARTING and directory.records[B].state == DEAD
    directory.placing(A, HERE)  # ... where it never arrives
    assert words(directory.reported(HERE, [])) == ["place"]
    assert directory.records[A].incarnation == 1
    directory.placing(A, HERE)
    assert directory.reported(HERE, [[A, 1, b"", "", 0]]) == []  # it has, and is being started


def test_what_it_should_not_have_is_ended_there() -> None:
    directory = alive(ActorDirectory(), max_restarts=1)
    unknown = directory.reported(HERE, [[A, 0, b"w", "tcp:w", 7], [B, 0, b"v", "tcp:v", 8]])
    assert unknown == [("end_at", HERE, B, 0, "it is not wanted any more")]
    directory.node_gone(HERE, "dead")
    directory.placing(A, THERE)
    stale = directory.reported(HERE, [[A, 0, b"w", "tcp:w", 7]])
    assert stale == [("end_at", HERE, A, 0, "it is not wanted any more")]
    twice = directory.reported(HERE, [[A, 1, b"w", "tcp:w", 7]])
    assert [c[0] for c in twice] == ["end_at"] and directory.records[A].node == THERE


def test_a_kill_reaches_the_node_where_it_was_being_started() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(max_restarts=1), b"owner")
    directory.placing(A, HERE)
    assert directory.kill(A, False, "crash it") == [("end", A, 0, True, "crash it")]
    assert directory.records[A].node == HERE


@pytest.mark.parametrize("for_good", [True, False])
def test_an_end_that_its_node_may_not_have_heard_of_is_told_again(for_good: bool) -> None:
    directory = alive(ActorDirectory(), max_restarts=1)
    directory.kill(A, for_good, "no handle is left", force=False)
    fresh, _ = restarted(directory)
    end = ("end", A, 0, False, "no handle is left")
    assert fresh.reported(HERE, [[A, 0, b"w", "tcp:w", 7]]) == [end]
    fresh.gone(A, 0, "it has ended", not for_good)
    assert fresh.reported(HERE, []) == []


def test_a_drained_node_gives_away_what_can_be_started_again() -> None:
    directory = alive(alive(ActorDirectory(), max_restarts=1), B)
    assert directory.move(HERE, "drained") == [("end", A, 0, False, "drained")]
    commands = directory.gone(A, 0, "drained", True)
    assert words(commands) == ["place"]
    record = directory.records[A]
    assert (record.state, record.restarts, record.incarnation) == (RESTARTING, 0, 1)
    assert directory.on_node(HERE) == [directory.records[B]]
    directory.placing(A, HERE)  # it was on its way
    assert words(directory.move(HERE, "drained")) == ["end_at", "place"]


def test_refused_it_is_placed_again() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(), b"owner")
    directory.placing(A, HERE)
    assert words(directory.refused(A)) == ["place"] and directory.records[A].node == b""
    assert directory.refused(B) == []


def test_a_stored_state_is_freed_where_it_is() -> None:
    directory = alive(ActorDirectory())
    directory.save(A, 0, [3, b"o" * 28, "tcp:x", 1000, [], THERE], b"o" * 28)
    commands = directory.kill(A, True, "over")
    assert ("unstore_at", THERE, b"o" * 28) in commands


# ---- restarts of the head --------------------------------------------------------------------------------


def test_names_aliases_and_places_outlive_the_head() -> None:
    directory = alive(ActorDirectory(), name="n", lifetime="detached", max_restarts=2)
    directory.create(B, spec(name="n", get_if_exists=True), b"other")
    fresh, commands = restarted(directory)
    assert commands == []
    record = fresh.find("n", "here")
    assert record is not None and record is fresh.record(B)
    assert (record.state, record.address, record.node) == (ALIVE, "tcp:w", HERE)
    with pytest.raises(ActorAlreadyExistsError):
        fresh.create(b"c" * 16, spec(name="n"), b"other")
    assert fresh.create(A, spec(name="n"), b"owner") == []  # a request that is made again
    assert fresh.owners() == []  # it is detached


def test_what_had_no_place_gets_one() -> None:
    directory = ActorDirectory()
    directory.create(A, spec(args=[1]), b"owner")
    directory.create(B, spec(), b"owner")
    directory.placing(B, HERE)
    directory.create(b"w" * 16, spec(), b"owner", waiting=True)
    fresh, commands = restarted(directory)
    assert [(c[0], c[1], c[2]["args"]) for c in commands] == [("place", A, [1])]
    assert fresh.owners() == [b"owner"]


def test_the_dead_stay_dead() -> None:
    directory = alive(ActorDirectory(), name="n")
    directory.kill(A, True, "why not")
    fresh, commands = restarted(directory)
    assert commands == [] and fresh.find("n", "here") is None
    record = fresh.record(A)
    assert record is not None and record.detail is not None and record.detail["text"] == "why not"


class Life(RuleBasedStateMachine):
    """Whatever happens: what is written down at each step is enough to go on from; no actor is lost between
    nodes, or on two."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = ActorDirectory()
        self.directory.touched = {}
        self.facts: dict[bytes, bytes] = {}
        self.specs: dict[bytes, bytes] = {}
        self.nodes: dict[bytes, dict[bytes, int]] = {HERE: {}, THERE: {}}  #: what really is there
        self.homeless: dict[bytes, int] = {}  #: that were to be placed, and were not

    actors = st.sampled_from([A, B])
    places = st.sampled_from([HERE, THERE])

    def run(self, commands: list[tuple[Any, ...]]) -> None:
        for command in commands:
            if command[0] == "end":
                record = self.directory.records[command[1]]
                if record.node in self.nodes and self.nodes[record.node].get(command[1]) == command[2]:
                    self.ended(record.node, command[1], command[2], not command[3])
            elif command[0] == "place":
                self.homeless[command[1]] = command[3]
            elif command[0] == "unplace":
                for actors in self.nodes.values():
                    actors.pop(command[1], None)
            elif command[0] == "end_at" and command[3] in (-1, self.nodes[command[1]].get(command[2])):
                self.nodes[command[1]].pop(command[2], None)
        self.keep()

    def ended(self, node: bytes, actor: bytes, incarnation: int, orderly: bool) -> None:
        self.nodes[node].pop(actor, None)
        self.run(self.directory.gone(actor, incarnation, "it ended", orderly))

    def keep(self) -> None:
        touched, self.directory.touched = self.directory.touched or {}, {}
        for actor, whole in touched.items():
            facts = self.directory.export(actor)
            assert facts is not None
            self.facts[actor] = msgpack.packb(facts)
            if whole:
                self.specs[actor] = msgpack.packb(self.directory.records[actor].spec)

    @rule(actor=actors, restarts=st.sampled_from([0, 1, -1]), named=st.booleans(), detached=st.booleans())
    def create(self, actor: bytes, restarts: int, named: bool, detached: bool) -> None:
        options: dict[str, Any] = {"max_restarts": restarts, "lifetime": "detached" if detached else None}
        if named:
            options["name"] = "n"
        try:
            self.run(self.directory.create(actor, spec(**options), b"owner"))
        except ActorAlreadyExistsError:
            pass

    @rule(actor=actors, node=places)
    def place(self, actor: bytes, node: bytes) -> None:
        record = self.directory.records.get(actor)
        if record is not None and record.state != DEAD and self.homeless.get(actor) == record.incarnation:
            del self.homeless[actor]
            self.directory.placing(actor, node)
            self.nodes[node][actor] = record.incarnation
            self.keep()

    @rule(actor=actors, node=places, works=st.booleans())
    def up(self, actor: bytes, node: bytes, works: bool) -> None:
        if actor in self.nodes[node]:
            error = None if works else [2, "no"]
            incarnation = self.nodes[node][actor]
            self.run(self.directory.placed(actor, incarnation, b"w", "tcp:w", 1, error))
            if not works:
                self.nodes[node].pop(actor, None)

    @rule(actor=actors, node=places, told=st.booleans())
    def crash(self, actor: bytes, node: bytes, told: bool) -> None:
        record = self.directory.records.get(actor)
        if actor in self.nodes[node] and record is not None and record.state == ALIVE:
            incarnation = self.nodes[node].pop(actor)
            if told:
                self.run(self.directory.gone(actor, incarnation, "crash", False))
            else:
                self.come_back(node)

    @rule(actor=actors, for_good=st.booleans(), force=st.booleans())
    def kill(self, actor: bytes, for_good: bool, force: bool) -> None:
        self.run(self.directory.kill(actor, for_good, "killed", force=force))

    @rule(node=places)
    def lose_node(self, node: bytes) -> None:
        self.nodes[node] = {}
        self.run(self.directory.node_gone(node, "its node died"))

    @rule(node=places)
    def come_back(self, node: bytes) -> None:
        found = [[actor, n, b"", "", 0] for actor, n in self.nodes[node].items()]
        self.run(self.directory.reported(node, found))

    @rule(node=places)
    def drain(self, node: bytes) -> None:
        self.run(self.directory.move(node, "drained"))

    @rule()
    def owner_ends(self) -> None:
        self.run(self.directory.owner_gone(b"owner"))

    @rule()
    def restart(self) -> None:
        before = self.directory
        self.directory = ActorDirectory()
        self.homeless.clear()
        self.run(
            self.directory.restore(
                (actor, msgpack.unpackb(facts), msgpack.unpackb(self.specs[actor]))
                for actor, facts in self.facts.items()
            )
        )
        self.directory.touched = {}
        assert list(self.directory.records.living) == list(before.records.living)
        assert self.directory.records.keys() == before.records.keys()
        assert self.directory._names == before._names
        for actor, record in self.directory.records.items():
            assert self.directory.export(actor) == before.export(actor)
            assert record.spec == before.records[actor].spec

    @invariant()
    def everybody_is_somewhere(self) -> None:
        for actor, record in self.directory.records.items():
            where = [node for node, actors in self.nodes.items() if actor in actors]
            assert len(where) <= 1, "on two nodes"
            if record.state == ALIVE:
                assert where == [record.node] and self.nodes[record.node][actor] == record.incarnation
            elif record.state != DEAD:
                waits = self.homeless.get(actor) == record.incarnation and not record.node
                assert waits or where == [record.node], "nowhere"
            if record.state == DEAD:
                assert not where, "a dead actor goes on"


Life.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
test_life = Life.TestCase
