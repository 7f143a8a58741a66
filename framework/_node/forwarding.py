"""Leases across nodes: what this node has no room for goes to others, and others' owners get workers here.

Owners only know their own node. That one asks another for leases (FORWARD) under its own numbers, which are
the numbers that its owners know. They are granted (FORWARDED), refused (FORWARD_REFUSED, with what is free
there) or failed at once: nothing waits in a queue elsewhere.

Every message may be lost with its connection, or come twice. After a lost connection the asking side begins:
what it had to say meanwhile, what it has asked for, then all that it holds (FORWARD_HELD); the other side
ends what is not among that, and says what it does not have any more. Leases live as long as both nodes do.

Loaded in clusters only.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection, Frame, Handler
from framework._state.demands import Demand
from framework._state.node import IDLE, RETIRED, env_key
from framework._state.scheduling import ClusterView
from framework._state.waiting import holds, wishes
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._node.neighbours import Neighbours
    from framework._node.service import NodeService

log = logging.getLogger("framework.node")

UNKNOWN = -1
"""As the task that was running: nobody knows, so it counts as begun."""


class Guest:
    """Another node, where the node service expects an owner: what an owner would be told goes to that node,
    in its own numbers."""

    __slots__ = ("_forwarding", "_pressed", "closed", "node_id")

    def __init__(self, forwarding: Forwarding, node_id: bytes) -> None:
        self._forwarding = forwarding
        self._pressed = 0.0
        self.node_id = node_id
        self.closed = False

    def cast(self, opcode: int, *fields: Any) -> None:
        """As of a `Connection`. What is lost with a connection is found out when there is one again."""
        frame: tuple[Any, ...]
        if opcode == m.LEASE_GRANT:
            number, _, worker, address, gpus = fields
            frame = (m.FORWARDED, number, worker, address, gpus)
        elif opcode == m.LEASE_LOST:
            frame = (m.FORWARD_LOST, *fields)
        elif opcode == m.LEASE_RECALL:
            frame = (m.FORWARD_RECALL, [fields[0]])
        elif opcode == m.LEASE_INFEASIBLE:
            number, _, error, text = fields
            frame = (m.FORWARD_FAILED, number, error, text)
        else:
            assert opcode == m.LEASE_PRESSURE, m.CATALOGUE[opcode].name
            now = self._forwarding.now()
            if now - self._pressed < limits.SCHEDULE_AGAIN:
                return
            self._pressed = now
            frame = (m.FORWARD_RECALL, [])
        self._forwarding.send(self.node_id, *frame)


class Forwarding:
    """Both sides of it, for one node."""

    def __init__(self, loop: asyncio.AbstractEventLoop, node: NodeService, neighbours: Neighbours) -> None:
        self._loop = loop
        self._node = node
        self._neighbours = neighbours
        self.now = loop.time
        self.view = ClusterView(node.node_id)
        self._guests: dict[bytes, Guest] = {}
        self._unsent: dict[bytes, list[tuple[Any, ...]]] = {}  #: for nodes that there is no connection to
        self._turn = 0
        self._attempts: dict[bytes, int] = {}  #: to reach a node, since it was last heard
        self._asked_of: set[bytes] = set()  #: nodes that have, or had, leases for this one
        self._resuming: dict[bytes, asyncio.TimerHandle] = {}
        node.state.enter(self.view)
        node.forwarding = self
        handlers: dict[int, Handler] = {
            m.FORWARD: self._asked,
            m.FORWARDED: self._granted,
            m.FORWARD_REFUSED: self._refused,
            m.FORWARD_FAILED: self._failed,
            m.FORWARD_RETURN: self._given_back,
            m.FORWARD_LOST: self._lost,
            m.FORWARD_RECALL: self._recalled,
            m.FORWARD_HELD: self._held,
            m.FORWARD_KILL: self._kill,
            m.FORWARD_WISH: self._wished,
        }
        neighbours.handlers |= {opcode: self._hearing(handler) for opcode, handler in handlers.items()}
        neighbours.on_lost.append(lambda connection: self._resume_soon(connection.ident))
        neighbours.on_missed.append(self._resume_soon)
        neighbours.on_gone.append(self._node_gone)

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """The head tells what has changed; this node's own row among it."""
        self.view.apply(rows)
        own = self.view.nodes.get(self._node.node_id)
        self._node.state.draining = own is not None and own.draining
        if self._node.state.unmet or self._node.state.draining:
            self._node.run(self._node.state.schedule())

    def close(self) -> None:
        """No more timers."""
        for timer in self._resuming.values():
            timer.cancel()

    def send(self, node_id: bytes, *frame: Any) -> bool:
        """To another node's manager, if there is a way to it."""
        connection = self._neighbours.connection(node_id)
        if connection is None:
            return False
        connection.cast(*frame)
        return True

    # ---- this node asks ------------------------------------------------------------------------------

    def forward(self, node_id: bytes, leases: list[int], demand: Demand) -> None:
        """Ask another node for these leases."""
        self._asked_of.add(node_id)
        if not self.send(node_id, *_request(leases, demand)):
            self._loop.call_soon(self._unreachable, node_id, leases)

    def _unreachable(self, node_id: bytes, leases: list[int]) -> None:
        self._node.run(self._node.state.away_refused(leases, node_id, None))

    def give_back(self, node_id: bytes, number: int, reason: str) -> None:
        """A lease is not needed any more. With a `reason`, its worker must end."""
        self._tell(node_id, m.FORWARD_RETURN, number, reason)

    def kill(self, worker_id: bytes, owner: Connection, reason: str) -> None:
        """An owner wants the end of a worker elsewhere that it has leased."""
        away = self._node.state.away.of_worker(worker_id, owner)
        if away is not None:
            away.ending = reason
            self._tell(away.node_id, m.FORWARD_KILL, away.lease_id, reason)

    def _tell(self, node_id: bytes, *frame: Any) -> None:
        """What must arrive as long as that node lives."""
        if node_id in self._unsent or not self.send(node_id, *frame):
            if self._neighbours.dead(node_id) is None:
                self._unsent.setdefault(node_id, []).append(frame)
                self._resume_soon(node_id)

    def wish(self) -> None:
        """Let others know what waits here that could run there: some of them each time, in turn."""
        state = self._node.state
        for (owner, key), demand in wishes(state):
            nodes = [
                node_id
                for node_id in sorted(self.view.nodes)
                if node_id != self._node.node_id and self.view.allows(node_id, demand.units, demand.strategy)
            ]
            waited = 0.0 if holds(state, owner, key) else self.now() - demand.since
            for step in range(min(limits.WISH_NODES, len(nodes))):
                node_id = nodes[(self._turn + step) % len(nodes)]
                self.send(node_id, m.FORWARD_WISH, demand.job, demand.units, demand.priority, waited)
        self._turn += limits.WISH_NODES

    def _wished(self, connection: Connection, frame: Frame) -> None:
        _, job, units, priority, waited = frame
        guest = self._guest(connection.ident)
        self._node.run(self._node.state.wish(guest, job, units, priority, waited))

    def offer(self, guest: Guest) -> None:
        """There is room for what it had wished for, for a moment."""
        self.send(guest.node_id, m.FORWARD_REFUSED, [], self._own_row())

    def _granted(self, connection: Connection, frame: Frame) -> None:
        _, number, worker_id, address, gpus = frame
        state = self._node.state
        known = state.away.by_id.get(number)
        if known is not None and known.granted:
            return
        away = state.away_granted(number, connection.ident, worker_id)
        if away is None:
            connection.cast(m.FORWARD_RETURN, number, "")
        else:
            away.owner.cast(m.LEASE_GRANT, away.key, number, worker_id, address, gpus)

    def _refused(self, connection: Connection, frame: Frame) -> None:
        _, leases, row = frame
        self._node.run(self._node.state.away_refused(leases, connection.ident, row))

    def _failed(self, connection: Connection, frame: Frame) -> None:
        _, number, _, text = frame
        self._node.run(self._node.state.away_failed(number, connection.ident, text))

    def _lost(self, connection: Connection, frame: Frame) -> None:
        _, number, running, pid, detail, kind = frame
        away, commands = self._node.state.away_over(number, connection.ident)
        if away is not None and kind != RETIRED:  # (of that the owner knows by the worker itself)
            away.owner.cast(m.LEASE_LOST, number, running, pid, detail, kind)
        self._node.run(commands)

    def _recalled(self, connection: Connection, frame: Frame) -> None:
        table = self._node.state.away
        if not frame[1]:
            for owner in dict.fromkeys(away.owner for away in table.at(connection.ident)):
                owner.cast(m.LEASE_PRESSURE)
        for number in frame[1]:
            away = table.by_id.get(number)
            if away is not None and away.node_id == connection.ident:
                away.owner.cast(m.LEASE_RECALL, number)

    # ---- lost connections, lost nodes ----------------------------------------------------------------

    def _resume_soon(self, node_id: bytes) -> None:
        if node_id not in self._resuming and self._neighbours.dead(node_id) is None:
            if node_id in self._asked_of:
                patient = self._attempts.get(node_id, 0) >= limits.FORWARD_ATTEMPTS
                delay = limits.UNREACHABLE / 2 if patient else limits.FORWARD_AGAIN
                self._resuming[node_id] = self._loop.call_later(delay, self._resume, node_id)

    def _resume(self, node_id: bytes) -> None:
        """Some of what was said may not have arrived: make sure that both sides know the same."""
        del self._resuming[node_id]
        if self._node.stopping or self._neighbours.dead(node_id) is not None:
            self._unsent.pop(node_id, None)
            return
        self._attempts[node_id] = attempts = self._attempts.get(node_id, 0) + 1
        if attempts == limits.FORWARD_ATTEMPTS:
            self._shun(node_id)
        connection = self._neighbours.connection(node_id)
        if connection is None:
            self._resume_soon(node_id)
            return
        for frame in self._unsent.pop(node_id, ()):
            connection.cast(*frame)
        held = self._node.state.away.at(node_id)
        for away in held:
            if not away.granted:
                connection.cast(*_request([away.lease_id], away.demand))
            elif away.ending:
                connection.cast(m.FORWARD_KILL, away.lease_id, away.ending)
        connection.cast(m.FORWARD_HELD, [away.lease_id for away in held])

    def _hearing(self, handler: Handler) -> Handler:
        def heard(connection: Connection, frame: Frame) -> None:
            if self._attempts.pop(connection.ident, None):
                self._reachable(connection.ident)
            handler(connection, frame)

        return heard

    def _shun(self, node_id: bytes) -> None:
        """The head says that it lives, but there is no way to it from here: others are asked for a while."""
        log.warning("the node %s cannot be reached from here", node_id.hex()[:8])
        row = self.view.nodes.get(node_id)
        if row is not None:
            row.reachable = False
        self._loop.call_later(limits.UNREACHABLE, self._reachable, node_id)
        asked = [away.lease_id for away in self._node.state.away.at(node_id) if not away.granted]
        for number in asked:  # should it hear of them after all, they are not wanted
            self._unsent.setdefault(node_id, []).append((m.FORWARD_RETURN, number, ""))
        self._unreachable(node_id, asked)

    def _reachable(self, node_id: bytes) -> None:
        self._attempts.pop(node_id, None)
        row = self.view.nodes.get(node_id)
        if row is not None:
            row.reachable = True

    def _node_gone(self, node_id: bytes, reason: str) -> None:
        node = self._node
        self._unsent.pop(node_id, None)
        self._asked_of.discard(node_id)
        self._attempts.pop(node_id, None)
        commands = node.state.node_gone(node_id, reason)
        guest = self._guests.pop(node_id, None)
        if guest is not None:
            guest.closed = True
            orphans, more = node.state.owner_gone(guest)
            for worker in orphans:
                why = f"the node {node_id.hex()[:8]}, which had submitted its tasks, is dead"
                node.processes.end(worker.worker_id, why, intended=True)
            commands = commands + more
        node.run(commands)

    def lease_lost(self, owner: Connection, number: int, text: str) -> None:
        """A lease of this node's owner is lost with its node."""
        if not owner.closed:
            owner.cast(m.LEASE_LOST, number, UNKNOWN, 0, text, "node")

    # ---- others ask this node ------------------------------------------------------------------------

    def _guest(self, node_id: bytes) -> Guest:
        guest = self._guests.get(node_id)
        if guest is None:
            guest = self._guests[node_id] = Guest(self, node_id)
        return guest

    def _asked(self, connection: Connection, frame: Frame) -> None:
        _, numbers, job, units, env, retriable, priority = frame
        node = self._node
        guest = self._guest(connection.ident)
        node.run(node.state.forget_wishes())
        refused = []
        for number in numbers:
            commands = node.state.lend(guest, number, units, env_key(env), job, retriable, priority)
            if commands is None:
                refused.append(number)
            else:
                node.run(commands)
        if refused:
            connection.cast(m.FORWARD_REFUSED, refused, self._own_row())

    def _own_row(self) -> dict[str, Any]:
        state = self._node.state
        return {
            "node_id": self._node.node_id,
            "available": state.available,
            "total": state.total,
            "draining": state.draining,
        }

    def _given_back(self, connection: Connection, frame: Frame) -> None:
        self._end(self._guest(connection.ident), frame[1], frame[2])

    def _end(self, guest: Guest, number: int, reason: str) -> None:
        node = self._node
        allocation = node.state.guest_lease(guest, number)
        if allocation is None:
            return
        worker = allocation.worker
        if reason and worker is not None:
            node.processes.end(worker.worker_id, reason, intended=True)
            return
        node.run(node.state.lease_returned(allocation.lease_id, guest, node.now()))
        if worker is not None:
            node.output.set_active(worker.worker_id, worker.state != IDLE)
            node.watch_idle()

    def _kill(self, connection: Connection, frame: Frame) -> None:
        _, number, reason = frame
        allocation = self._node.state.guest_lease(self._guest(connection.ident), number)
        if allocation is not None and allocation.worker is not None:
            self._node.processes.end(allocation.worker.worker_id, reason, intended=True)

    def _held(self, connection: Connection, frame: Frame) -> None:
        """All that the other node's owners have here, as far as that node knows."""
        guest = self._guest(connection.ident)
        here = self._node.state.guest_leases(guest)
        theirs = set(frame[1])
        for number in here:
            if number not in theirs:
                self._end(guest, number, "its owner's node does not know of it any more")
        for number in theirs - here.keys():
            text = "it was gone when the connection between the nodes was back"
            connection.cast(m.FORWARD_LOST, number, UNKNOWN, 0, text, "")


def _request(leases: list[int], demand: Demand) -> tuple[Any, ...]:
    env = dict(demand.env) or None
    return (m.FORWARD, leases, demand.job, demand.units, env, demand.retriable, demand.priority)
