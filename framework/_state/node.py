"""What a node manager decides: resources, the queue of lease demands, the pool of workers.

Pure: every method returns a list of commands for the shell, tuples that start with a word:

``("grant", owner, key, Allocation)``      tell the owner that it has a worker
``("run_actor", actor_id, Allocation)``    tell the worker to become this actor
``("start", env)``                         start a process for this environment
``("actor_failed", actor_id, text)``       the actor cannot be placed
``("infeasible", owner, key, text)``       no node can ever serve this
``("unserved", owner, key, env, text)``    no worker could be started for this
``("pressure", owner)``                    ask the owner to return idle leases
``("stop", worker)``                       end this worker: it is idle and not needed
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any

from framework._base import limits
from framework._base import resources as res

EnvKey = tuple[tuple[str, str], ...]
Command = tuple[Any, ...]
CPU = "CPU"
GPU = "GPU"

IDLE = "idle"
LEASED = "leased"
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


class Allocation:
    """Resources that are held for one lease or one actor, and its worker once there is one."""

    __slots__ = ("actor", "env", "gpu_shares", "job", "key", "lease_id", "lent", "owner", "units", "worker")

    def __init__(
        self,
        lease_id: int,
        owner: Hashable,
        key: int,
        units: dict[str, int],
        env: EnvKey,
        job: bytes,
        actor: bytes | None,
    ) -> None:
        self.lease_id = lease_id
        self.owner: Any = owner  #: whatever the service names owners by
        self.key = key
        self.units = units
        self.env = env
        self.job = job
        self.actor = actor
        self.gpu_shares: list[tuple[int, int]] = []
        self.worker: Worker | None = None
        self.lent = 0  #: CPU units given back while its worker waits


class Demand:
    """What one owner wants for one scheduling key. `granted` counts every grant ever promised to it."""

    __slots__ = ("env", "granted", "job", "retriable", "seen", "strategy", "units", "wanted")

    def __init__(self, units: dict[str, int], env: EnvKey, job: bytes, strategy: list[Any] | None) -> None:
        self.units = units
        self.env = env
        self.job = job
        self.strategy = strategy
        self.retriable = True
        self.wanted = 0
        self.seen = 0
        self.granted = 0

    @property
    def missing(self) -> int:
        """Leases still to be given: what was wanted when the owner had seen `seen` grants, less those
        since.
        """
        return self.wanted - (self.granted - self.seen)


class NodeState:
    """Ledger, queue and pool of one node."""

    def __init__(self, total: dict[str, int], node_id: str = "") -> None:
        """`node_id`: as strategies name it, hexadecimal."""
        self.node_id = node_id
        self.total = dict(total)
        self.available = dict(total)
        self.gpus = res.IndexedResource(total.get(GPU, 0) // res.UNIT)
        self.workers: dict[bytes, Worker] = {}
        self.starting: dict[EnvKey, int] = {}
        self._failed_starts: dict[EnvKey, int] = {}  #: in a row
        self.leases: dict[int, Allocation] = {}
        self._demands: dict[tuple[Hashable, int], Demand] = {}
        self._actors: deque[Allocation] = deque()
        self._awaiting: dict[EnvKey, deque[Allocation]] = {}
        self._next_lease = 0

    # ---- demands -------------------------------------------------------------------------------------

    def describe_key(
        self,
        owner: Hashable,
        key: int,
        units: dict[str, int],
        env: EnvKey,
        job: bytes,
        strategy: list[Any] | None = None,
        retriable: bool = True,
    ) -> None:
        """An owner names a scheduling key. `strategy`: see `never`; `retriable`: its tasks may be run
        again.
        """
        demand = self._demands.setdefault((owner, key), Demand(units, env, job, strategy))
        demand.retriable = retriable

    def may_run_again(self, allocation: Allocation) -> bool:
        """Whether what this allocation is for may be run again when its worker is ended."""
        demand = self._demands.get((allocation.owner, allocation.key))
        return allocation.actor is None and (demand is None or demand.retriable)

    def demand(self, owner: Hashable, key: int, wanted: int, seen: int) -> list[Command]:
        """An owner wants `wanted` leases beyond the `seen` grants that it knew of. Repeating it changes
        nothing.
        """
        demand = self._demands.get((owner, key))
        if demand is None:
            return []
        demand.wanted, demand.seen = wanted, seen
        text = self.never(demand.units, demand.strategy)
        if text is not None and wanted > 0:
            demand.wanted = 0
            return [("infeasible", owner, key, text)]
        return self.schedule()

    def never(self, units: dict[str, int], strategy: list[Any] | None = None) -> str | None:
        """Why this node can never serve such a request; None when it can. `strategy` is None, ``["SPREAD"]``,
        ``["node", hexadecimal id, soft]`` or ``["labels", text]``."""
        if strategy and strategy[0] == "node" and not strategy[2] and strategy[1] != self.node_id:
            return (
                f"its NodeAffinitySchedulingStrategy asks for the node {strategy[1]}, which is not in this "
                "cluster "
                f"(its nodes: {self.node_id}), and soft=False lets it run nowhere else"
            )
        if strategy and strategy[0] == "labels":
            return (
                f"its label_selector {strategy[1]} matches no node (the nodes of this cluster have no labels)"
            )
        if res.fits(units, self.total):
            return None
        lacking = [name for name, amount in units.items() if amount > self.total.get(name, 0)]
        return (
            f"it needs {res.format_resources(units)}, but this cluster has only "
            f"{res.format_resources(self.total)} "
            f"(not enough: {', '.join(lacking)})"
        )

    def place_actor(self, actor: bytes, units: dict[str, int], env: EnvKey, job: bytes) -> list[Command]:
        """The head wants this actor to run here."""
        self._next_lease += 1
        self._actors.append(Allocation(self._next_lease, None, 0, units, env, job, actor))
        return self.schedule()

    def drop_actor(self, actor: bytes) -> list[Command]:
        """The actor is not wanted any more: forget it if it still waits. (A running one ends with its
        worker.)
        """
        self._actors = deque(a for a in self._actors if a.actor != actor)
        for queue in self._awaiting.values():
            for allocation in list(queue):
                if allocation.actor == actor:
                    queue.remove(allocation)
                    self._release(allocation)
        return self.schedule()

    def schedule(self) -> list[Command]:
        """Give out what there is: actors first, then owners in turn, one lease each per round."""
        commands: list[Command] = []
        while self._actors and self._can_take(self._actors[0].units):
            self._assign(self._actors.popleft(), commands)
        progress = True
        unmet = bool(self._actors)
        while progress:
            progress = unmet = False
            for (owner, key), demand in list(self._demands.items()):
                if demand.missing <= 0:
                    continue
                if not self._can_take(demand.units):
                    unmet = True
                    continue
                demand.granted += 1
                self._next_lease += 1
                allocation = Allocation(
                    self._next_lease, owner, key, demand.units, demand.env, demand.job, None
                )
                self._assign(allocation, commands)
                # To the end of the line: the next round begins with the others.
                self._demands[(owner, key)] = self._demands.pop((owner, key))
                progress = True
        if unmet or self._actors:
            owners = {a.owner for a in self.leases.values() if a.actor is None and a.worker is not None}
            commands.extend(("pressure", owner) for owner in owners)
        return commands

    def _can_take(self, units: dict[str, int]) -> bool:
        if len(self.workers) + sum(self.starting.values()) >= limits.MAX_WORKERS:
            return False
        return res.fits(units, self.available) and self.gpus.can_allocate(units.get(GPU, 0))

    def _assign(self, allocation: Allocation, commands: list[Command]) -> None:
        res.subtract(self.available, allocation.units)
        gpu_units = allocation.units.get(GPU, 0)
        if gpu_units:
            shares = self.gpus.allocate(gpu_units)
            assert shares is not None, "can_allocate said yes"
            allocation.gpu_shares = shares
        self.leases[allocation.lease_id] = allocation
        worker = self._idle_worker(allocation.env, allocation.job)
        if worker is not None:
            self._bind(allocation, worker, commands)
            return
        self._awaiting.setdefault(allocation.env, deque()).append(allocation)
        if self.starting.get(allocation.env, 0) < len(self._awaiting[allocation.env]):
            self.starting[allocation.env] = self.starting.get(allocation.env, 0) + 1
            commands.append(("start", allocation.env))

    def _idle_worker(self, env: EnvKey, job: bytes) -> Worker | None:
        """An idle worker of this environment that has served this job, or none yet: the most recently used
        first.
        """
        best: Worker | None = None
        for worker in self.workers.values():
            usable = worker.state == IDLE and not worker.asked_to_end
            if usable and worker.env == env and worker.job in (None, job):
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

    # ---- workers -------------------------------------------------------------------------------------

    def prestart(self, count: int) -> list[Command]:
        """Workers without a special environment, ahead of need."""
        self.starting[()] = self.starting.get((), 0) + count
        return [("start", ())] * count

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
        while queue:
            allocation = queue.popleft()
            if allocation.lease_id in self.leases:
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
            if allocation.actor is not None:
                commands.append(("actor_failed", allocation.actor, text))
            else:
                # It never becomes a grant. The owner fails all that it has queued, so nothing more is wanted
                # for now.
                demand = self._demands.get((allocation.owner, allocation.key))
                if demand is not None:
                    demand.granted -= 1
                    demand.wanted = 0
                command = ("unserved", allocation.owner, allocation.key, env, text)
                if command not in commands:
                    commands.append(command)
        return commands + self.schedule()

    def worker_gone(self, worker_id: bytes) -> tuple[Allocation | None, list[Command]]:
        """A worker's process has ended: what it held, and what follows."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return None, []
        allocation = worker.allocation
        if allocation is not None:
            self._unlend(allocation)
            self._release(allocation)
        return allocation, self.schedule()

    def lease_returned(self, lease_id: int, owner: Hashable, now: float) -> list[Command]:
        """The owner does not need this lease any more. Twice is as once."""
        allocation = self.leases.get(lease_id)
        if allocation is None or allocation.owner != owner or allocation.actor is not None:
            return []
        worker = allocation.worker
        self._unlend(allocation)
        self._release(allocation)
        commands: list[Command] = []
        if worker is None:
            queue = self._awaiting.get(allocation.env)
            if queue is not None and allocation in queue:
                queue.remove(allocation)
        else:
            worker.allocation = None
            worker.state = IDLE
            worker.blocked = False
            worker.idle_since = now
            self._to_awaiting(worker, commands)
        return commands + self.schedule()

    def owner_gone(self, owner: Hashable) -> tuple[list[Worker], list[Command]]:
        """A process that held leases is gone: its workers, which must end because they may be running its
        tasks.
        """
        for owner_key in [k for k in self._demands if k[0] == owner]:
            del self._demands[owner_key]
        orphans = []
        for allocation in list(self.leases.values()):
            if allocation.owner != owner or allocation.actor is not None:
                continue
            if allocation.worker is not None:
                orphans.append(allocation.worker)
            else:
                queue = self._awaiting.get(allocation.env)
                if queue is not None and allocation in queue:
                    queue.remove(allocation)
                self._release(allocation)
        return orphans, self.schedule()

    def _release(self, allocation: Allocation) -> None:
        if self.leases.pop(allocation.lease_id, None) is None:
            return
        res.add(self.available, allocation.units)
        if allocation.gpu_shares:
            self.gpus.free(allocation.gpu_shares)
            allocation.gpu_shares = []

    # ---- workers that wait ---------------------------------------------------------------------------

    def blocked(self, worker_id: bytes) -> list[Command]:
        """A worker waits for other tasks: it lends out its CPUs."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.allocation is None or worker.blocked:
            return []
        worker.blocked = True
        allocation = worker.allocation
        lent = allocation.units.get(CPU, 0)
        if lent:
            allocation.lent = lent
            self.available[CPU] = self.available.get(CPU, 0) + lent
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
            self.available[CPU] -= allocation.lent
            allocation.lent = 0

    def job_ended(self, job: bytes, keep: int) -> tuple[list[Worker], list[Command]]:
        """The driver of a job is gone: its idle workers, which are of no use to other jobs, and what brings
        the number of workers for jobs to come back to `keep`."""
        idle = [worker for worker in self.workers.values() if worker.state == IDLE and worker.job == job]
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
