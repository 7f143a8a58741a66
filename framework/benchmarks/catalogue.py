"""Every workload, in the order of the table."""

from __future__ import annotations

import re
from collections.abc import Collection

from framework.benchmarks import actors, floors, fresh, idle, loads, objects, peers, stored, tasks, transfers
from framework.benchmarks.model import Workload

PRODUCT: tuple[Workload, ...] = (
    objects.WORKLOADS
    + stored.WORKLOADS
    + tasks.WORKLOADS
    + actors.WORKLOADS
    + loads.WORKLOADS
    + idle.WORKLOADS
    + transfers.WORKLOADS
    + fresh.WORKLOADS
)
ALL: tuple[Workload, ...] = floors.WORKLOADS + PRODUCT + peers.WORKLOADS


def workload_named(name: str) -> Workload:
    """The workload whose first row is `name`; `KeyError` when there is none."""
    for workload in ALL:
        if workload.name == name:
            return workload
    raise KeyError(name)


def select(pattern: str | None, *, with_peers: bool, names: Collection[str] | None = None) -> list[Workload]:
    """Workloads with a row that matches `pattern` (all without one) and is among `names` (if there are any;
    peers, if they are wanted, come with all of their rows), and the floors that their rows stand on.

    The pattern is searched for, without regard to case. `re.error` when it is not a regular expression.
    """
    expression = re.compile(pattern or "", re.IGNORECASE)
    candidates = ALL if with_peers else floors.WORKLOADS + PRODUCT

    def asked_for(load: Workload) -> bool:
        listed = None if load in peers.WORKLOADS else names
        return any(
            expression.search(row.name) and (listed is None or row.name in listed) for row in load.rows
        )

    wanted = [load for load in candidates if asked_for(load)]
    needed = {row.floor for load in wanted for row in load.rows}
    extra = [load for load in floors.WORKLOADS if load.name in needed and load not in wanted]
    return [load for load in candidates if load in wanted or load in extra]
