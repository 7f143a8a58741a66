"""Which paths of recovery a simulation has been on: how often some methods of the services were called.

A run that never reached a path says nothing about it, so a series of runs in which one was never reached
fails (`framework._sim.explore`).
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, Final

from framework._sim.patches import System

#: name -> (module, class, method)
PATHS: Final[dict[str, tuple[str, str, str]]] = {
    "a task is tried again": ("framework._runtime.submit", "Submitter", "retry"),
    "a task is lost with its worker": ("framework._runtime.leasing", "Leasing", "_lose"),
    "tasks are handed back unstarted": ("framework._runtime.leasing", "Leasing", "_returned"),
    "a lease is asked back": ("framework._runtime.leasing", "Leasing", "_recalled"),
    "a task is cancelled": ("framework._runtime.submit", "Submitter", "end_cancelled"),
    "an argument is lost": ("framework._runtime.submit", "Submitter", "_arg_lost"),
    "a lost object is made again": ("framework._runtime.lineage", "Lineage", "_run_again"),
    "an owner is asked to make an object again": ("framework._runtime.lineage", "Lineage", "_recover_for"),
    "a borrower is lost": ("framework._runtime.objects", "Objects", "borrower_lost"),
    "the head comes back to a driver or worker": ("framework._runtime.actors", "Actors", "head_returned"),
    "an actor's caller loses its connection": ("framework._runtime.actors", "Actors", "_cut_off"),
    "an actor is started again": ("framework._state.actors", "ActorDirectory", "_again"),
    "an actor is placed anew": ("framework._state.actors", "ActorDirectory", "_replace"),
    "actors are found alive by a new head": ("framework._state.actors", "ActorDirectory", "reported"),
    "a node loses its connection to the head": ("framework._state.membership", "Membership", "lost"),
    "a node is declared dead": ("framework._state.membership", "Membership", "_die"),
    "a bundle of a group is lost": ("framework._state.placement", "Placement", "_lose"),
    "a bundle cannot be had": ("framework._state.placement", "Placement", "_unable"),
    "a lease of another node is lost": ("framework._node.forwarding", "Forwarding", "_lost"),
    "another node refuses a lease": ("framework._node.forwarding", "Forwarding", "_refused"),
    "leases of a lost connection are compared": ("framework._node.forwarding", "Forwarding", "_resume"),
    "a copy is looked for elsewhere": ("framework._node.transfer_service", "TransferService", "_search"),
    "a transfer breaks off": ("framework._node.transfer_service", "TransferService", "_broken"),
    "an object is spilled": ("framework._node.spill", "LocalDisk", "write"),
    "a spilled object is read back": ("framework._node.spill", "LocalDisk", "read"),
    "a copy makes room": ("framework._state.store", "StoreState", "_drop_copy"),
    "the head is started again": ("framework._node.head_keeper", "HeadKeeper", "_again"),
    "a node joins": ("framework._state.membership", "Membership", "join"),
}

#: those that a series need not have reached. The owner of a lost object must live, on another node, and
#: somebody else be the first to miss it: that did not happen to the programs of 12,000 seeds.
#: (tests/integration/test_objects_node_death.py sees to it that it does.)
SELDOM: Final = frozenset({"an owner is asked to make an object again"})


class Counters:
    """How often each was reached in this run."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def install(self, system: System) -> None:
        """Within `System.installed`."""
        for name, (module, class_name, method) in PATHS.items():
            owner = getattr(importlib.import_module(module), class_name)
            inner = getattr(owner, method, None)
            if inner is None:
                raise LookupError(
                    f"{module}.{class_name} has no {method} (any more), which counts for {name!r}"
                )
            system._set(owner, method, self._counted(name, inner))

    def _counted(self, name: str, inner: Any) -> Any:
        counts = self.counts

        @functools.wraps(inner)
        def call(*args: Any, **options: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return inner(*args, **options)

        return call
