"""Head and nodes together, through lost connections, deaths, restarts and repetitions: a group is reserved as
a whole or not at all, and nothing is counted twice."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework._base import resources as res
from framework._base.resources import GPU, UNIT, IndexedResource
from framework._state.bundles import Bundles
from framework._state.packing import STRATEGIES, STRICT_PACK, STRICT_SPREAD, place
from framework._state.placement import CREATED, PENDING, REMOVED, Group, Placement


class User:
    """A lease or an actor."""

    def __init__(self, lease_id: int, units: dict[str, int]) -> None:
        self.lease_id = lease_id
        self.units = units
        self.shares: list[tuple[int, int]] = []


class Node:
    """A node, and the messages under way to it and from it, in order."""

    def __init__(self, node_id: bytes, base: dict[str, int]) -> None:
        self.node_id = node_id
        self.base = base
        self.total, self.available = dict(base), dict(base)
        self.gpus = IndexedResource(base.get(GPU, 0) // UNIT)
        self.bundles = Bundles(self.total, self.available, self.gpus)
        self.users: dict[int, User] = {}
        self.inbox: deque[tuple[Any, ...]] = deque()
        self.outbox: deque[tuple[Any, ...]] = deque()
        self.dying: list[Any] = []  #: users that were killed, and still hold what they have
        self.heard: deque[tuple[Any, ...]] = deque(maxlen=5)

    def row(self) -> dict[str, Any]:
        return {
            "node_id": self.node_id,
            "alive": True,
            "total": dict(self.total),
            "available": dict(self.available),
            "draining": False,
        }

    def receive(self, message: tuple[Any, ...]) -> None:
        self.heard.append(message)
        word, group, attempt, rest = message
        if word == "prepare":
            self.outbox.append(("prepared", group, attempt, self.bundles.prepare(group, attempt, rest)))
        elif word == "commit":
            indices = [index for index, _ in rest]
            self.outbox.append(("committed", group, attempt, self.bundles.commit(group, attempt, indices)))
        else:
            self.dying += self.bundles.give_back(group, attempt)

    def use(self, user: User) -> bool:
        if not res.fits(user.units, self.available) or not self.bundles.can_allocate(user.units):
            return False
        res.subtract(self.available, user.units)
        user.shares = self.bundles.take(user)
        self.users[user.lease_id] = user
        return True

    def is_orphan(self, user: User) -> bool:
        """Whether the group that he is in was given back."""
        where = res.group_of(user.units)
        return where is not None and bytes.fromhex(where[0]) not in self.bundles.groups

    def bury(self) -> None:
        while self.dying:
            self.end(self.dying.pop())

    def end(self, user: User) -> None:
        if self.users.pop(user.lease_id, None) is not None:
            res.add(self.available, user.units)
            self.bundles.release(user, user.shares)

    def check(self) -> None:
        """Its ledger, reckoned anew from what it holds."""
        total, available = dict(self.base), dict(self.base)
        free = [UNIT] * self.gpus.total
        for group, bundles in self.bundles.groups.items():
            for bundle in bundles.values():
                res.subtract(available, bundle.units)
                for index, amount in bundle.shares:
                    free[index] -= amount
                if bundle.committed:
                    named = res.bundle_resources(bundle.units, group.hex(), bundle.index)
                    res.add(total, named)
                    res.add(available, named)
        if self.dying:  # what was withdrawn under them is nobody's until they have ended
            for name in self.base:
                inside = [user for user in self.users.values() if self.is_orphan(user)]
                outside = used(self.users, name)
                lost = sum(res.out_of_group(user.units).get(name, 0) for user in inside)
                assert self.available[name] + outside + lost <= available[name]
            return
        for user in self.users.values():
            res.subtract(available, user.units)
            if GPU in user.units:
                for index, amount in user.shares:
                    free[index] -= amount
        assert self.total == total
        assert self.available == available
        assert self.gpus.available() == sum(free)
        assert min(free, default=0) >= 0
        assert all(amount >= 0 for amount in self.available.values())


def used(users: dict[int, User], name: str) -> int:
    return sum(user.units.get(name, 0) for user in users.values())


class Cluster:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.head = Placement()
        self.saved: dict[bytes, dict[str, Any]] = {}
        self.nodes: dict[bytes, Node] = {}
        self.dead_unknown: set[bytes] = set()  #: dead, and the head does not know yet
        self.seen: dict[bytes, str] = {}
        self.counter = 0
        self.resting: list[bytes] = []

    def number(self) -> int:
        self.counter += 1
        return self.counter

    # ---- what may happen -----------------------------------------------------------------------------

    def run(self, commands: list[tuple[Any, ...]]) -> None:
        for command in commands:
            word = command[0]
            if word in ("prepare", "commit", "return"):
                _, node, group, attempt, rest = command
                if node in self.nodes:
                    self.nodes[node].inbox.append((word, group, attempt, rest))
            elif word == "publish":
                self.published(command[2])
            elif word == "save":
                self.saved[command[1].group_id] = command[1].to_record()
            elif word == "again":
                self.resting.append(command[1])
            elif word == "forget":
                self.saved.pop(command[1], None)

    def published(self, group: Group) -> None:
        before = self.seen.get(group.group_id, PENDING)
        self.seen[group.group_id] = group.state
        if group.state == CREATED and before != CREATED:
            self.check_created(group)

    def check_created(self, group: Group) -> None:
        """The moment when it is seen: all of it is there (but for nodes that have just died)."""
        assert all(group.nodes)
        if group.strategy == STRICT_PACK:
            assert len(set(group.nodes)) == 1
        if group.strategy == STRICT_SPREAD:
            assert len(set(group.nodes)) == len(group.nodes)
        for index, node_id in enumerate(group.nodes):
            node = self.nodes.get(node_id)
            if node is not None:
                assert node.bundles.groups[group.group_id][index].committed

    def join(self) -> None:
        if len(self.nodes) > 5:
            return
        base = {"CPU": self.rng.randint(1, 6) * UNIT}
        if self.rng.random() < 0.7:
            base[GPU] = self.rng.randint(1, 2) * UNIT
        node = Node(self.number().to_bytes(28, "big"), base)
        self.nodes[node.node_id] = node
        self.run(self.head.node_joined(node.row(), []))

    def some_node(self) -> Node | None:
        return self.rng.choice(list(self.nodes.values())) if self.nodes else None

    def kill(self) -> None:
        node = self.some_node()
        if node is not None and len(self.nodes) > 1:
            del self.nodes[node.node_id]
            self.dead_unknown.add(node.node_id)

    def verdict(self) -> None:
        while self.dead_unknown:
            self.run(self.head.node_gone(self.dead_unknown.pop(), "killed"))

    def create(self) -> None:
        bundles = []
        for _ in range(self.rng.randint(1, 3)):
            units = {"CPU": self.rng.choice((UNIT // 2, UNIT, 2 * UNIT))}
            if self.rng.random() < 0.3:
                units[GPU] = self.rng.choice((UNIT // 2, UNIT))
            bundles.append(units)
        spec = {
            "bundles": bundles,
            "strategy": self.rng.choice(STRATEGIES),
            "name": "",
            "namespace": "",
            "detached": False,
            "job": b"",
            "actor": b"",
        }
        self.run(self.head.create(self.number().to_bytes(18, "big"), spec, "driver"))

    def remove(self) -> None:
        living = [group for group in self.head.groups.values() if group.state != REMOVED]
        if living:
            self.run(self.head.remove(self.rng.choice(living).group_id, "removed"))

    def deliver(self) -> None:
        nodes = [node for node in self.nodes.values() if node.inbox]
        if nodes:
            node = self.rng.choice(nodes)
            message = node.inbox.popleft()
            node.receive(message)
            if self.rng.random() < 0.2:
                node.receive(message)  # once more

    def rest(self) -> None:
        resting, self.resting = self.resting, []
        for group in resting:
            self.run(self.head.rested(group))

    def echo(self) -> None:
        """A message from before comes once more."""
        node = self.some_node()
        if node is not None and node.heard:
            node.receive(self.rng.choice(node.heard))

    def bury(self) -> None:
        node = self.some_node()
        if node is not None:
            node.bury()

    def answer(self) -> None:
        nodes = [node for node in self.nodes.values() if node.outbox]
        if nodes:
            node = self.rng.choice(nodes)
            self._hear(node, node.outbox.popleft())

    def _hear(self, node: Node, message: tuple[Any, ...]) -> None:
        for _ in range(1 + (self.rng.random() < 0.2)):
            if message[0] == "load":
                self.run(self.head.node_loaded(message[1]))
            else:
                word, group, attempt, text = message
                heard = self.head.prepared if word == "prepared" else self.head.committed
                self.run(heard(node.node_id, group, attempt, text))

    def load(self) -> None:
        node = self.some_node()
        if node is not None:
            node.outbox.append(("load", node.row()))

    def reconnect(self, node: Node | None = None) -> None:
        """The connection breaks: what was under way is lost; the node joins again."""
        node = node or self.some_node()
        if node is not None:
            node.inbox.clear()
            node.outbox.clear()
            self.run(self.head.node_joined(node.row(), node.bundles.held()))

    def restart_head(self) -> None:
        self.head = Placement()
        self.head.restore(self.saved.values())
        for record in self.saved.values():
            assert record["state"] != REMOVED
        for node in list(self.nodes.values()):
            self.reconnect(node)

    def use(self) -> None:
        """A task or actor in a group, or beside it."""
        node = self.some_node()
        if node is None:
            return
        units = {"CPU": self.rng.choice((UNIT // 2, UNIT))}
        if self.rng.random() < 0.5:
            units[GPU] = self.rng.choice((UNIT // 2, UNIT))
        groups = [g for g in self.head.groups.values() if g.visible]
        if groups and self.rng.random() < 0.9:
            group = self.rng.choice(groups)
            index = self.rng.randint(-1, len(group.bundles) - 1)
            units = res.in_group(units, group.group_id.hex(), index)
        node.use(User(self.number(), units))

    def unuse(self) -> None:
        node = self.some_node()
        if node is not None and node.users:
            node.end(self.rng.choice(list(node.users.values())))

    # ---- in the end ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """All messages arrive, all verdicts are given, all nodes tell their load."""
        for turn in range(200):
            self.verdict()
            if turn < 20:  # (with its GPUs in pieces, a node may refuse for ever)
                self.rest()
            for node in self.nodes.values():
                while node.inbox:
                    node.receive(node.inbox.popleft())
                node.bury()
                node.outbox.append(("load", node.row()))
                while node.outbox:
                    self._hear(node, node.outbox.popleft())
            if not any(node.inbox for node in self.nodes.values()):
                break
        else:
            pytest.fail("it does not come to rest")

    def check_settled(self) -> None:
        held = {
            (group, index): node.node_id
            for node in self.nodes.values()
            for group, bundles in node.bundles.groups.items()
            for index, bundle in bundles.items()
        }
        count = sum(len(bundles) for node in self.nodes.values() for bundles in node.bundles.groups.values())
        assert count == len(held), "a bundle is on two nodes"
        for (group_id, index), node_id in held.items():
            group = self.head.groups[group_id]
            assert group.nodes[index] == node_id
            assert self.nodes[node_id].bundles.groups[group_id][index].committed
        for group in self.head.groups.values():
            if group.state == CREATED:
                assert all((group.group_id, index) in held for index in range(len(group.bundles)))
                self.check_created(group)
            elif group.state != REMOVED:
                # It waits because there is no room, and not because it was forgotten.
                free = {n.node_id: res.without_groups(n.available) for n in self.nodes.values()}
                placed = [node for node in group.nodes if node]
                found = place(group.lacking, group.strategy, free, placed)
                if found is not None:  # (shares of GPUs may not fit although their sum does)
                    assert any(GPU in units for units in group.lacking.values())


HAPPENINGS = (
    [Cluster.create] * 4
    + [Cluster.deliver] * 16
    + [Cluster.answer] * 16
    + [Cluster.load] * 4
    + [Cluster.use] * 4
    + [Cluster.unuse] * 3
    + [Cluster.remove] * 3
    + [Cluster.bury, Cluster.bury, Cluster.rest]
    + [Cluster.echo] * 2
    + [Cluster.join, Cluster.kill, Cluster.verdict, Cluster.reconnect]
)


def simulate(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    cluster = Cluster(rng)
    for _ in range(3):
        cluster.join()
    for _ in range(steps):
        rng.choice(HAPPENINGS)(cluster)
        if rng.random() < 0.01:
            cluster.restart_head()
        for node in cluster.nodes.values():
            node.check()
    cluster.settle()
    for node in cluster.nodes.values():
        node.check()
    cluster.check_settled()
    for group in list(cluster.head.groups.values()):
        cluster.run(cluster.head.remove(group.group_id, "the end"))
    cluster.settle()
    for node in cluster.nodes.values():
        for user in list(node.users.values()):
            node.end(user)
        node.check()
        assert node.available == node.base == node.total  # nothing is left


@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_reserved_as_a_whole_or_not_at_all_and_nothing_twice(seed: int) -> None:
    simulate(seed, 150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_the_same_for_longer(seed: int) -> None:
    simulate(seed, 1_000)
