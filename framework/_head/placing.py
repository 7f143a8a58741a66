"""On which node of a cluster an actor is started.

Those for which no node has room wait here, for a moment. Then they are sent to a node that could serve them,
and wait in its queue, where actors come before tasks: else tasks, which take what becomes free on a node
before it is seen here, could keep an actor waiting for ever. If another node has room meanwhile, they go
there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from framework._base import limits
from framework._net.connection import Connection
from framework._state.actor_records import ALIVE, DEAD, ActorRecord
from framework._state.actors import ActorDirectory
from framework._state.scheduling import ClusterView
from framework._wire import messages as m


class _Node:
    """A node that is connected, and what was sent to it that its latest load does not reckon in."""

    __slots__ = ("claims", "connection", "row", "sent")

    def __init__(self, connection: Connection, row: dict[str, Any]) -> None:
        self.connection = connection
        self.row = row
        self.sent = 0
        self.claims: deque[tuple[int, dict[str, int]]] = deque()


class _Wait:
    """An actor that has not been sent to a node, or waits in the queue of one."""

    __slots__ = ("incarnation", "node", "since", "spec")

    def __init__(self, spec: dict[str, Any], incarnation: int, since: float) -> None:
        self.spec = spec
        self.incarnation = incarnation
        self.since = since
        self.node = b""


class Placing:
    """Chooses nodes, and keeps those that have to wait.

    `fail(actor, incarnation, text)` is called for an actor that can never be started, `warn(record, text)`
    once per reason for one that can only be started when nodes come that are not there.
    """

    def __init__(
        self,
        actors: ActorDirectory,
        *,
        node_of: Callable[[Any], bytes],
        fail: Callable[[bytes, int, str], None],
        warn: Callable[[ActorRecord, str], None],
        now: Callable[[], float],
    ) -> None:
        """`node_of(owner)`: the node of the process that made an actor, as far as it is known."""
        self._now = now
        self.view = ClusterView()
        self._actors = actors
        self._node_of = node_of
        self._fail = fail
        self._warn = warn
        self._nodes: dict[bytes, _Node] = {}
        self._homeless: dict[bytes, _Wait] = {}
        self._queued: dict[bytes, _Wait] = {}
        self._warned: dict[bytes, str] = {}

    # ---- nodes ---------------------------------------------------------------------------------------

    def node_up(self, node_id: bytes, connection: Connection, row: dict[str, Any]) -> None:
        """It is connected (again)."""
        self._nodes[node_id] = _Node(connection, row)
        self.view.apply([row])

    def node_away(self, node_id: bytes) -> None:
        """It is not connected for the moment: nothing is sent there."""
        self._nodes.pop(node_id, None)

    def node_gone(self, node_id: bytes, reason: str) -> None:
        """It is dead."""
        self._nodes.pop(node_id, None)
        self.view.remove(node_id, reason)

    def known(self, row: dict[str, Any]) -> None:
        """A row of a node that may not be connected."""
        self.view.apply([row])
        node = self._nodes.get(row["node_id"])
        if node is not None:
            node.row = row
            self._reckon(node)

    def load(self, row: dict[str, Any], seen: int) -> None:
        """A node tells what is free there, after it has seen that many of our messages."""
        node = self._nodes.get(row["node_id"])
        if node is None:
            return
        node.row = row
        while node.claims and node.claims[0][0] <= seen:
            node.claims.popleft()
        self.view.apply([row])
        self._reckon(node)

    def _reckon(self, node: _Node) -> None:
        for _, units in node.claims:
            self.view.took(node.row["node_id"], units)

    # ---- actors --------------------------------------------------------------------------------------

    def place(self, actor: bytes, spec: dict[str, Any], incarnation: int) -> bool:
        """Send it to a node, or have it wait. Whether it was sent."""
        self._queued.pop(actor, None)
        wait = self._homeless.get(actor)
        if wait is None or wait.incarnation != incarnation:
            wait = self._homeless[actor] = _Wait(spec, incarnation, self._now())
        wait.spec = spec
        return self._try(actor, wait)

    def _try(self, actor: bytes, wait: _Wait) -> bool:
        record = self._actors.records.get(actor)
        if not _wanted(record, wait) or record is None or record.node:
            self._forget(actor)
            return False
        spec = wait.spec
        strategy = spec.get("strategy")
        text = self.view.lost_cause(strategy) or self.view.unknown(strategy)
        if text is not None:
            self._forget(actor)
            self._fail(actor, wait.incarnation, text)
            return False
        node = self._choose(self.view, record, spec)
        if node is None:
            never = self.view.never(spec.get("placement", spec["resources"]), strategy)
            if never is not None:
                if self._warned.get(actor) != never:
                    self._warned[actor] = never
                    self._warn(record, never)
                return False
            if self._now() - wait.since < limits.PLACE_PATIENCE:
                return False
            node = self._choose(self._as_if_empty(), record, spec)
            if node is None:
                return False
            wait.node, wait.since = node.row["node_id"], self._now()
            self._queued[actor] = wait
        self._homeless.pop(actor, None)
        self._warned.pop(actor, None)
        self._send(actor, node, spec, wait.incarnation)
        return True

    def _choose(self, view: ClusterView, record: ActorRecord, spec: dict[str, Any]) -> _Node | None:
        """Ray's rule: what an actor needs to be placed may be more than it holds. Where there is no room for
        that, a place where it fits is better than none: those who hold the rest may be waiting for it."""
        near, strategy, units = self._node_of(record.owner), spec.get("strategy"), spec["resources"]
        wanted = spec.get("placement", units)
        chosen = view.choose(wanted, strategy, local=near)
        if chosen is None and view.never(wanted, strategy) is None:
            chosen = view.choose(units, strategy, local=near)
        return self._nodes.get(chosen) if chosen is not None else None

    def _as_if_empty(self) -> ClusterView:
        """The nodes as if only those that wait in their queues had something there."""
        view = ClusterView()
        view.groups_gone = self.view.groups_gone
        view.apply([{**row.facts, "available": row.total} for row in self.view.nodes.values()])
        for wait in self._queued.values():
            view.took(wait.node, wait.spec["resources"])
        return view

    def _send(self, actor: bytes, node: _Node, spec: dict[str, Any], incarnation: int) -> None:
        node_id, units = node.row["node_id"], spec["resources"]
        self._actors.placing(actor, node_id)
        node.sent += 1
        node.claims.append((node.sent, units))
        self.view.took(node_id, units)
        node.connection.cast(m.ACTOR_PLACE, actor, spec, incarnation)

    def _forget(self, actor: bytes) -> None:
        for table in (self._homeless, self._queued, self._warned):
            table.pop(actor, None)

    def placed(self, actor: bytes) -> None:
        """It has been started, or has failed to."""
        self._queued.pop(actor, None)

    def retry(self) -> None:
        """Something may have room now, or time has passed."""
        full: set[str] = set()
        for actor, wait in list(self._homeless.items()):
            kind = repr((wait.spec.get("placement"), wait.spec["resources"], wait.spec.get("strategy")))
            if kind not in full and not self._try(actor, wait) and actor in self._homeless:
                full.add(kind)  # those behind it find no room either
        for actor, wait in list(self._queued.items()):
            self._elsewhere(actor, wait)

    def _elsewhere(self, actor: bytes, wait: _Wait) -> None:
        """One that waits in the queue of a node: has another one room for it?"""
        record = self._actors.records.get(actor)
        if not _wanted(record, wait) or record is None or record.node != wait.node or record.state == ALIVE:
            self._queued.pop(actor, None)
            return
        if self._now() - wait.since < limits.PLACE_ELSEWHERE:
            return
        node, old = self._choose(self.view, record, wait.spec), self._nodes.get(wait.node)
        if node is None or old is None or node is old:
            return
        # It may have been begun there a moment ago: then it stays.
        wait.since = self._now()
        old.connection.cast(m.ACTOR_RECALL, actor, wait.incarnation)

    @property
    def waits(self) -> bool:
        """Whether `retry` may do something when nothing but time has passed."""
        return bool(self._homeless or self._queued)

    def pending(self) -> list[list[Any]]:
        """What waits: [units, strategy, count] of each kind."""
        kinds: dict[str, list[Any]] = {}
        for actor, wait in [*self._homeless.items(), *self._queued.items()]:
            if not _wanted(self._actors.records.get(actor), wait):
                self._forget(actor)
                continue
            units = wait.spec.get("placement") or wait.spec["resources"]
            strategy = wait.spec.get("strategy")
            kinds.setdefault(repr((sorted(units.items()), strategy)), [units, strategy, 0])[2] += 1
        return list(kinds.values())


def _wanted(record: ActorRecord | None, wait: _Wait) -> bool:
    return record is not None and record.state != DEAD and record.incarnation == wait.incarnation
