"""Pulls and copies: alone, and a cluster of them in which messages take any order and nodes die."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework._base import limits
from framework._state.copy_tree import Copies
from framework._state.transfers import ARGUMENT, GET, WAIT, Pulls

OBJECT = b"o"


def pulls(*alive: bytes, at_once: int = 2, most: int = 100) -> Pulls:
    found = Pulls(b"me", at_once, most)
    for node in alive:
        found.node_up(node)
    return found


def started(state: Pulls, object_id: bytes = OBJECT, node: bytes = b"A", size: int = 10) -> tuple[Any, ...]:
    """A pull that asks its first source: the command."""
    assert state.want("w", object_id, node, size, GET) == [("place", object_id, size, True)]
    (command,) = state.placed(object_id)
    return command


# ---- one pull ------------------------------------------------------------------------------------------


def test_from_the_primary() -> None:
    state = pulls(b"A")
    assert started(state) == ("fetch", OBJECT, 1, b"A", 0, [], False)
    assert state.want("late", OBJECT, b"A", 10, WAIT) == [], "they join"
    assert state.arrived(OBJECT, 1) == [
        ("seal", OBJECT),
        ("tell", b"A", OBJECT, True),
        ("done", OBJECT, ["w", "late"]),
    ]
    assert state.active == state.active_bytes == len(state.pulls) == 0


def test_who_had_it_after_its_node_died_is_remembered() -> None:
    state = pulls(b"A", b"B", b"C")
    state.node_gone(b"A")
    assert started(state)[:2] == ("search", OBJECT)
    (fetch,) = state.found(OBJECT, state.pulls[OBJECT].attempt, [b"C"], True)
    assert fetch[3] == b"C"
    state.arrived(OBJECT, fetch[2])
    # (The copy had to make room.) Nobody else is asked the second time, ...
    assert started(state)[:4] == ("fetch", OBJECT, 1, b"C")
    # ... unless it is gone there, too.
    assert state.missing(OBJECT, 1)[0][0] == "search"
    state.found(OBJECT, 2, [b"B"], True)
    state.arrived(OBJECT, 3)
    state.node_gone(b"B")
    assert started(state)[0] == "search", "who is dead is not asked"
    state.found(OBJECT, state.pulls[OBJECT].attempt, [b"C"], True)
    state.arrived(OBJECT, state.pulls[OBJECT].attempt)
    state.freed(OBJECT)
    assert started(state)[0] == "search", "what was freed is forgotten"


def test_the_urgent_first_and_no_more_than_allowed() -> None:
    state = pulls(b"A", at_once=1)
    started(state, b"1")
    assert state.want("b", b"2", b"A", 10, ARGUMENT) == []
    assert state.want("c", b"3", b"A", 10, WAIT) == []
    assert state.want("d", b"4", b"A", 10, ARGUMENT) == []
    assert state.want("e", b"4", b"A", 10, GET) == [], "it became urgent"
    order = []
    number = b"1"
    for _ in range(4):
        attempt = state.pulls[number].attempt
        places = [c for c in state.arrived(number, attempt) if c[0] == "place"]
        if places:
            number = places[0][1]
            order.append((number, places[0][3]))
            state.placed(number)
    assert order == [(b"4", True), (b"3", True), (b"2", False)]


def test_bytes_under_way_are_bounded_but_a_large_one_goes_alone() -> None:
    state = pulls(b"A", at_once=3, most=25)
    assert state.want("1", b"1", b"A", 1000, GET) == [("place", b"1", 1000, True)]
    assert state.want("2", b"2", b"A", 10, GET) == []
    state.placed(b"1")
    assert [c[:2] for c in state.arrived(b"1", 1)][-1] == ("place", b"2")
    assert state.want("3", b"3", b"A", 10, GET) == [("place", b"3", 10, True)]
    assert state.want("4", b"4", b"A", 10, GET) == []


def test_redirected_and_back_to_the_root_when_that_one_dies() -> None:
    state = pulls(b"A", b"B")
    started(state)
    assert state.redirected(OBJECT, 1, b"B") == [("fetch", OBJECT, 2, b"B", 0, [], True)]
    assert state.node_gone(b"B") == [("stop", OBJECT, 2)]
    assert state.broken(OBJECT, 2, 4) == [("fetch", OBJECT, 3, b"A", 4, [b"B"], False)], "where it was"
    assert state.arrived(OBJECT, 1) == [], "stale"
    assert state.arrived(OBJECT, 3)[0] == ("seal", OBJECT)


def test_another_copy_when_the_primary_dies() -> None:
    state = pulls(b"A", b"B", b"C")
    started(state)
    state.node_gone(b"A")
    assert state.broken(OBJECT, 1, 7) == [("search", OBJECT, 2)]
    assert state.found(OBJECT, 2, [b"C"], True) == [("fetch", OBJECT, 3, b"C", 7, [], False)]
    assert state.missing(OBJECT, 3) == [
        ("failed", OBJECT, ["w"], "ObjectLostError", "no node has a copy of object 6f"),
        ("unplace", OBJECT),
        ("tell", b"C", OBJECT, False),
    ]


def test_a_dead_primary_without_copies_is_an_error_at_once() -> None:
    state = pulls(b"B")
    state.node_gone(b"A")
    assert started(state)[:2] == ("search", OBJECT)
    assert state.found(OBJECT, 1, [], True)[0][3] == "ObjectLostError"


def test_an_unknown_node_may_be_a_new_one() -> None:
    state = pulls(b"B")
    assert started(state)[:2] == ("search", OBJECT)
    (later,) = state.found(OBJECT, 1, [], True)
    assert later == ("later", OBJECT, 2, limits.PULL_RETRY)
    state.node_up(b"A")
    assert state.again(OBJECT, 2) == [("fetch", OBJECT, 3, b"A", 0, [], False)]


def test_an_unknown_node_that_nobody_tells_of_is_dead() -> None:
    state = pulls(b"B")
    commands = [started(state)]
    rests = 0
    while commands[0][0] != "failed":
        word, object_id, attempt = commands[0][:3]
        rests += word == "later"
        commands = (
            state.found(object_id, attempt, [], True) if word == "search" else state.again(object_id, attempt)
        )
    assert rests == pytest.approx(limits.SOURCE_UNKNOWN / limits.PULL_RETRY, abs=1)


def test_a_primary_that_cannot_be_reached_but_is_not_dead_is_tried_again() -> None:
    state = pulls(b"A", b"B")
    started(state)
    assert state.broken(OBJECT, 1, 0) == [("search", OBJECT, 2)]
    assert state.found(OBJECT, 2, [b"A"], True) == [("later", OBJECT, 3, limits.PULL_RETRY)]
    assert state.again(OBJECT, 3)[0][:4] == ("fetch", OBJECT, 4, b"A")
    commands = state.broken(OBJECT, 4, 0)
    turns = 0
    while commands[0][0] != "failed":
        word, _, attempt = commands[0][:3]
        if word == "search":
            commands = state.found(OBJECT, attempt, [], True)
        elif word == "later":
            turns += 1
            commands = state.again(OBJECT, attempt)
        else:
            commands = state.broken(OBJECT, attempt, 0)
    assert commands[0][3] == "ObjectFetchTimedOutError"
    assert turns == pytest.approx(limits.PULL_PATIENCE / limits.PULL_RETRY, abs=2)


def test_nobody_waits_any_more() -> None:
    state = pulls(b"A", at_once=1)
    started(state)
    state.want("x", OBJECT, b"A", 10, GET)
    assert state.want("q", b"queued", b"A", 10, GET) == []
    assert state.unwant("q", b"queued") == [] and b"queued" not in state.pulls
    assert state.unwant("w", OBJECT) == []
    assert state.unwant("x", OBJECT) == [("stop", OBJECT, 1)]
    assert state.broken(OBJECT, 1, 5) == [("unplace", OBJECT), ("tell", b"A", OBJECT, False)]
    assert not state.pulls and state.active == 0


def test_wanted_again_while_it_is_being_stopped() -> None:
    state = pulls(b"A")
    started(state)
    assert state.unwant("w", OBJECT) == [("stop", OBJECT, 1)]
    assert state.want("w2", OBJECT, b"A", 10, GET) == []
    assert state.broken(OBJECT, 1, 5) == [("search", OBJECT, 2)]


def test_freed_while_it_comes_and_made_again() -> None:
    state = pulls(b"A", b"B")
    started(state)
    failed, stop = state.freed(OBJECT)
    assert failed[:4] == ("failed", OBJECT, ["w"], "ObjectLostError") and stop == ("stop", OBJECT, 1)
    assert state.want("new", OBJECT, b"B", 10, GET) == []
    commands = state.arrived(OBJECT, 1)
    assert commands == [("unplace", OBJECT), ("tell", b"A", OBJECT, False), ("place", OBJECT, 10, True)]
    assert state.placed(OBJECT)[0][3] == b"B"


def test_of_another_size_than_expected() -> None:
    state = pulls(b"A")
    started(state)
    assert state.differs(OBJECT, 1, 30) == [("unplace", OBJECT), ("place", OBJECT, 30, True)]
    assert state.active_bytes == 30
    assert state.placed(OBJECT)[0][:5] == ("fetch", OBJECT, 2, b"A", 0)


def test_no_room() -> None:
    state = pulls(b"A")
    state.want("w", OBJECT, b"A", 10, GET)
    assert state.unplaced(OBJECT, "ObjectStoreFullError", "full") == [
        ("failed", OBJECT, ["w"], "ObjectStoreFullError", "full")
    ]
    state.want("w", OBJECT, b"A", 10, GET)
    assert state.unplaced(OBJECT, "FileExistsError", "") == [("done", OBJECT, ["w"])]


# ---- the tree ------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 4))
def test_a_broadcast_is_a_tree_of_logarithmic_depth(count: int, fan_out: int) -> None:
    copies = Copies(b"root", fan_out)
    parent: dict[bytes, bytes] = {}
    for number in range(count):
        node = number.to_bytes(2, "big")
        parent[node] = copies.ask(OBJECT, node) or b"root"
    assert max(Counter(parent.values()).values()) <= fan_out
    depth = 0
    for node in parent:
        steps = 0
        while node != b"root":
            node = parent[node]
            steps += 1
        depth = max(depth, steps)
    reach, levels = fan_out, 1
    while reach < count:
        levels += 1
        reach += fan_out**levels
    assert depth == levels


def test_who_asks_again_is_not_sent_to_those_who_wait_for_it() -> None:
    copies = Copies(b"root", 1)
    assert copies.ask(OBJECT, b"a") is None
    assert copies.ask(OBJECT, b"b") == b"a"
    assert copies.ask(OBJECT, b"c") == b"b"
    assert copies.ask(OBJECT, b"a") is None, "its own place is free again"
    assert copies.ask(OBJECT, b"d", avoid=[b"c"]) is None, "nobody else may be named"


def test_complete_copies_come_first_and_all_are_told() -> None:
    copies = Copies(b"root", 1)
    copies.ask(OBJECT, b"a")
    copies.copied(OBJECT, b"a", True)
    copies.ask(OBJECT, b"b")
    assert copies.ask(OBJECT, b"c") == b"a"
    assert copies.holders(OBJECT) == [b"a"]
    copies.node_gone(b"b")
    assert sorted(copies.freed(OBJECT)) == [b"a", b"c"]
    assert len(copies) == 0


def test_nothing_is_remembered_of_what_has_no_copies() -> None:
    copies = Copies(b"root", 1)
    copies.ask(OBJECT, b"a")
    copies.copied(OBJECT, b"a", False)
    assert len(copies) == 0
    copies.ask(OBJECT, b"b")
    copies.node_gone(b"b")
    assert len(copies) == 0


# ---- a cluster -----------------------------------------------------------------------------------------


class Node:
    def __init__(self, name: bytes, count: int) -> None:
        self.name = name
        self.pulls = Pulls(name, 2, 50)
        self.copies = Copies(name)
        self.objects: set[bytes] = set()
        self.placed: set[bytes] = set()
        self.sealed: Counter[bytes] = Counter()
        self.verdicts: Counter[Any] = Counter()
        self.progress: dict[bytes, int] = {}


class Cluster:
    """Every command of a node becomes an event; events happen in random order."""

    def __init__(self, seed: int, count: int) -> None:
        self.random = random.Random(seed)
        self.nodes = {bytes([65 + i]): Node(bytes([65 + i]), count) for i in range(count)}
        for node in self.nodes.values():
            for other in self.nodes:
                node.pulls.node_up(other)
        self.dead: set[bytes] = set()
        self.events: list[Any] = []
        self.asked: set[Any] = set()
        self.stops: set[Any] = set()

    def run(self, node: Node, commands: list[Any]) -> None:
        for command in commands:
            word = command[0]
            if word == "stop":
                self.stops.add((node.name, *command[1:]))
            elif word == "unplace":
                assert command[1] in node.placed
                node.placed.discard(command[1])
            elif word == "seal":
                assert command[1] in node.placed
                node.placed.discard(command[1])
                node.objects.add(command[1])
                node.sealed[command[1]] += 1
            elif word in ("done", "failed"):
                for waiter in command[2]:
                    node.verdicts[waiter] += 1
                    assert word == "failed" or command[1] in node.objects
            else:
                self.events.append((node, command))
        assert node.pulls.active <= 2
        sizes = [p.size for p in node.pulls.pulls.values() if p.state != "queued"]
        assert sum(sizes) == node.pulls.active_bytes
        assert len(sizes) <= 1 or sum(sizes) <= 50

    def want(self, node: Node, object_id: bytes, primary: bytes, size: int, urgency: int) -> None:
        waiter = (node.name, object_id, len(self.asked))
        self.asked.add(waiter)
        if object_id in node.objects:
            node.verdicts[waiter] += 1
        else:
            self.run(node, node.pulls.want(waiter, object_id, primary, size, urgency))

    def kill(self, name: bytes) -> None:
        self.dead.add(name)
        for node in self.living():
            node.copies.node_gone(name)
            self.run(node, node.pulls.node_gone(name))

    def living(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.name not in self.dead]

    def step(self) -> None:
        node, command = self.events.pop(self.random.randrange(len(self.events)))
        if node.name in self.dead:
            return
        word, object_id = command[:2]
        state = node.pulls
        if word == "place":
            assert object_id not in node.placed
            if object_id in node.objects:
                self.run(node, state.unplaced(object_id, "FileExistsError", ""))
            elif not command[3] and self.random.random() < 0.2:
                self.run(node, state.unplaced(object_id, "ObjectStoreFullError", "no room without waiting"))
            else:
                node.placed.add(object_id)
                node.progress[object_id] = 0
                self.run(node, state.placed(object_id))
        elif word == "fetch":
            self.fetch(node, *command[1:])
        elif word == "search":
            having = [n.name for n in self.living() if object_id in n.objects]
            self.run(node, state.found(object_id, command[2], having, self.random.random() < 0.9))
        elif word == "later":
            self.run(node, state.again(object_id, command[2]))
        elif word == "tell":
            if command[1] not in self.dead:
                self.nodes[command[1]].copies.copied(command[2], node.name, command[3])

    def fetch(
        self,
        node: Node,
        object_id: bytes,
        attempt: int,
        source: bytes,
        offset: int,
        avoid: list[bytes],
        forced: bool,
    ) -> None:
        state, there = node.pulls, self.nodes[source]
        size = state.pulls[object_id].size
        if (
            (node.name, object_id, attempt) in self.stops
            or source in self.dead
            or self.random.random() < 0.15
        ):
            offset += self.random.randrange(size - offset + 1) if self.random.random() < 0.5 else 0
            there.copies.broken_off(object_id, node.name)
            self.run(node, state.broken(object_id, attempt, min(offset, size - 1)))
            return
        if object_id not in there.objects:
            if object_id in there.pulls.pulls:  # being copied: not so fast
                self.events.append((node, ("fetch", object_id, attempt, source, offset, avoid, forced)))
            else:
                self.run(node, state.missing(object_id, attempt))
            return
        named = there.copies.ask(object_id, node.name, avoid, forced)
        assert named != node.name and (named is None or not forced)
        if named is not None:
            self.run(node, state.redirected(object_id, attempt, named))
        else:
            self.run(node, state.arrived(object_id, attempt))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6), st.booleans())
def test_everybody_gets_a_verdict_and_each_object_is_copied_once(seed: int, count: int, deaths: bool) -> None:
    cluster = Cluster(seed, count)
    rand = cluster.random
    names = list(cluster.nodes)
    where = {bytes([48 + i]): rand.choice(names) for i in range(5)}
    size = {object_id: rand.choice((1, 10, 20, 80)) for object_id in where}
    for object_id, name in where.items():
        cluster.nodes[name].objects.add(object_id)
    wanted = 40
    steps = 0
    while wanted or cluster.events:
        steps += 1
        assert steps < 20_000, "it does not come to an end"
        if wanted and (not cluster.events or rand.random() < 0.3):
            wanted -= 1
            object_id = rand.choice(list(where))
            node = rand.choice(cluster.living())
            if where[object_id] != node.name:
                cluster.want(
                    node, object_id, where[object_id], size[object_id], rand.choice((GET, WAIT, ARGUMENT))
                )
            if deaths and rand.random() < 0.05 and len(cluster.living()) > 1:
                cluster.kill(rand.choice(cluster.living()).name)
            continue
        cluster.step()
    for node in cluster.living():
        assert not node.pulls.pulls and node.pulls.active == node.pulls.active_bytes == 0
        assert not node.placed, "no half of anything is left"
        assert all(number == 1 for number in node.sealed.values()), "each object once"
        mine = [waiter for waiter in cluster.asked if waiter[0] == node.name]
        assert all(node.verdicts[waiter] == 1 for waiter in mine)
