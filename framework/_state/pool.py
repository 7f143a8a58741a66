"""The workers and the ledger of a node: what is free, who has what, which processes there are and come.

Pure: methods return commands for the shell, see `framework._state.node`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any

from framework._base import limits
from framework._base import resources as res
from framework._state.bundles import Bundles
from framework._state.demands import EnvKey

Command = tuple[Any, ...]
CPU = "CPU"
GPU = "GPU"

IDLE = "idle"
LEASED = "leased"
RETIRED = "retired"  # it stays for the objects that it owns, and gets nothing to do any more
ACTOR = "actor"


def env_key(env: dict[str, str] | None) -> EnvKey:
    """The canonical form of a set of environment variables."""
    return tuple(sorted(env.items())) if env else ()


class Worker:
    """A worker process that has registered."""

    __slots__ = (
        "address",
        "allocation",
        "asked_to_end",
        "blocked",
        "ending",
        "env",
        "idle_since",
        "job",
        "peer",
        "pid",
        "state",
        "worker_id",
    )

    def __init__(self, worker_id: bytes, pid: int, address: str, env: EnvKey, peer: Any) -> None:
        self.worker_id = worker_id
        self.pid = pid
        self.address = address
        self.env = env
        self.peer = peer
        self.job: bytes | None = None
        self.state = IDLE
        self.allocation: Allocation | None = None
        self.blocked = False
        self.idle_since = 0.0
        self.asked_to_end = False  #: because it is idle, and has not said no: it may be gone at any moment
        self.ending = False  #: it is being killed: what would be given to it now would meet its end


class Allocation:
    """Resources that are held for one lease or one actor, and its worker once there is one."""

    __slots__ = (
        "actor",
        "env",
        "gpu_shares",
        "guest",
        "job",
        "key",
        "lease_id",
        "lent",
        "owner",
        "priority",
        "recalled",
        "retriable",
        "since",
        "units",
        "worker",
    )

    def __init__(
        self,
        lease_id: int,
        owner: Hashable,
        key: int,
        units: dict[str, int],
        env: EnvKey,
        job: bytes,
        actor: bytes | None,
        priority: int = 0,
    ) -> None:
        self.lease_id = lease_id
        self.owner: Any = owner  #: whatever the service names owners by
        self.key = key  #: of the owner's; the number of the lease at home, if that is another node
        self.units = units
        self.env = env
        self.job = job
        self.actor = actor
        self.priority = priority
        self.guest = False  #: its owner is another node
        self.retriable = True
        self.since = 0.0  #: when it began to wait, or was given out
        self.recalled: float | None = None  #: when it was last asked back
        self.gpu_shares: list[tuple[int, int]] = []
        self.worker: Worker | None = None
        self.lent: dict[str, int] = {}  #: CPUs given back while its worker waits

    @property
    def number(self) -> int:
        """By which its owner knows it."""
        return self.key if self.guest else self.lease_id


def _may_have(worker: Worker, allocation: Allocation) -> bool:
    """A worker serves one job. An actor gets a process that has run nothing yet: that ends with it, and what
    others still have of its former tasks would go, too."""
    return worker.job is None or (worker.job == allocation.job and allocation.actor is None)


class Pool:
    """Of one node. `schedule` gives out what becomes free."""

    def __init__(self, total: dict[str, int]) -> None:
        self.total = dict(total)
        self.available = dict(total)
        self.gpus = res.IndexedResource(total.get(GPU, 0) // res.UNIT)
        self.bundles = Bundles(self.total, self.available, self.gpus)  #: of placement groups
        self.workers: dict[bytes, Worker] = {}
        self.starting: dict[EnvKey, int] = {}
        self._failed_starts: dict[EnvKey, int] = {}  #: in a row
        self.leases: dict[int, Allocation] = {}
        self._awaiting: dict[EnvKey, deque[Allocation]] = {}
        self._next_lease = 0

    def schedule(self) -> list[Command]:
        """Give out what there is."""
        raise NotImplementedError

    def _unserved(self, allocation: Allocation, text: str) -> Command:
        """No worker could be started for it: what is to be told."""
        raise NotImplementedError

    def _over(self, allocation: Allocation) -> None:
        """It holds nothing any more."""

    # ---- allocations ---------------------------------------------------------------------------------

    def _assign(self, allocation: Allocation, commands: list[Command]) -> None:
        res.subtract(self.available, allocation.units)
        allocation.gpu_shares = self.bundles.take(allocation)
        self.leases[allocation.lease_id] = allocation
        worker = self._idle_worker(allocation)
        if worker is not None:
            self._bind(allocation, worker, commands)
            return
        self._awaiting.setdefault(allocation.env, deque()).append(allocation)
        if self.starting.get(allocation.env, 0) < len(self._awaiting[allocation.env]):
            self.starting[allocation.env] = self.starting.get(allocation.env, 0) + 1
            commands.append(("start", allocation.env))

    def _idle_worker(self, allocation: Allocation) -> Worker | None:
        """An idle worker of its environment that may have it: the most recently used first."""
        best: Worker | None = None
        for worker in self.workers.values():
            usable = worker.state == IDLE and not worker.asked_to_end and not worker.ending
            if usable and worker.env == allocation.env and _may_have(worker, allocation):
                if best is None or (worker.job is not None, worker.idle_since) > (
                    best.job is not None,
                    best.idle_since,
                ):
                    best = worker
        return best

    def _bind(self, allocation: Allocation, worker: Worker, commands: list[Command]) -> None:
        allocation.worker = worker
        worker.allocation = allocation
        worker.job = allocation.job
        if allocation.actor is not None:
            worker.state = ACTOR
            commands.append(("run_actor", allocation.actor, allocation))
        else:
            worker.state = LEASED
            commands.append(("grant", allocation.owner, allocation.key, allocation))

    def _release(self, allocation: Allocation) -> None:
        if self.leases.pop(allocation.lease_id, None) is None:
            return
        self._over(allocation)
        res.add(self.available, allocation.units)
        self.bundles.release(allocation, allocation.gpu_shares)
        allocation.gpu_shares = []

    def revoke(self, allocation: Allocation, text: str) -> list[Command]:
        """Take back what has no worker yet; it gets none."""
        queue = self._awaiting.get(allocation.env)
        if queue is not None and allocation in queue:
            queue.remove(allocation)
        self._release(allocation)
        return [self._unserved(allocation, text)]

    # ---- workers -------------------------------------------------------------------------------------

    def prestart(self, count: int) -> list[Command]:
        """Workers without a special environment, ahead of need."""
        self.starting[()] = self.starting.get((), 0) + count
        return [("start", ())] * count

    def replenish(self, keep: int) -> list[Command]:
        """Actors have taken workers for good: start others in their place, so that there are `keep` of them
        for what comes next. Not while somebody waits for one that is being started: those come first."""
        if self._awaiting.get(()):
            return []
        there = sum(
            1 for w in self.workers.values() if w.env == () and w.state in (IDLE, LEASED) and not w.ending
        )
        missing = keep - there - self.starting.get((), 0)
        return self.prestart(missing) if missing > 0 else []

    def worker_up(self, worker: Worker, now: float) -> list[Command]:
        """A started process has registered."""
        self.workers[worker.worker_id] = worker
        self.starting[worker.env] = max(0, self.starting.get(worker.env, 0) - 1)
        self._failed_starts.pop(worker.env, None)
        worker.idle_since = now
        commands: list[Command] = []
        self._to_awaiting(worker, commands)
        return commands or self.schedule()

    def _to_awaiting(self, worker: Worker, commands: list[Command]) -> None:
        queue = self._awaiting.get(worker.env)
        if worker.ending or queue is None:
            return
        for allocation in list(queue):
            if allocation.lease_id not in self.leases:
                queue.remove(allocation)
            elif _may_have(worker, allocation):
                queue.remove(allocation)
                self._bind(allocation, worker, commands)
                return

    def start_failed(self, env: EnvKey, text: str) -> list[Command]:
        """A process could not be started. It is tried again; after `limits.WORKER_START_ATTEMPTS` failures in
        a row those who wait and have no other start under way are told."""
        self.starting[env] = max(0, self.starting.get(env, 0) - 1)
        commands: list[Command] = []
        queue = self._awaiting.get(env)
        if not queue:
            return self.schedule()
        failed = self._failed_starts[env] = self._failed_starts.get(env, 0) + 1
        if failed < limits.WORKER_START_ATTEMPTS:
            if self.starting[env] < len(queue):
                self.starting[env] += 1
                commands.append(("start", env))
            return commands + self.schedule()
        self._failed_starts.pop(env, None)
        while queue and self.starting[env] < len(queue):
            allocation = queue.popleft()
            self._release(allocation)
            command = self._unserved(allocation, text)
            if command not in commands:
                commands.append(command)
        return commands + self.schedule()

    def worker_ending(self, worker_id: bytes) -> None:
        """Its process has been killed, or soon will be. It gets nothing to do any more: a lease that returns
        before its end is known must not be given to others, who would be told why it was killed."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.ending = True

    def worker_gone(self, worker_id: bytes) -> tuple[Allocation | None, list[Command]]:
        """A worker's process has ended: what it held, and what follows."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return None, []
        allocation = worker.allocation
        if allocation is not None:
            self._unlend(allocation)
            self._release(allocation)
            worker.allocation = None  # (it knows its worker: no circle, which would keep the connection)
        return allocation, self.schedule()

    def worker_retired(self, worker_id: bytes) -> tuple[Allocation | None, list[Command]]:
        """A leased worker takes no more tasks, and stays for what it owns: the lease that it had, which is
        over, and what follows."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.state == ACTOR:
            return None, []
        allocation = worker.allocation
        worker.state, worker.allocation, worker.blocked = RETIRED, None, False
        if allocation is not None:
            self._unlend(allocation)
            self._release(allocation)
        return allocation, self.schedule()

    # ---- workers that wait ---------------------------------------------------------------------------

    def blocked(self, worker_id: bytes) -> list[Command]:
        """A worker waits for other tasks: it lends out its CPUs."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.allocation is None or worker.blocked:
            return []
        worker.blocked = True
        allocation = worker.allocation
        allocation.lent = res.lendable(allocation.units)
        res.add(self.available, allocation.lent)
        return self.schedule()

    def unblocked(self, worker_id: bytes) -> None:
        """It goes on. Its CPUs may have been lent: then there are less than none for a while, as Ray does
        it.
        """
        worker = self.workers.get(worker_id)
        if worker is None or not worker.blocked:
            return
        worker.blocked = False
        if worker.allocation is not None:
            self._unlend(worker.allocation)

    def _unlend(self, allocation: Allocation) -> None:
        if allocation.lent:
            res.subtract(self.available, allocation.lent)
            allocation.lent = {}

    def job_ended(self, job: bytes, keep: int) -> tuple[list[Worker], list[Command]]:
        """The driver of a job is gone: its idle (and retired) workers, which are of no use to other jobs, and
        what brings the number of workers for jobs to come back to `keep`."""
        idle = [w for w in self.workers.values() if w.state in (IDLE, RETIRED) and w.job == job]
        fresh = sum(1 for w in self.workers.values() if w.state == IDLE and w.job is None and w.env == ())
        missing = keep - fresh - self.starting.get((), 0)
        return idle, self.prestart(missing) if missing > 0 else []

    def surplus(self, now: float, keep: int, age: float) -> list[Worker]:
        """Idle workers beyond `keep`, idle for `age` seconds, the longest idle first; those with a special
        environment are not counted as kept."""
        idle = [worker for worker in self.workers.values() if worker.state == IDLE]
        idle.sort(key=lambda worker: worker.idle_since)
        plain = sum(1 for worker in idle if worker.env == ())
        surplus = []
        for worker in idle:
            if now - worker.idle_since < age:
                continue
            if worker.env == ():
                if plain <= keep:
                    continue
                plain -= 1
            surplus.append(worker)
        return surplus
