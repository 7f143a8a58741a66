"""Which errors the faults that really happened permit. With none, no error of the system is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from framework._base import limits
from framework._sim.record import Expect, Risk
from framework._sim.world import Happening

LINGER: Final = 30.0
"""Seconds after its end in which what has happened is still found out: a node is dead 4 s after its last
word, a head that has returned waits 10 s for drivers."""

RESTARTS_WITHIN: Final = limits.HEAD_RETURN_TIMEOUT + 5.0
"""Seconds in which more than `limits.HEAD_RESTARTS` deaths of the head may be its last."""

DECLARED_DEAD: Final = 2.5
"""Seconds that a node must at least have stood still to be declared dead: it had been heard a heartbeat
before, and heads may lose half a second by a jump of their clocks."""

NODE_WEIGHT: Final = 2
"""How many attempts the end of one node may cost: an owner may hold several of its workers, and send what
one has lost to the next, before that one's end is known too."""

TASK: Final = frozenset({"WorkerCrashedError", "NodeDiedError"})
OBJECT: Final = frozenset({"ObjectLostError"})  # (and all that derive from it)
SESSION: Final = frozenset({"LocalNodeDiedError", "ConnectionFailedError", "NodeDiedError"})
NOWHERE: Final = frozenset({"TaskUnschedulableError", "ActorUnschedulableError"})
NO_ROOM: Final = frozenset({"OutOfDiskError", "ObjectStoreFullError"})

#: may end any number of processes, and tear any connection: whoever is cut off long enough is declared dead
UNSURE: Final = frozenset({"partition", "stop"})


class Damage:
    """What has happened that something exposed in a span of time can have met.

    workers, nodes: how many ends there were, at the most; resets: of connections.
    """

    __slots__ = ("exits", "full", "head_forgot", "nodes", "resets", "session", "spilled", "workers")

    def __init__(self, happened: Sequence[Happening], since: float, until: float) -> None:
        self.workers = self.nodes = self.resets = self.exits = self.spilled = 0.0
        self.full = self.head_forgot = False
        self.session = _given_up(happened, until)
        for when, kind, facts in happened:
            over = facts.get("until", math.inf if kind in UNSURE else when)
            process, home = facts.get("process"), bool(facts.get("home"))
            if process == "node" and home and when <= until:
                # Dead, or not heard for so long that it may have been declared dead: for good.
                long = kind == "stop" and over - when >= DECLARED_DEAD
                self.session = self.session or kind == "crash" or long
            if when > until or over + LINGER < since:
                continue
            if kind == "crash":
                self.workers += process == "worker"
                self.nodes += process == "node"
                self.head_forgot = self.head_forgot or (process == "head" and _on_full_disk(happened, when))
            elif kind == "node_removed":
                self.nodes += 1
            elif kind in UNSURE:
                self.workers = self.nodes = self.resets = math.inf
                self.session = self.session or (kind == "stop" and home and process in ("node", "driver"))
            elif kind == "reset":
                self.resets += 1
            elif kind == "worker_exit":
                self.exits += 1
            elif kind == "disk_full":
                self.full = True
            elif kind == "disk_lost":
                if facts.get("head"):
                    self.head_forgot = True
                else:
                    self.spilled += 1

    @property
    def losses(self) -> float:
        """Attempts that it may have cost one task, or lives that it may have cost one actor."""
        return self.workers + NODE_WEIGHT * self.nodes + self.resets


def _on_full_disk(happened: Iterable[Happening], crash: float) -> bool:
    """Whether the head's disk took no writes when it died (or until shortly before): it forgets what it could
    not write down, as docs/cluster.md says."""
    return any(
        kind == "disk_full" and facts.get("home") and when <= crash <= facts.get("until", math.inf) + 1.5
        for when, kind, facts in happened
    )


def _given_up(happened: Iterable[Happening], until: float) -> bool:
    """Whether the head has died so often that it was not started again: the cluster ends then."""
    deaths = [
        when
        for when, kind, facts in happened
        if kind == "crash" and facts.get("process") == "head" and when <= until
    ]
    most = limits.HEAD_RESTARTS
    return any(last - first <= RESTARTS_WITHIN for first, last in zip(deaths, deaths[most:], strict=False))


def permitted(expect: Expect, happened: Sequence[Happening], ended: float) -> frozenset[str]:
    """The names of errors (or of bases of theirs) that are right for a wait that ended then."""
    found = set(expect.errors)
    for risk in expect.risks:
        damage = Damage(happened, risk.since, ended)
        found |= _of_risk(risk, damage)
        if damage.session:
            found |= SESSION
    return frozenset(found)


def _exhausted(budget: int, losses: float) -> bool:
    return losses > budget if budget >= 0 else False


def _of_risk(risk: Risk, damage: Damage) -> set[str]:
    found: set[str] = set()
    if risk.kind == "task":
        if _exhausted(risk.retries, damage.losses):
            found |= TASK
    elif risk.kind == "call":
        if _exhausted(risk.retries, damage.losses):
            found.add("ActorUnavailableError")
        if _exhausted(risk.restarts, damage.losses) or damage.head_forgot:
            found.add("ActorDiedError")
    elif risk.kind == "object":
        found |= _of_object(risk, damage)
    elif risk.kind == "node":
        if damage.nodes:
            found |= NOWHERE | TASK
    elif risk.kind == "group":
        if damage.head_forgot:
            found |= {"PlacementGroupRemovedError", "TaskUnschedulableError"}
        if damage.session:  # (what the head ends with the job may be heard of before the reason)
            found.add("PlacementGroupRemovedError")
    if damage.head_forgot and risk.kind == "control":
        found |= {"ValueError", "ActorDiedError"}
    if damage.full and (risk.stored or risk.kind in ("control", "object")):
        found |= NO_ROOM
    return found


def _of_object(risk: Risk, damage: Damage) -> set[str]:
    found: set[str] = set()
    if risk.owner != "driver":
        ends = damage.workers + damage.nodes
        if risk.owner == "worker":
            # (One whose caller has lost the connection to it is ended, before its task is run again.)
            ends += damage.exits + damage.resets
        if ends:
            found |= OBJECT
    if damage.resets == math.inf:
        found |= OBJECT  # whoever borrows loses sight of the owner (a reset alone is no reason for that)
    if risk.stored:
        lost = damage.spilled + NODE_WEIGHT * damage.nodes
        if lost and _exhausted(risk.retries, lost + damage.losses - NODE_WEIGHT * damage.nodes):
            found |= OBJECT | (TASK if risk.retries else frozenset())
    return found
