"""The head's placement groups."""

from __future__ import annotations

from typing import Any

import pytest

from framework._base.resources import UNIT
from framework._state.placement import CREATED, PENDING, REMOVED, RESCHEDULING, Placement

A, B, C = b"a" * 28, b"b" * 28, b"c" * 28
G, H = b"g" * 18, b"h" * 18


def row(node: bytes, cpus: int, **more: Any) -> dict[str, Any]:
    units = {"CPU": cpus * UNIT}
    return {"node_id": node, "alive": True, "total": units, "available": dict(units), **more}


def spec(*cpus: int, strategy: str = "PACK", **more: Any) -> dict[str, Any]:
    return {
        "bundles": [{"CPU": n * UNIT} for n in cpus],
        "strategy": strategy,
        "name": "",
        "namespace": "",
        "detached": False,
        "job": b"job1",
        "actor": b"",
        **more,
    }


def words(commands: list[tuple[Any, ...]]) -> list[str]:
    return [command[0] for command in commands]


def sent(commands: list[tuple[Any, ...]], word: str) -> dict[bytes, Any]:
    return {command[1]: command[2:] for command in commands if command[0] == word}


def placed(head: Placement, group: bytes, group_spec: dict[str, Any]) -> None:
    """Create a group and have all nodes agree."""
    for node, (_, attempt, _) in sent(head.create(group, group_spec, "me"), "prepare").items():
        commits = sent(head.prepared(node, group, attempt, None), "commit")
        for other in commits:
            head.committed(other, group, attempt, None)


@pytest.fixture
def head() -> Placement:
    placement = Placement()
    placement.node_joined(row(A, 2), [])
    placement.node_joined(row(B, 2), [])
    return placement


def test_the_two_phases(head: Placement) -> None:
    commands = head.create(G, spec(2, 2), "me")
    assert words(commands) == ["save", "publish", "save", "prepare", "prepare"]
    assert sent(commands, "prepare") == {
        node: (G, 1, [[index, {"CPU": 2 * UNIT}]]) for node, (index,) in head.groups[G].wanted.items()
    }
    assert set(head.groups[G].wanted) == {A, B}
    assert head.prepared(A, G, 1, None) == []
    assert head.prepared(A, G, 1, None) == []  # an echo
    commands = head.prepared(B, G, 1, None)
    assert words(commands) == ["commit", "commit"]
    assert head.committed(B, G, 1, None) == []
    assert head.state_of(G) == PENDING
    commands = head.committed(A, G, 1, None)
    assert words(commands) == ["save", "publish"]
    assert head.state_of(G) == CREATED
    assert head.committed(A, G, 1, None) == []


def test_one_refusal_and_all_give_back(head: Placement) -> None:
    head.create(G, spec(2, 2))
    head.prepared(A, G, 1, None)
    commands = head.prepared(B, G, 1, "no room")
    assert [c[:4] for c in commands if c[0] == "return"] == [("return", A, G, 1)]
    assert "again" in words(commands)
    assert head.retry() == []  # not at once
    assert head.rested(G) != []  # the next attempt
    assert head.groups[G].attempt == 2
    # What the other says of the first is too late, and is given back.
    assert words(head.prepared(A, G, 1, None)) == ["return"]


def test_what_was_asked_for_counts_until_the_nodes_load_has_it(head: Placement) -> None:
    head.create(G, spec(2))
    (node,) = {A, B} - set(head.groups[G].wanted)
    other = A if node == B else B
    assert set(sent(head.create(H, spec(2)), "prepare")) == {node}
    # A load that was told before the node had said yes does not reckon it in.
    assert head.node_loaded(row(other, 2)) == []
    assert sent(head.create(b"i" * 18, spec(1)), "prepare") == {}
    head.prepared(other, G, 1, None)
    fresh = row(other, 2)
    fresh["available"]["CPU"] = UNIT
    assert set(sent(head.node_loaded(fresh), "prepare")) == {other}


def test_the_death_of_a_node_before_the_group_was_there(head: Placement) -> None:
    head.create(G, spec(2, 2))
    head.prepared(A, G, 1, None)
    head.prepared(B, G, 1, None)
    head.committed(A, G, 1, None)
    commands = head.node_gone(B, "killed")
    assert [c[:4] for c in commands if c[0] == "return"] == [("return", A, G, 1)]
    assert head.state_of(G) == PENDING
    assert set(sent(head.node_joined(row(C, 2), []), "prepare")) == {A, C}


def test_the_death_of_a_node_afterwards(head: Placement) -> None:
    placed(head, G, spec(2, 2, strategy="STRICT_SPREAD"))
    index = head.groups[G].nodes.index(B)
    commands = head.node_gone(B, "killed")
    assert "return" not in words(commands)
    assert head.state_of(G) == RESCHEDULING
    assert head.groups[G].nodes[1 - index] == A
    prepare = sent(head.node_joined(row(C, 2), []), "prepare")
    assert prepare == {C: (G, 2, [[index, {"CPU": 2 * UNIT}]])}
    head.prepared(C, G, 2, None)
    head.committed(C, G, 2, None)
    assert head.state_of(G) == CREATED
    assert set(head.groups[G].nodes) == {A, C}


def test_groups_that_have_lost_something_come_first(head: Placement) -> None:
    placed(head, G, spec(2))
    (node,) = head.groups[G].nodes
    other = A if node == B else B
    head.create(H, spec(2))  # takes the other node
    head.create(b"i" * 18, spec(2))
    head.node_gone(node, "killed")
    commands = head.node_joined(row(C, 2), [])
    assert sent(commands, "prepare")[C][0] == G
    assert other in head.groups[H].wanted


def test_removal(head: Placement) -> None:
    placed(head, G, spec(1, 1, name="n"))
    commands = head.remove(G, "because")
    assert words(commands) == ["removed", "return", "publish", "forget"]
    assert head.state_of(G) == REMOVED
    assert head.remove(G, "again") == []
    assert head.find("n", "") is None
    assert head.create(G, spec(1)) == []
    # An echo of what it had prepared is not taken for something new.
    assert words(head.prepared(A, G, 1, None)) == ["return"]


def test_names(head: Placement) -> None:
    head.create(G, spec(1, name="n", namespace="x"))
    with pytest.raises(ValueError, match="exists already"):
        head.create(H, spec(1, name="n", namespace="x"))
    head.create(H, spec(1, name="n", namespace="y"))
    found = head.find("n", "x")
    assert found is not None and found.group_id == G


def test_a_node_that_comes_back_is_brought_up_to_date(head: Placement) -> None:
    placed(head, G, spec(1))
    (node,) = head.groups[G].nodes
    unknown = b"x" * 18
    commands = head.node_joined(row(node, 2), [[G, 0, 1, True], [unknown, 0, 1, True]])
    assert [c[:4] for c in commands] == [("return", node, unknown, -1)]
    commands = head.node_joined(row(node, 2), [])  # it has lost it
    assert head.state_of(G) == RESCHEDULING
    assert "prepare" in words(commands)
    (node,) = head.groups[G].wanted
    commands = head.node_joined(row(node, 2), [])
    assert sent(commands, "prepare")[node][:2] == (G, 2)


def test_after_a_restart_of_the_head(head: Placement) -> None:
    placed(head, G, spec(1, name="n"))
    (node,) = head.groups[G].nodes
    head.create(H, spec(2))
    (half_way,) = head.groups[H].wanted
    saved = [group.to_record() for group in head.groups.values()]
    new = Placement()
    new.restore(saved)
    assert (new.state_of(G), new.state_of(H)) == (CREATED, PENDING)
    held = {A: [], B: []}
    held[node].append([G, 0, 1, True])
    held[half_way].append([H, 0, 1, False])
    commands = [c for n in (A, B) for c in new.node_joined(row(n, 2), held[n])]
    returned = [c[:4] for c in commands if c[0] == "return"]
    assert returned == [("return", half_way, H, 1)]
    assert new.state_of(G) == CREATED
    found = new.find("n", "")
    assert found is not None and found.nodes == [node]


def test_why_it_waits_is_told_once(head: Placement) -> None:
    commands = head.create(G, spec(1, 1, 1, strategy="STRICT_SPREAD"), "me")
    assert words(commands).count("publish") == 2
    group = head.groups[G]
    assert group.infeasible and "on a node each" in group.text
    assert head.retry() == []
    placed(head, H, spec(2, 2))
    head.create(b"i" * 18, spec(1), "me")
    full = head.groups[b"i" * 18]
    head.node_loaded({**row(A, 2), "available": {"CPU": 0}})
    head.node_loaded({**row(B, 2), "available": {"CPU": 0}})
    assert not full.infeasible
    assert head.demand()[0]["strategy"] == "STRICT_SPREAD"


def test_the_ends_of_jobs_and_of_actors(head: Placement) -> None:
    other = b"o" * 16
    head.create(G, spec(1))
    head.create(H, spec(1, detached=True))
    head.create(b"i" * 18, spec(1, actor=other))
    head.create(b"j" * 18, spec(1, job=b"job2"))
    head.job_ended(b"job1", [other])
    assert [head.state_of(g) == REMOVED for g in (G, H, b"i" * 18, b"j" * 18)] == [True, False, False, False]
    head.actor_ended(other)
    assert head.state_of(b"i" * 18) == REMOVED
    assert not head.makers


def test_watching(head: Placement) -> None:
    assert head.watch(G, "early") == []
    commands = head.create(G, spec(1), "me")
    assert {c[1] for c in commands if c[0] == "publish"} == {"early", "me"}
    assert head.never_born(G) == []
    assert words(head.watch(G, "late")) == ["publish"]
    head.watcher_gone("me")
    assert {c[1] for c in head.remove(G, "x") if c[0] == "publish"} == {"early", "late"}
    assert words(head.watch(G, "afterwards")) == ["publish"]
    assert head.watch(H, "never") == []
    assert head.never_born(H) == ["never"]


def test_draining_nodes_take_nothing_new(head: Placement) -> None:
    head.node_changed(row(A, 2, draining=True))
    assert set(sent(head.create(G, spec(1, 1)), "prepare")) == {B}
