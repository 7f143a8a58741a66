"""What waits for leases, in which order it is served, and whose leases are asked back for it.

The order: by level, then by the share of CPUs that each job holds (who has least comes first), then in turn.
The level is the rank of the priority among those present, plus one for each `limits.AGING` seconds of
waiting with nothing: so whatever waits comes first at some time, and a high priority means first, not alone.

Owners keep a lease as long as they have tasks for it. So that order means anything, leases are *asked back*
when somebody waits who comes before their holder: they return when their running task is done.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Protocol

from framework._base import limits
from framework._base import resources as res

EnvKey = tuple[tuple[str, str], ...]


class Demand:
    """What one owner wants for one scheduling key. `granted` counts every grant ever promised to it."""

    __slots__ = (
        "env",
        "expires",
        "granted",
        "job",
        "near",
        "patient_until",
        "priority",
        "reserve_again",
        "reserve_until",
        "retriable",
        "seen",
        "shape",
        "since",
        "strategy",
        "told",
        "units",
        "wanted",
        "wish",
    )

    def __init__(
        self,
        units: dict[str, int],
        env: EnvKey,
        job: bytes,
        strategy: list[Any] | None,
        priority: int = 0,
        near: bytes = b"",
    ) -> None:
        self.units = units
        self.env = env
        self.job = job
        self.strategy = strategy
        self.priority = priority
        self.near = near or None
        self.shape = (res.key(units), repr(strategy))  #: what decides who could serve it
        self.retriable = True
        self.wanted = 0
        self.seen = 0
        self.granted = 0
        self.since = 0.0  #: when it began to wait, or last got or gave back something
        self.patient_until = 0.0  #: until then it may wait for the best node
        self.told = ""  #: why nobody can serve it, as far as its owner knows
        self.reserve_until = self.reserve_again = 0.0
        self.wish = False  #: it waits on another node, and would run here
        self.expires = 0.0  #: of a wish

    @property
    def missing(self) -> int:
        """Leases still to be given: what was wanted when the owner had seen `seen` grants, less those
        since.
        """
        return self.wanted - (self.granted - self.seen)

    def reserve(self, now: float) -> None:
        """Keep for it what becomes free, for a while; not all the time: what holds the rest may never end."""
        if now >= self.reserve_again:
            self.reserve_until = now + limits.RESERVE
            self.reserve_again = now + 2 * limits.RESERVE


class Held(Protocol):
    """A lease as far as the order is concerned."""

    job: bytes
    key: int
    lease_id: int
    owner: Any
    priority: int
    recalled: float | None
    since: float
    units: dict[str, int]

    @property
    def number(self) -> int: ...


Waiting = list[tuple[tuple[Hashable, int], Demand]]


def cpus(units: Mapping[str, int]) -> int:
    """What counts for the share of a job."""
    return units.get(res.CPU, 0)


class Order:
    """The order of demands at one moment."""

    def __init__(self, waiting: Waiting, held: Iterable[Held], now: float) -> None:
        self._now = now
        self.by_job: dict[bytes, int] = {}  #: CPU units
        self.by_demand: dict[tuple[Hashable, int], int] = {}  #: leases
        priorities = {demand.priority for _, demand in waiting}
        for lease in held:
            priorities.add(lease.priority)
            self.took(lease.owner, lease.key, lease.job, lease.units)
        self._levels = {priority: level for level, priority in enumerate(sorted(priorities))}

    def took(self, owner: Hashable, key: int, job: bytes, units: Mapping[str, int]) -> None:
        """One lease more."""
        self.by_job[job] = self.by_job.get(job, 0) + cpus(units)
        self.by_demand[(owner, key)] = self.by_demand.get((owner, key), 0) + 1

    def level(self, who: tuple[Hashable, int], demand: Demand) -> int:
        """With the time that it has waited, if it has nothing."""
        level = self._levels[demand.priority]
        if self.by_demand.get(who):
            return level
        return level + int((self._now - demand.since) / limits.AGING)

    def sort(self, waiting: Waiting) -> None:
        """Who comes first, first. Equals stay in the order in which they are."""
        waiting.sort(key=lambda item: (-self.level(*item), self.by_job.get(item[1].job, 0)))

    def gives_way(self, lease: Held, who: tuple[Hashable, int], demand: Demand) -> int | None:
        """Whether this lease is to be asked back for `demand`: None, or the place of this lease among those
        that are (lowest first)."""
        theirs = self._levels[lease.priority]
        ours = self._levels[demand.priority]
        if ours > theirs:
            return theirs - len(self._levels)
        if self._now - lease.since < limits.LEASE_QUANTUM:
            return None
        mine, others = self.by_job.get(demand.job, 0), self.by_job.get(lease.job, 0)
        if ours == theirs and lease.job != demand.job:
            # Only where that does not turn things round.
            if others - cpus(lease.units) >= mine + cpus(demand.units) and cpus(lease.units):
                return -others
        if self.level(who, demand) > theirs:
            held = self.by_demand.get((lease.owner, lease.key), 0)
            if held > self.by_demand.get(who, 0):
                return 0
        return None


class Recall:
    """Which leases to ask back on one node, for demands in their order."""

    def __init__(self, held: Iterable[Held], now: float) -> None:
        self._now = now
        self._held: list[Held] = []
        self._coming: dict[str, int] = {}
        for lease in held:
            if lease.recalled is None or now - lease.recalled >= limits.RECALL_AGAIN:
                self._held.append(lease)
            else:
                res.add(self._coming, lease.units)

    def help(
        self, who: tuple[Hashable, int], demand: Demand, available: Mapping[str, int], order: Order
    ) -> list[Held] | None:
        """Leases to ask back so that `demand` can be served; [] when enough is on its way; None when this
        node cannot help."""
        lacking = {}
        for name, amount in demand.units.items():
            short = amount - max(0, available.get(name, 0))
            if short > 0:
                used = min(short, self._coming.get(name, 0))
                if used:
                    self._coming[name] -= used
                if short > used:
                    lacking[name] = short - used
        if not lacking:
            return []
        ranked = []
        for lease in self._held:
            place = order.gives_way(lease, who, demand)
            if place is not None and any(name in lease.units for name in lacking):
                ranked.append((place, lease.since, lease.lease_id, lease))
        chosen = []
        for _, _, _, lease in sorted(ranked, key=lambda row: row[:3]):
            if any(name in lease.units for name in lacking):
                chosen.append(lease)
                for name, amount in lease.units.items():
                    if name in lacking:
                        lacking[name] -= amount
                        if lacking[name] <= 0:
                            # What is more than enough may help the next one.
                            self._coming[name] = self._coming.get(name, 0) - lacking.pop(name)
                if not lacking:
                    break
        if lacking:
            return None
        for lease in chosen:
            lease.recalled = self._now
            self._held.remove(lease)
        return chosen
