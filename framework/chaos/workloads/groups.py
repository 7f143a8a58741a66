"""Placement groups."""

from __future__ import annotations

import os
from typing import Any

import framework as fw
from framework.chaos.ledger import Wrong
from framework.chaos.workload import Workload
from framework.exceptions import GetTimeoutError, PlacementGroupRemovedError
from framework.util.placement_group import (
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from framework.util.scheduling_strategies import PlacementGroupSchedulingStrategy

_STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_BUNDLES, _TASKS = 2, 6


@fw.remote(num_cpus=0.25, max_retries=-1)
def inside(x: int) -> tuple[int, str]:
    """The group that it runs in."""
    group = get_current_placement_group()
    return x, group.id.hex() if group is not None else ""


class _Tenant:
    """Lives in a group."""

    def group(self) -> str:
        """Which one."""
        group = get_current_placement_group()
        return group.id.hex() if group is not None else ""

    def pid(self) -> int:
        """Its process."""
        return os.getpid()


Tenant: Any = fw.remote(num_cpus=0.25, max_restarts=-1, max_task_retries=-1)(_Tenant)


class Groups(Workload):
    """Groups of each strategy are made, used by tasks and an actor in each bundle, and removed; bundles of
    nodes that die meanwhile are placed anew. What is asked of a removed group fails as it should."""

    name = "groups"
    text = "placement groups, tasks and actors in their bundles"

    def round(self, number: int) -> None:
        """See the class."""
        strategy = _STRATEGIES[number % len(_STRATEGIES)]
        group = placement_group([{"CPU": 0.5}] * _BUNDLES, strategy=strategy)
        try:
            self.ledger.asked += 1
            if self.get([group.ready()]) != [group]:
                raise Wrong("ready() of a group has given something else")
            self.ledger.answered += 1
            self._check_places(group, strategy)
            self._use(group)
        finally:
            remove_placement_group(group)
        self._check_removed(group)

    def _use(self, group: Any) -> None:
        here = [PlacementGroupSchedulingStrategy(group, index) for index in range(_BUNDLES)]
        tasks = [inside.options(scheduling_strategy=here[x % _BUNDLES]).remote(x) for x in range(_TASKS)]
        tenants = [Tenant.options(scheduling_strategy=strategy).remote() for strategy in here]
        said = [tenant.group.remote() for tenant in tenants for _ in range(3)]
        self.expect(tasks, [(x, group.id.hex()) for x in range(_TASKS)], "task in a group")
        self.expect(said, [group.id.hex()] * len(said), "actor in a group")

    def _check_places(self, group: Any, strategy: str) -> None:
        """As the head has it at this moment."""
        row = placement_group_table(group)
        places = [node for node in row["bundles_to_node_id"].values() if node]
        if len(places) == _BUNDLES and row["state"] == "CREATED":
            if strategy.startswith("STRICT") and len(set(places)) != (1 if "PACK" in strategy else _BUNDLES):
                raise Wrong(f"a {strategy} group lies on {places}")
            self.ledger.notes[f"{strategy} placed"] += 1
        else:
            self.ledger.notes["groups that had lost a bundle when they were looked at"] += 1

    def _check_removed(self, group: Any) -> None:
        self.ledger.asked += 1
        ref = inside.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0)).remote(1)
        try:
            found = fw.get(ref, timeout=self.left())
        except GetTimeoutError as error:
            raise self.hung([ref], "a task in a group that was removed") from error
        except PlacementGroupRemovedError:
            self.ledger.answered += 1
        else:
            raise Wrong(f"a task in a group that was removed has given {found!r}")
