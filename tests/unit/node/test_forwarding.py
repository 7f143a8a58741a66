"""Leases across nodes under everything that may happen to messages, connections, workers, owners and nodes.

Three nodes with fake workers and the real `NodeState`, `NodeLeases` and `Forwarding`; a network that delivers
late, twice, or not at all (with the connection), but in order per connection. Whatever happened: when it is
quiet again both sides of every lease agree, nothing is counted twice, and nobody waits while there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from framework._base import limits
from framework._node.forwarding import Forwarding
from framework._node.leases import NodeLeases
from framework._node.service import NodeService
from framework._state.node import IDLE, LEASED, NodeState, Worker
from framework._wire import messages as m

CPU = 10_000
SHAPES = [{"CPU": CPU}, {"CPU": 2 * CPU}, {"tape": CPU}, {"CPU": CPU // 2}]


class Timer:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when, self.call, self.cancelled = when, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """The part of an event loop that is used, on the clock of the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, function: Callable[..., None], *args: Any) -> Timer:
        timer = Timer(self.now + delay, lambda: function(*args))
        self.timers.append(timer)
        return timer

    def call_soon(self, function: Callable[..., None], *args: Any) -> Timer:
        return self.call_later(0, function, *args)

    def run(self, until: float) -> None:
        while True:
            due = [timer for timer in self.timers if timer.when <= until]
            if not due:
                break
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            if not timer.cancelled:
                timer.call()
        self.now = until


class Link:
    """One end of a connection between two nodes."""

    def __init__(self, ident: bytes, refused: Callable[[Link], None] = lambda link: None) -> None:
        self.ident = ident
        self.inbox: deque[list[Any]] = deque()
        self.other: Link
        self.closed = False
        self.refused = refused

    def cast(self, *frame: Any) -> None:
        m.check(list(frame))
        if not self.closed and self.other.closed:
            self.refused(self)  # the other side knows nothing of this connection
        elif not self.closed:
            self.other.inbox.append(list(frame))


class Neighbours:
    def __init__(self, world: World, node_id: bytes) -> None:
        self._world = world
        self._node_id = node_id
        self.handlers: dict[int, Any] = {m.NEIGHBOUR_MISSED: self._has_missed}
        self.on_lost: list[Callable[[Any], None]] = []
        self.on_missed: list[Callable[[bytes], None]] = []
        self.on_gone: list[Callable[[bytes, str], None]] = []

    def connection(self, node_id: bytes) -> Link | None:
        return self._world.link(self._node_id, node_id)

    def dead(self, node_id: bytes) -> str | None:
        return "dead" if node_id not in self._world.nodes else None

    def lost(self, link: Link) -> None:
        """As the real ones do it."""
        for told in self.on_lost:
            told(link)
        self._world.loop.call_later(0.1, self._tell, link.ident)

    def _tell(self, node_id: bytes) -> None:
        link = self.connection(node_id) if self._node_id in self._world.nodes else None
        if link is not None:
            link.cast(m.NEIGHBOUR_MISSED)

    def _has_missed(self, link: Link, frame: list[Any]) -> None:
        for told in self.on_missed:
            told(link.ident)


class Nothing:
    """Takes any call."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Processes:
    """Workers that are there as soon as they are asked for."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._count = 0
        self.starting: list[Any] = []
        self.dying: list[bytes] = []

    def start(self, env: Any) -> None:
        self.starting.append(env)

    def end(self, worker_id: bytes, reason: str, *, intended: bool) -> None:
        self.dying.append(worker_id)

    def turn(self) -> bool:
        """What was asked for happens."""
        starting, self.starting = self.starting, []
        for env in starting:
            self._count += 1
            worker_id = self._node.node_id[:1] * 24 + self._count.to_bytes(4, "big")
            worker = Worker(worker_id, 1, f"tcp:{self._node.node_id.hex()}", env, Nothing())
            self._node.run(self._node.state.worker_up(worker, 0.0))
        dying, self.dying = self.dying, []
        for worker_id in dying:
            self.died(worker_id)
        return bool(starting or dying)

    def died(self, worker_id: bytes) -> None:
        allocation, commands = self._node.state.worker_gone(worker_id)
        if allocation is not None:
            self._node.leases.worker_gone(allocation, 7, 1, "it has died", "")
        self._node.run(commands)


class Node:
    """What `NodeLeases` and `Forwarding` need of a node service."""

    def __init__(self, world: World, number: int, total: dict[str, int]) -> None:
        self.node_id = bytes([number]) * 28
        self._loop = world.loop
        self.now = world.loop.time
        self.state = NodeState(total, self.node_id.hex(), world.loop.time)
        self.processes = Processes(self)
        self.output = self.actors = Nothing()
        self.stopping = False
        self._head = None
        self._again_timer = None
        self.forwarding: Any = None
        self.leases = NodeLeases(self)  # type: ignore[arg-type]
        self.neighbours = Neighbours(world, self.node_id)
        Forwarding(world.loop, self, self.neighbours)  # type: ignore[arg-type]

    def run(self, commands: Any) -> None:
        NodeService.run(self, commands)  # type: ignore[arg-type]

    def _schedule_again(self) -> None:
        NodeService._schedule_again(self)  # type: ignore[arg-type]

    def job_of_peer(self, owner: Any) -> bytes:
        return bytes(owner.job)

    def set_active(self, worker_id: bytes) -> None: ...
    def watch_idle(self) -> None: ...
    def gpus_of(self, allocation: Any) -> list[Any]:
        return []

    def row(self) -> dict[str, Any]:
        return {
            "node_id": self.node_id,
            "alive": True,
            "total": dict(self.state.total),
            "available": dict(self.state.available),
            "labels": {},
            "draining": False,
        }


class Owner:
    """A process with tasks: it counts what it gets and has."""

    def __init__(self, node: Node, job: bytes) -> None:
        self.node = node
        self.job = job
        self.ident = job * 7
        self.closed = False
        self.seen = dict.fromkeys(range(len(SHAPES)), 0)
        self.wanted = dict.fromkeys(range(len(SHAPES)), 0)
        self.leases: dict[int, tuple[int, bytes]] = {}  #: number -> (key, worker)
        self.recalled: set[int] = set()
        for key, units in enumerate(SHAPES):
            node.leases.handlers[m.LEASE_KEY](self, [m.LEASE_KEY, key, units, None, None, True, 0, b""])  # type: ignore[arg-type]

    def cast(self, opcode: int, *fields: Any) -> None:
        m.check([opcode, *fields])
        if opcode == m.LEASE_GRANT:
            key, number, worker, _, _ = fields
            assert number not in self.leases, "granted twice"
            self.seen[key] += 1
            self.wanted[key] = max(0, self.wanted[key] - 1)
            self.leases[number] = key, worker
        elif opcode == m.LEASE_LOST:
            assert fields[0] in self.leases, "lost what it does not have"
            del self.leases[fields[0]]
            self.recalled.discard(fields[0])
        elif opcode == m.LEASE_RECALL:
            if fields[0] in self.leases:
                self.recalled.add(fields[0])
        elif opcode == m.LEASE_WAITS:
            pass
        else:
            assert opcode == m.LEASE_PRESSURE

    def demand(self, key: int, wanted: int) -> None:
        self.wanted[key] = wanted
        self.node.leases.handlers[m.LEASE_DEMAND](self, [m.LEASE_DEMAND, key, wanted, self.seen[key]])  # type: ignore[arg-type]

    def give_back(self, number: int) -> None:
        del self.leases[number]
        self.recalled.discard(number)
        self.node.leases.handlers[m.LEASE_RETURN](self, [m.LEASE_RETURN, number])  # type: ignore[arg-type]


class World:
    def __init__(self) -> None:
        self.loop = Loop()
        self.nodes: dict[bytes, Node] = {}
        self.links: dict[tuple[bytes, bytes], Link] = {}  #: what the first one uses to reach the second
        self.ends: dict[Link, tuple[bytes, bytes]] = {}
        self.walls: set[frozenset[bytes]] = set()  #: nodes that cannot reach each other
        for number, total in (
            (1, {"CPU": 2 * CPU}),
            (2, {"CPU": 3 * CPU}),
            (3, {"CPU": CPU, "tape": 2 * CPU}),
        ):
            node = Node(self, number, total)
            self.nodes[node.node_id] = node
        self.owners: list[Owner] = []
        self.gossip()

    def link(self, here: bytes, there: bytes) -> Link | None:
        if here not in self.nodes or there not in self.nodes:
            return None
        if frozenset((here, there)) in self.walls:
            lost = Link(there)
            lost.closed = True
            self.loop.call_soon(self.nodes[here].neighbours.lost, lost)
            return lost
        if (here, there) not in self.links:
            mine, theirs = Link(there, self._refused), Link(here, self._refused)
            mine.other, theirs.other = theirs, mine
            self.links[here, there] = mine
            self.ends[mine], self.ends[theirs] = (here, there), (there, here)
            self.links.setdefault((there, here), theirs)  # it goes on with the one it knows, if there is one
        return self.links[here, there]

    def _refused(self, link: Link) -> None:
        self.loop.call_soon(self._lose, link)

    def _lose(self, link: Link) -> None:
        """One end of a connection learns that it is no more; what was on its way there is lost."""
        if not link.closed:
            link.closed = True
            pair = self.ends.pop(link)
            if self.links.get(pair) is link:
                del self.links[pair]
                others = [other for other, ends in self.ends.items() if ends == pair]
                if others:
                    self.links[pair] = others[0]
            if pair[0] in self.nodes:
                self.nodes[pair[0]].neighbours.lost(link)

    def busy(self) -> list[Link]:
        """Ends of connections where something has come."""
        return [link for link in self.ends if link.inbox]

    def deliver(self, link: Link, twice: bool = False) -> None:
        """The next frame that has come there."""
        frame = link.inbox.popleft()
        for _ in range(1 + twice):
            self.nodes[self.ends[link][0]].neighbours.handlers[frame[0]](link, frame)

    def cut(self, link: Link, only_here: bool = False) -> None:
        """The connection is lost, and all that was on its way. `only_here`: the other side learns of it when
        it says something."""
        self._lose(link)
        if not only_here:
            self._lose(link.other)

    def kill(self, node_id: bytes) -> None:
        """A node and its owners die, and the others hear of it."""
        del self.nodes[node_id]
        for owner in [owner for owner in self.owners if owner.node.node_id == node_id]:
            owner.closed = True
            self.owners.remove(owner)
        for link in [link for link, pair in self.ends.items() if pair[0] == node_id]:
            self.cut(link)
        for node in self.nodes.values():
            for told in node.neighbours.on_gone:
                told(node_id, "pulled the plug")

    def gossip(self) -> None:
        rows = [node.row() for node in self.nodes.values()]
        for node in self.nodes.values():
            node.forwarding.rows(rows)

    def settle(self) -> None:
        """Until nothing happens any more but by and by: those who wait ask again now and then."""
        for _ in range(60):
            self.arrive()
            self.gossip()
            self.loop.run(self.loop.now + 0.05)
        self.arrive()

    def arrive(self) -> None:
        """All that is on its way."""
        busy = True
        while busy:
            turns = [node.processes.turn() for node in self.nodes.values()]  # (all of them)
            busy = any(turns)
            for link in self.busy():
                self.deliver(link)
                busy = True
            for owner in self.owners:
                for number in list(owner.recalled):
                    owner.give_back(number)
                    busy = True

    def check(self) -> None:
        """Both sides of every lease agree."""
        holders: dict[bytes, Any] = {}
        for owner in self.owners:
            for number, (_, worker_id) in owner.leases.items():
                assert worker_id not in holders, "two have the same worker"
                holders[worker_id] = owner
                node = next(n for n in self.nodes.values() if worker_id in n.state.workers)
                allocation = node.state.workers[worker_id].allocation
                assert allocation is not None and allocation.number == number
                if node is owner.node:
                    assert allocation.owner is owner
                else:
                    assert allocation.owner.node_id == owner.node.node_id
                    assert owner.node.state.away.by_id[number].granted
        for node in self.nodes.values():
            state = node.state
            expected = dict(state.total)
            for allocation in state.leases.values():
                for name, amount in allocation.units.items():
                    expected[name] -= amount
            assert {k: v for k, v in state.available.items() if v} == {k: v for k, v in expected.items() if v}
            for worker in state.workers.values():
                assert (worker.state == LEASED) == (worker.worker_id in holders), "leased to nobody"
            assert all(away.granted for away in state.away.by_id.values())
        for owner in self.owners:
            for key, wanted in owner.wanted.items():
                for node in self.nodes.values():
                    free, kept = node.state.available, node.state._withheld  # (for a large one, for a while)
                    room = all(free.get(n, 0) - kept.get(n, 0) >= x for n, x in SHAPES[key].items())
                    assert not (wanted and room), "somebody waits while there is room"


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.jobs = 0

    def pick(self, data: Any, things: Any) -> Any:
        return data.draw(st.sampled_from(sorted(things)))

    @rule(data=st.data())
    @precondition(lambda self: len(self.world.owners) < 5)
    def owner(self, data: Any) -> None:
        node = self.world.nodes[self.pick(data, self.world.nodes)]
        self.jobs += 1
        self.world.owners.append(Owner(node, self.jobs.to_bytes(4, "big")))

    @rule(data=st.data(), key=st.integers(0, len(SHAPES) - 1), wanted=st.integers(0, 4))
    @precondition(lambda self: self.world.owners)
    def demand(self, data: Any, key: int, wanted: int) -> None:
        data.draw(st.sampled_from(self.world.owners)).demand(key, wanted)

    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        owners = [owner for owner in self.world.owners if owner.leases]
        if owners:
            owner = data.draw(st.sampled_from(owners))
            owner.give_back(self.pick(data, owner.leases))

    @rule(data=st.data(), twice=st.booleans())
    def deliver(self, data: Any, twice: bool) -> None:
        links = self.world.busy()
        if links:
            self.world.deliver(data.draw(st.sampled_from(links)), twice)

    @rule()
    def workers(self) -> None:
        for node in self.world.nodes.values():
            node.processes.turn()

    @rule(data=st.data(), only_here=st.booleans())
    def cut(self, data: Any, only_here: bool) -> None:
        if self.world.ends:
            self.world.cut(data.draw(st.sampled_from(list(self.world.ends))), only_here)

    @rule(data=st.data())
    def worker_dies(self, data: Any) -> None:
        node = self.world.nodes[self.pick(data, self.world.nodes)]
        if node.state.workers:
            node.processes.died(self.pick(data, node.state.workers))

    @rule(data=st.data())
    @precondition(lambda self: self.world.owners)
    def owner_dies(self, data: Any) -> None:
        owner = data.draw(st.sampled_from(self.world.owners))
        self.world.owners.remove(owner)
        owner.closed = True
        orphans, commands = owner.node.state.owner_gone(owner)
        for worker in orphans:
            owner.node.processes.end(worker.worker_id, "its owner has ended", intended=True)
        owner.node.run(commands)

    @rule(data=st.data())
    @precondition(lambda self: len(self.world.nodes) > 2)
    def node_dies(self, data: Any) -> None:
        self.world.kill(self.pick(data, self.world.nodes))

    @rule(seconds=st.sampled_from([0.05, 0.3, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.loop.run(self.world.loop.now + seconds)

    @rule()
    def gossip(self) -> None:
        self.world.gossip()

    @rule()
    def quiet(self) -> None:
        self.world.settle()
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()
        self.world.check()
        for owner in self.world.owners:
            for key in owner.wanted:
                owner.demand(key, 0)
        self.world.settle()  # what was promised already still comes
        for owner in self.world.owners:
            for number in list(owner.leases):
                owner.give_back(number)
        self.world.settle()
        for node in self.world.nodes.values():
            assert not node.state.leases and not node.state.away.by_id
            assert node.state.available == node.state.total
            assert all(worker.state == IDLE for worker in node.state.workers.values())


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestForwarding = pytest.mark.slow(Machine.TestCase)


def test_an_overflow_goes_to_another_node_and_comes_back() -> None:
    world = World()
    first = world.nodes[bytes([1]) * 28]
    owner = Owner(first, b"jobA")
    world.owners.append(owner)
    owner.demand(0, 6)
    world.settle()
    world.check()
    assert len(owner.leases) == 6 and owner.seen[0] == 6
    for number in list(owner.leases):
        owner.give_back(number)
    world.settle()
    assert all(node.state.available == node.state.total for node in world.nodes.values())


def test_a_node_that_dies_takes_its_leases_along() -> None:
    world = World()
    owner = Owner(world.nodes[bytes([1]) * 28], b"jobA")
    world.owners.append(owner)
    owner.demand(0, 6)
    world.settle()
    world.kill(bytes([2]) * 28)
    assert len(owner.leases) == 3
    world.settle()
    world.check()


def test_the_workers_of_a_dead_nodes_owners_end() -> None:
    world = World()
    owner = Owner(world.nodes[bytes([1]) * 28], b"jobA")
    world.owners.append(owner)
    owner.demand(0, 6)
    world.settle()
    world.kill(bytes([1]) * 28)
    world.settle()
    for node in world.nodes.values():
        assert node.state.available == node.state.total and not node.state.workers


def test_leases_outlive_a_lost_connection() -> None:
    world = World()
    owner = Owner(world.nodes[bytes([1]) * 28], b"jobA")
    world.owners.append(owner)
    owner.demand(0, 6)
    world.settle()
    for link in list(world.ends):
        if link in world.ends:
            world.cut(link)
    world.settle()
    world.check()
    assert len(owner.leases) == 6 and owner.seen[0] == 6


def test_an_answer_that_is_said_into_a_connection_that_the_other_side_has_lost() -> None:
    """As seed 2510 of the simulation had it: the request came by a new connection, its answer went into the
    old one, and only the one who had answered was told that this had not arrived."""
    world = World()
    here, there = bytes([1]) * 28, bytes([2]) * 28
    owner = Owner(world.nodes[here], b"jobA")
    world.owners.append(owner)
    link = world.link(here, there)
    assert link is not None
    world.cut(link, only_here=True)
    owner.demand(0, 4)
    world.settle()
    world.check()
    assert len(owner.leases) == 4


def test_the_end_of_a_worker_elsewhere_is_wanted_until_it_has_come() -> None:
    world = World()
    here, there = bytes([1]) * 28, bytes([2]) * 28
    owner = Owner(world.nodes[here], b"jobA")
    world.owners.append(owner)
    owner.demand(0, 4)
    world.settle()
    away = world.nodes[here].state.away.at(there)[0]
    link = world.links[here, there]
    world.nodes[here].forwarding.kill(away.worker_id, owner, "its owner has lost the connection to it")
    world.cut(link)
    world.settle()
    assert away.worker_id not in world.nodes[there].state.workers
    world.check()


def test_a_job_gets_its_share_of_what_another_holds() -> None:
    world = World()
    node = world.nodes[bytes([1]) * 28]
    greedy, modest = Owner(node, b"jobA"), Owner(node, b"jobB")
    world.owners += [greedy, modest]
    greedy.demand(0, 6)
    world.settle()
    assert len(greedy.leases) == 6
    greedy.demand(0, 10)
    modest.demand(0, 10)
    world.loop.run(world.loop.now + limits.LEASE_QUANTUM)
    world.settle()
    assert len(greedy.leases) == len(modest.leases) == 3


def test_a_queue_on_another_node_leaves_room_for_us() -> None:
    """The owner of a long queue is on one node, we are on another: neither node sees both."""
    world = World()
    greedy = Owner(world.nodes[bytes([1]) * 28], b"jobA")
    modest = Owner(world.nodes[bytes([3]) * 28], b"jobB")
    world.owners += [greedy, modest]
    greedy.demand(0, 6)
    world.settle()
    assert len(greedy.leases) == 6, "everything"
    for _ in range(10):
        for owner in (greedy, modest):
            owner.demand(0, 10)
        world.settle()
    assert 2 <= len(modest.leases) <= 4 and len(greedy.leases) + len(modest.leases) == 6
    many = len(greedy.leases)
    for _ in range(5):
        world.settle()
    assert len(greedy.leases) == many, "and there it stays"


def test_a_node_that_cannot_be_reached_is_left_out() -> None:
    world = World()
    one, two, three = (bytes([n]) * 28 for n in (1, 2, 3))
    world.walls.add(frozenset((one, two)))
    owner = Owner(world.nodes[one], b"jobA")
    world.owners.append(owner)
    owner.demand(0, 4)
    world.settle()
    assert len(owner.leases) == 3, "the two here, and the one of the other node"
    assert not world.nodes[one].state.view.nodes[two].reachable  # type: ignore[union-attr]
    world.walls.clear()
    world.loop.run(world.loop.now + limits.UNREACHABLE)
    world.settle()
    assert len(owner.leases) == 4
    world.check()


def test_room_kept_for_who_has_stopped_to_wish_is_free() -> None:
    """Even if nothing else happens on that node."""
    world = World()
    one, two, three = (bytes([n]) * 28 for n in (1, 2, 3))
    node = world.nodes[two]
    everything = {"CPU": 3 * CPU}
    wish = world.link(three, two)
    assert wish is not None
    node.neighbours.handlers[m.FORWARD_WISH](wish.other, [m.FORWARD_WISH, b"jobB", everything, 0, 0.0])
    assert node.state._withheld == everything
    owner = Owner(world.nodes[one], b"jobA")
    world.owners.append(owner)
    owner.demand(0, 4)
    world.arrive()
    assert len(owner.leases) == 3, "it is kept for the other one, as yet"
    world.loop.run(world.loop.now + limits.WISH_LASTS)
    world.settle()
    assert len(owner.leases) == 4
    world.check()
