"""What a node tells of the requests that wait there."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from framework._base import limits
from framework._state.demands import Held, Waiting
from framework._state.node import NodeState


def pending(state: NodeState) -> list[list[Any]]:
    """What waits for room: [units, strategy, count], one per shape, most first."""
    found: dict[Any, list[Any]] = {}
    for demand in state.demands.values():
        if demand.missing > 0:
            row = found.setdefault(demand.shape, [demand.units, demand.strategy, 0])
            row[2] += demand.missing
    return sorted(found.values(), key=lambda row: -row[2])[: limits.PENDING_SHAPES]


def wishes(state: NodeState) -> Waiting:
    """What waits, as it was last seen: for other nodes to know."""
    return [(name, demand) for name, demand in state.waiting if not demand.wish][: limits.RECALL_LOOKS]


def holds(state: NodeState, owner: Hashable, key: int) -> bool:
    """Whether an owner has leases for this key, here or elsewhere."""
    leases: list[Held] = [*state.leases.values(), *state.away.by_id.values()]
    return any(lease.owner == owner and lease.key == key for lease in leases)


def why(state: NodeState, owner: Hashable, key: int) -> dict[str, Any]:
    """What keeps an owner's tasks waiting: ``needs``, ``strategy``, ``never`` (text or None), ``starting``
    (leases whose worker is being started), ``asked`` (leases asked of other nodes), ``missing``, ``before``
    (other requests that wait), ``free`` (node -> what is free there), ``held`` (leases that it has). Empty
    for what was never asked for."""
    demand = state.demands.get((owner, key))
    if demand is None:
        return {}
    mine = [a for a in state.leases.values() if (a.owner, a.key) == (owner, key)]
    away = [a for a in state.away.by_id.values() if (a.owner, a.key) == (owner, key)]
    free = {state.node_id: state.available}
    if state.view is not None:
        free = {row.hex: row.available for row in state.view.nodes.values() if row.open}
    return {
        "needs": demand.units,
        "strategy": demand.strategy,
        "never": state.never(demand.units, demand.strategy),
        "starting": sum(1 for allocation in mine if allocation.worker is None),
        "asked": sum(1 for lease in away if not lease.granted),
        "missing": max(0, demand.missing),
        "before": sum(1 for d in state.demands.values() if d is not demand and d.missing > 0),
        "free": {node: dict(units) for node, units in free.items()},
        "held": sum(1 for a in mine if a.worker is not None) + sum(1 for a in away if a.granted),
    }
