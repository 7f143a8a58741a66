"""Leases with pipelining: which queued task goes to which leased worker, and how many leases to ask for.

A scheduling key stands for tasks that may share workers: same resources, environment and strategy. A lease is
a worker that this owner may use for one key. Several tasks may be on their way to one worker, as long as
their expected run times add up to less than `limits.LEASE_BUDGET_US` (more where many wait); a function of
unknown run time is sent alone, so that work spreads over workers.

All classes here are pure; `dispatch` returns what to send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from framework._base import limits
from framework._state.tasks import QUEUED, SENT, TaskRecord, Template


class Lease:
    """One worker, lent to this owner."""

    __slots__ = (
        "blocked",
        "connection",
        "dead",
        "full",
        "gpus",
        "idle_since",
        "inflight",
        "key",
        "lease_id",
        "load",
        "progress",
        "recalled",
        "reclaiming",
        "retiring",
        "address",
        "verdict",
        "worked",
        "worker_id",
    )

    def __init__(
        self,
        lease_id: int,
        key: KeyState,
        worker_id: bytes,
        address: str,
        gpus: list[Any],
        connection: Any,
        now: float,
    ) -> None:
        self.lease_id = lease_id
        self.key = key
        self.worker_id = worker_id
        self.address = address
        self.gpus = gpus
        self.connection = connection
        self.inflight: dict[int, TaskRecord] = {}  #: in the order in which the worker runs them
        self.load = 0.0  #: expected run time of all in flight, in microseconds
        self.blocked = False  #: its task waits for others: it takes no new ones
        self.full = False  #: its worker does not take what is sent to it, for now
        self.retiring = False  #: it takes no new tasks and ends when the last is done
        self.reclaiming = False
        self.recalled = False  #: it goes back when its running task is done
        self.verdict: list[Any] | None = (
            None  #: how its worker died, while what that has said before is still read
        )
        self.dead = False  #: lost or returned: whoever still puts a task on it must take it off again
        self.idle_since: float | None = now
        self.progress = now
        self.worked = False  #: it has run something

    @property
    def usable(self) -> bool:
        return not (self.blocked or self.retiring)


class KeyState:
    """The queue, the leases and the demand of one scheduling key. It lives as long as a template, a task or a
    lease has it; `ended` hears of its end, by its number."""

    __slots__ = (
        "__weakref__",
        "_ended",
        "demand_sent",
        "env",
        "free",
        "gone",
        "infeasible",
        "key_id",
        "leases",
        "near",
        "pending",
        "priority",
        "resources",
        "retriable",
        "seen",
        "spread",
        "strategy",
        "warned",
    )

    def __init__(
        self,
        key_id: int,
        resources: dict[str, int],
        env: dict[str, str] | None,
        strategy: list[Any] | None,
        ended: deque[int] | None = None,
    ) -> None:
        self._ended = ended
        self.key_id = key_id
        self.resources = resources
        self.env = env
        self.strategy = strategy
        self.pending: deque[TaskRecord] = deque()
        self.leases: dict[int, Lease] = {}
        #: Leases without work. Taking one out of here (one atomic step) gives the right to use it: the loop
        #: does so to dispatch or to return it, and a user's thread to send a lone task at once, without a
        #: turn of the loop.
        self.free: deque[Lease] = deque()
        self.seen = 0  #: grants that have arrived
        self.demand_sent = 0  #: leases that the node still owes us, as far as it was told
        self.infeasible: str | None = None
        self.gone = False  #: as its placement group was removed
        self.retriable = True  #: its tasks may be run again: their workers go first when memory runs out
        self.priority = 0  #: higher ones go first
        #: nothing is sent ahead, no lease is kept
        self.spread = strategy is not None and strategy[0] == "SPREAD"
        self.warned = ""  #: what its user was told of why it waits
        self.near = b""  #: the node that holds most of its tasks' arguments, if that is another one

    def __del__(self) -> None:
        # Anywhere, also inside of the garbage collector.
        if self._ended is not None:
            self._ended.append(self.key_id)

    # ---- tasks ---------------------------------------------------------------------------------------

    def enqueue(self, task: TaskRecord) -> None:
        task.state = QUEUED
        self.pending.append(task)

    def dispatch(self) -> dict[Lease, list[TaskRecord]]:
        """Assign queued tasks to leases, evenly; returns them in the order in which they are to be sent."""
        pending = self.pending
        if not pending:
            return {}
        usable = [
            lease
            for lease in self.leases.values()
            if not (lease.blocked or lease.retiring or lease.full) and (lease.inflight or self._claim(lease))
        ]
        sends: dict[Lease, list[TaskRecord]] = {}
        budget = self._budget(len(usable)) if usable else 0.0
        if budget > limits.LEASE_BUDGET_US:  # by the lot: a worker is disturbed by each that comes
            usable = [lease for lease in usable if 2 * lease.load <= budget]
        if len(usable) > 1:
            usable.sort(key=_load)
        while pending and usable:
            share = -(-len(pending) // len(usable))
            still_room = []
            for lease in usable:
                some = sends.get(lease, [])
                if self._fill(lease, share, budget, some):
                    still_room.append(lease)
                if some:
                    sends[lease] = some
                if not pending:
                    break
            usable = still_room
        for lease in self.leases.values():
            if lease.idle_since is not None and not lease.inflight and lease not in self.free:
                self.release(lease)
        return sends

    def _budget(self, leases: int) -> float:
        """How much work may be sent ahead to each of so many workers, in microseconds: more where much waits,
        as an owner that is kept from a CPU by its own workers may be late with the next."""
        mean: float | None = self.pending[0].template.mean_us
        ahead = len(self.pending) * mean / (leases * limits.LEASE_AHEAD_PART) if mean is not None else 0.0
        return min(max(limits.LEASE_BUDGET_US, ahead), limits.LEASE_BUDGET_MOST_US)

    def _claim(self, lease: Lease) -> bool:
        """Take an idle lease out of `free`; False when somebody else was faster."""
        try:
            self.free.remove(lease)
        except ValueError:
            return False
        return True

    def release(self, lease: Lease) -> None:
        """It has no work (any more)."""
        if not (lease.dead or lease.retiring or lease.blocked):
            self.free.append(lease)

    def send_alone(self, task: TaskRecord) -> Lease | None:
        """A user's thread: put a lone task on an idle lease, if there is one, and nobody waits for it."""
        if self.pending:
            return None
        try:
            lease = self.free.pop()
        except IndexError:
            return None
        task.state = SENT
        task.lease = lease
        task.cost = limits.LEASE_BUDGET_US if task.template.mean_us is None else task.template.mean_us
        lease.load = task.cost
        lease.idle_since = None
        lease.inflight[task.unique] = task
        return lease

    def withdraw(self, lease: Lease) -> bool:
        """An idle lease is not to be used any more. False: somebody is about to use it."""
        return self._claim(lease)

    def _fill(self, lease: Lease, share: int, budget: float, sends: list[TaskRecord]) -> bool:
        """Give `lease` up to `share` tasks; False when it has no room for another."""
        pending, take, inflight = self.pending, self.pending.popleft, lease.inflight
        most = limits.LEASE_MAX_DEPTH
        load, under_way = lease.load, len(inflight)
        template: Template | None = None
        cost: float = budget
        room = True
        while pending and share:
            task = pending[0]
            if task.state != QUEUED:  # cancelled while it waited
                take()
                continue
            if task.template is not template:
                template = task.template
                mean = template.mean_us
                cost = budget if mean is None or self.spread else max(mean, limits.LEASE_MIN_COST_US)
            if under_way and (load + cost > budget or under_way >= most):
                room = False
                break
            take()
            task.state = SENT
            task.lease = lease
            task.cost = cost
            load += cost
            if not under_way:
                lease.idle_since = None
            under_way += 1
            inflight[task.unique] = task
            sends.append(task)
            share -= 1
        lease.load = load
        return room

    def finished(self, task: TaskRecord, now: float) -> None:
        """A task that was sent is done, or is not on that worker any more."""
        lease = task.lease
        if lease is None:
            return
        if lease.inflight.pop(task.unique, None) is not None:
            lease.load -= task.cost
            lease.progress = now
            lease.blocked = False
            lease.reclaiming = False
            if not lease.inflight:
                self.emptied(lease, now)
        task.lease = None

    def emptied(self, lease: Lease, now: float) -> None:
        """The last task that was on a lease is not there any more."""
        lease.load = 0.0
        lease.idle_since = now
        lease.worked = True
        self.release(lease)  # also where tasks wait: `dispatch` takes it from there

    def handed_back(self, lease: Lease, uniques: Iterable[int], now: float) -> list[TaskRecord]:
        """The worker gives back tasks that it has not started: to the front of the queue, in their old
        order.
        """
        tasks = []
        for unique in uniques:
            task = lease.inflight.get(unique)
            if task is not None:
                self.finished(task, now)
                if task.cancelled is None:
                    tasks.append(task)
        for task in reversed(tasks):
            task.state = QUEUED
            self.pending.appendleft(task)
        return tasks

    # ---- leases --------------------------------------------------------------------------------------

    def granted(self, lease: Lease) -> None:
        self.seen += 1
        self.demand_sent = max(0, self.demand_sent - 1)
        self.leases[lease.lease_id] = lease
        self.free.append(lease)

    def lost(self, lease: Lease) -> list[TaskRecord]:
        """The lease is over: the tasks that were in flight, in order."""
        lease.dead = True  # before `inflight` is read: see `Submitter.submit`
        self.leases.pop(lease.lease_id, None)
        self._claim(lease)
        tasks = list(lease.inflight.values())
        lease.inflight.clear()
        for task in tasks:
            task.lease = None
        return tasks

    def wanted(self) -> int | None:
        """How many more leases to ask for; None when the node already knows."""
        while self.pending and self.pending[0].state != QUEUED:
            self.pending.popleft()
        wanted = min(len(self.pending), limits.MAX_LEASES_WANTED)
        if wanted == self.demand_sent:
            return None
        self.demand_sent = wanted
        return wanted

    def take_idle(self, now: float, age: float, worked: bool = False) -> list[Lease]:
        """Leases without work for `age` seconds, taken out of use; `worked`: but for new ones."""
        return [
            lease
            for lease in list(self.free)
            if lease.idle_since is not None
            and now - lease.idle_since >= age
            and (lease.worked or not worked)
            and self._claim(lease)
        ]

    def stalled(self, now: float) -> list[Lease]:
        """Leases whose worker has been silent for a while with more than one task: those behind the running
        one, which turns out to be slow, are to come back, and replies that wait for company are to be sent.
        Also while others are
        pending: those came later."""
        return [
            lease
            for lease in self.leases.values()
            if len(lease.inflight) > 1 and not lease.reclaiming and now - lease.progress > limits.STALL
        ]


def _load(lease: Lease) -> float:
    return lease.load
