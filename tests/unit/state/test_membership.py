"""Membership: joins, silence, lost connections, fencing, drains, restarts of the head; deltas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from framework._base import limits
from framework._state.membership import ROW, Membership, merge
from framework.exceptions import NodeFencedError

A, B = b"a" * 28, b"b" * 28


def info(node_id: bytes = A, cpus: int = 4, **more: Any) -> dict[str, Any]:
    return {"node_id": node_id, "host": "127.0.0.1", "port": 1, "total": {"CPU": cpus}, "pid": 5, **more}


def joined(*nodes: bytes) -> Membership:
    members = Membership()
    for node in nodes:
        members.join(info(node), node.decode(), 0.0)
    members.delta()
    return members


def load(members: Membership, now: float, node: bytes = A, cpus: int = 4) -> bool:
    return members.load(node, node.decode(), {"CPU": cpus}, [], None, 0, now)


def test_a_node_joins_and_its_row_is_told_in_full() -> None:
    members = Membership()
    members.join(info(labels={"zone": "a"}), "peer", 0.0)
    (row,) = members.delta()
    assert row.keys() == ROW.keys()
    assert (row["alive"], row["labels"], row["available"]) == (True, {"zone": "a"}, {"CPU": 4})
    assert members.delta() == [] and members.rows() == [row]


@pytest.mark.parametrize("node_id", [None, b"", "text"])
def test_a_row_without_an_id_is_refused(node_id: Any) -> None:
    with pytest.raises(ValueError, match="id"):
        Membership().join({"node_id": node_id}, "peer", 0.0)


def test_a_load_is_told_in_part_and_only_when_it_changes() -> None:
    members = joined(A)
    assert load(members, 1.0) and not members.changed
    assert load(members, 1.0, cpus=1)
    assert members.delta() == [{"node_id": A, "available": {"CPU": 1}, "total": {"CPU": 4}}]


def test_of_whom_a_load_counts() -> None:
    members = joined(A)
    assert not members.load(B, "peer", {}, [], None, 0, 1.0)
    assert not members.load(A, "an older connection", {}, [], None, 0, 1.0)


def test_what_others_have_heard_to_be_dead_is_dead() -> None:
    """Also for a head that has lost its own verdict, with what its disk did not take."""
    members, unknown = joined(A, B), b"u" * 28
    gone = [(A, "silence"), (unknown, "silence")]
    assert members.remembered(gone) == [("dead", A, "silence")]
    assert members.remembered(gone) == []
    assert [member.node_id for member in members.alive()] == [B]
    for node_id in (A, unknown):
        with pytest.raises(NodeFencedError):
            members.join(info(node_id), "peer", 1.0)


def test_silence_is_death_and_heartbeats_prevent_it() -> None:
    members = joined(A, B)
    now = 0.0
    while now < limits.NODE_SILENCE * 2:
        now += 0.5
        load(members, now, B)
        dead = members.verdicts(now)
        if dead:
            break
    assert [(word, node) for word, node, _ in dead] == [("dead", A)] and now == limits.NODE_SILENCE
    assert "not heard" in dead[0][2]
    assert [row["alive"] for row in members.delta() if row["node_id"] == A] == [False]
    assert [member.node_id for member in members.alive()] == [B]
    assert len(members.rows(dead=True)) == 2


def test_a_lost_connection_may_come_back_for_a_moment() -> None:
    members = joined(A)
    members.lost(A, "a", 1.0)
    assert members.verdicts(1.0 + limits.NODE_BACK / 2) == []
    members.join(info(), "new", 1.9)
    members.lost(A, "a", 2.0)  # late news of the old one
    assert members.verdicts(2.5) == []
    members.lost(A, "new", 2.5)
    assert [node for _, node, _ in members.verdicts(2.5 + limits.NODE_BACK)] == [A]
    assert members.verdicts(9.0) == []


def test_who_was_declared_dead_stays_out() -> None:
    members = joined(A)
    assert members.leave(A, "it was stopped") == [("dead", A, "it was stopped")]
    assert members.leave(A, "again") == []
    with pytest.raises(NodeFencedError, match="it was stopped"):
        members.join(info(), "new", 1.0)
    assert not load(members, 1.0)


def test_when_this_process_was_held_up_nobody_dies_for_it() -> None:
    members = joined(A)
    members.verdicts(0.5)
    assert members.verdicts(60.0) == []
    assert load(members, 60.0)
    assert members.verdicts(60.5) == []


def test_held_up_right_after_a_restart() -> None:
    """Killed, started again, and stopped for longer than the grace before it has looked once."""
    before, members = joined(A), Membership()
    members.restore([r for r in [before.record(A)] if r], before.fenced, 100.0)
    woken = 101.0 + limits.NODE_BACK_AFTER_RESTART
    assert members.held_up(woken)
    assert members.verdicts(woken) == []
    assert members.held_up(woken), "those who knock have not been heard yet"
    members.verdicts(woken + 0.9)
    assert not members.held_up(woken + 1.0)
    members.join(info(), "new", woken + 1.0)


def test_a_drain_is_told_and_outlives_a_new_connection() -> None:
    members = joined(A)
    assert members.drain(A, "maintenance") and not members.drain(A, "maintenance")
    assert not members.drain(B, "who")
    assert members.delta()[0]["draining"] is True
    members.join(info(), "new", 1.0)
    assert members.rows()[0]["draining"] is True


def test_restored_nodes_have_a_grace() -> None:
    before = joined(A, B)
    before.leave(B, "stopped")
    members = Membership()
    members.restore([r for n in (A, B) if (r := before.record(n))], before.fenced, 100.0)
    assert [m.node_id for m in members.alive()] == [A]
    with pytest.raises(NodeFencedError, match="stopped"):
        members.join(info(B), "b", 100.0)
    now, dead = 100.0, []
    while not dead and now < 120:
        now += 0.25
        dead = members.verdicts(now)
    assert dead[0][1] == A and now == 100.0 + limits.NODE_BACK_AFTER_RESTART


def test_dead_nodes_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NODES_DEAD_KEPT", 2)
    monkeypatch.setattr(limits, "FENCED_KEPT", 3)
    members = Membership()
    for number in range(5):
        members.join(info(bytes([number])), number, 0.0)
        members.leave(bytes([number]), "over")
    assert list(members.members) == [b"\3", b"\4"] and list(members.fenced) == [b"\2", b"\3", b"\4"]
    assert {"node_id": b"\0", "alive": False} in members.delta()


class World(RuleBasedStateMachine):
    """Whatever happens: a verdict is final and given once, and who applies the deltas knows what the head
    knows."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Membership()
        self.now = 0.0
        self.peers = 0
        self.dead: set[bytes] = set()
        self.known: dict[bytes, dict[str, Any]] = {}
        self.heard: dict[bytes, float] = {}

    nodes = st.sampled_from([bytes([n]) for n in range(4)])

    @rule(node=nodes, cpus=st.integers(1, 3))
    def join(self, node: bytes, cpus: int) -> None:
        self.peers += 1
        try:
            self.members.join(info(node, cpus), self.peers, self.now)
        except NodeFencedError:
            assert node in self.dead
        else:
            assert node not in self.dead
            self.heard[node] = self.now

    @rule(node=nodes, cpus=st.integers(0, 3))
    def load(self, node: bytes, cpus: int) -> None:
        member = self.members.members.get(node)
        peer = member.peer if member is not None and member.peer is not None else -1
        if self.members.load(node, peer, {"CPU": cpus}, [], None, 0, self.now):
            self.heard[node] = self.now

    @rule(node=nodes)
    def lose(self, node: bytes) -> None:
        member = self.members.members.get(node)
        if member is not None and member.peer is not None:
            self.members.lost(node, member.peer, self.now)

    @rule(node=nodes)
    def leave(self, node: bytes) -> None:
        self.judge(self.members.leave(node, "left"))

    @rule(node=nodes)
    def drain(self, node: bytes) -> None:
        self.members.drain(node, "why")

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.judge(self.members.verdicts(self.now))
        for member in self.members.alive():
            assert self.now - self.heard[member.node_id] < limits.NODE_SILENCE + 1.0

    def judge(self, commands: list[tuple[Any, ...]]) -> None:
        for word, node, reason in commands:
            assert word == "dead" and node not in self.dead and reason
            self.dead.add(node)

    @rule()
    def distribute(self) -> None:
        merge(self.known, self.members.delta())
        assert list(self.known.values()) == sorted(
            self.members.rows(), key=lambda row: list(self.known).index(row["node_id"])
        )

    @rule()
    def restart(self) -> None:
        records = [self.members.record(node) for node in list(self.members.members)]
        members = Membership()
        members.restore([r for r in records if r is not None], self.members.fenced, self.now)
        self.members = members
        self.known = {row["node_id"]: row for row in members.rows()}
        for node in self.heard:
            self.heard[node] = max(self.heard[node], self.now + limits.NODE_BACK_AFTER_RESTART - 4)

    @invariant()
    def the_dead_are_fenced(self) -> None:
        assert self.dead == set(self.members.fenced)
        assert not self.dead & {member.node_id for member in self.members.alive()}


World.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_world = World.TestCase
