"""Leases that a node's owners have of workers elsewhere, as their own node manager keeps them.

The node manager of the owner names such a lease by its own number, as one of its own workers; the other node
knows it by that number too. A lease is asked for, then granted or refused, and given back, lost, or gone with
its node. The other node never queues: what it refuses is in this node's queue again.

Every message about a lease may come twice, late, or not at all, when a connection is lost; what counts is
what is in this table. Whatever the other node says of a lease that is not in here is answered by giving it
back.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from framework._state.demands import Demand


class Away:
    """One of them."""

    __slots__ = (
        "demand",
        "ending",
        "granted",
        "job",
        "key",
        "lease_id",
        "node_id",
        "owner",
        "priority",
        "recalled",
        "since",
        "units",
        "worker_id",
    )

    def __init__(
        self, lease_id: int, owner: Hashable, key: int, node_id: bytes, demand: Demand, now: float
    ) -> None:
        self.lease_id = lease_id
        self.owner: Any = owner
        self.key = key
        self.node_id = node_id
        self.demand = demand
        self.units = demand.units
        self.job = demand.job
        self.priority = demand.priority
        self.since = now
        self.recalled: float | None = None
        self.granted = False
        self.ending = ""  #: why its worker is to end; empty: it is not
        self.worker_id = b""

    @property
    def number(self) -> int:
        """By which its owner knows it."""
        return self.lease_id


class AwayLeases:
    """All of one node's owners."""

    def __init__(self) -> None:
        self.by_id: dict[int, Away] = {}

    def ask(self, away: Away) -> None:
        """It is being asked for."""
        self.by_id[away.lease_id] = away
        away.demand.granted += 1

    def granted(self, lease_id: int, node_id: bytes, worker_id: bytes, now: float) -> Away | None:
        """The other node has a worker for it. None: it is not wanted (any more)."""
        away = self._of(lease_id, node_id)
        if away is None:
            return None
        away.granted, away.worker_id, away.since = True, worker_id, now
        return away

    def refused(self, lease_id: int, node_id: bytes) -> Away | None:
        """It was asked for and is not given."""
        away = self._of(lease_id, node_id)
        if away is None or away.granted:
            return None
        del self.by_id[lease_id]
        away.demand.granted -= 1
        return away

    def over(self, lease_id: int, node_id: bytes) -> Away | None:
        """Its worker is gone."""
        away = self._of(lease_id, node_id)
        if away is not None:
            del self.by_id[lease_id]
            if not away.granted:
                away.demand.granted -= 1
        return away

    def returned(self, lease_id: int, owner: Hashable) -> Away | None:
        """Its owner does not need it any more."""
        away = self.by_id.get(lease_id)
        if away is None or away.owner != owner:
            return None
        return self.by_id.pop(lease_id)

    def owner_gone(self, owner: Hashable) -> list[Away]:
        """All leases of a process that has ended."""
        found = [away for away in self.by_id.values() if away.owner == owner]
        for away in found:
            del self.by_id[away.lease_id]
        return found

    def node_gone(self, node_id: bytes) -> list[Away]:
        """All leases of workers of a node that is dead. Those that were only asked for are wanted again."""
        found = [away for away in self.by_id.values() if away.node_id == node_id]
        for away in found:
            del self.by_id[away.lease_id]
            if not away.granted:
                away.demand.granted -= 1
        return found

    def at(self, node_id: bytes) -> list[Away]:
        """All at one node."""
        return [away for away in self.by_id.values() if away.node_id == node_id]

    def of_worker(self, worker_id: bytes, owner: Hashable) -> Away | None:
        """The lease that this owner has of that worker."""
        for away in self.by_id.values():
            if away.worker_id == worker_id and away.owner == owner:
                return away
        return None

    def _of(self, lease_id: int, node_id: bytes) -> Away | None:
        away = self.by_id.get(lease_id)
        return away if away is not None and away.node_id == node_id else None
