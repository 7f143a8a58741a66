"""What a node manager decides: resources, the queue of lease demands, the pool of workers.

Pure: every method returns a list of commands for the shell, tuples that start with a word:

``("grant", owner, key, Allocation)``      tell the owner that it has a worker
``("run_actor", actor_id, Allocation)``    tell the worker to become this actor
``("start", env)``                         start a process for this environment
``("actor_failed", actor_id, text)``       the actor cannot be placed
``("infeasible", owner, key, text)``       no node can ever serve this
``("waits", owner, key, text)``            no node can serve this, but one that can may join
``("unserved", owner, key, env, text)``    no worker could be started for this
``("pressure", owner)``                    ask the owner to return idle leases
``("recall", owner, lease_id)``            ask the owner to return this lease when its running task is done
``("forward", node_id, leases, Demand)``   ask another node for these leases
``("give_back", node_id, lease, reason)``  another node's worker is free again, or, with a reason, must end
``("lost", owner, lease_id, text)``        the lease's node is dead
``("offer", guest)``                       another node that wished for room may ask now: it is kept for it

In a cluster it has a `ClusterView` of all nodes: what this node has no room for goes to others. An owner only
ever knows its own node; what waits, waits there. The other node knows it as a *guest*, under the number that
the lease has at home: `lend` and what follows. What waits at home for lack of room anywhere is made known to
the others as *wishes*, so that its turn also comes where another node's owners have a long queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from framework._base import limits
from framework._base import resources as res
from framework._state.away import Away, AwayLeases
from framework._state.demands import Demand, EnvKey, Held, Order, Recall, Waiting
from framework._state.pool import ACTOR, IDLE, LEASED, RETIRED, Allocation, Command, Pool, Worker, env_key
from framework._state.scheduling import ClusterView, Strategy

__all__ = ["ACTOR", "IDLE", "LEASED", "RETIRED", "Allocation", "EnvKey", "NodeState", "Worker", "env_key"]


class NodeState(Pool):
    """Ledger, queue and pool of one node."""

    def __init__(
        self, total: dict[str, int], node_id: str = "", clock: Callable[[], float] = lambda: 0.0
    ) -> None:
        """`node_id`: as strategies name it, hexadecimal. `clock`: seconds."""
        super().__init__(total)
        self.node_id = node_id
        self._clock = clock
        self.draining = False  #: it takes nothing new
        self.unmet = False  #: something waits: `schedule` is to be called now and then
        self.soon = False  #: and very soon
        self.view: ClusterView | None = None  #: None: there is only this node
        self._alone = ClusterView(bytes.fromhex(node_id))  #: what there is while there is only this node
        self._alone.watch_own(self.total, self.available)
        self.away = AwayLeases()
        self._own = b""
        self.demands: dict[tuple[Hashable, int], Demand] = {}
        self._actors: deque[Allocation] = deque()
        self._guests: dict[tuple[Hashable, int], int] = {}  #: (guest, its number) -> lease
        self._wishes: dict[tuple[Any, bytes, Any], Demand] = {}  #: (guest, job, units) -> what it would have
        self.waiting: Waiting = []  #: after the last look
        self._withheld: dict[str, int] = {}  #: kept for those who come first
        self._next_recall = 0.0

    def enter(self, view: ClusterView) -> None:
        """It is part of a cluster from now on."""
        assert view.own is not None
        self.view, self._own = view, view.own
        view.watch_own(self.total, self.available)

    # ---- demands -------------------------------------------------------------------------------------

    def describe_key(
        self,
        owner: Hashable,
        key: int,
        units: dict[str, int],
        env: EnvKey,
        job: bytes,
        strategy: Strategy = None,
        retriable: bool = True,
        priority: int = 0,
        near: bytes = b"",
    ) -> None:
        """An owner names a scheduling key. `strategy`: see `framework._state.scheduling`; `retriable`: its
        tasks may be run again; `near`: the node where the arguments of its tasks lie.
        """
        demand = self.demands.get((owner, key))
        if demand is None:
            demand = Demand(units, env, job, strategy, priority, near)
            self.demands[(owner, key)] = demand
        demand.retriable = retriable

    def forget_keys(self, owner: Hashable, keys: Iterable[int]) -> list[Command]:
        """An owner will not name these any more."""
        for key in keys:
            self.demands.pop((owner, key), None)
        return self.schedule() if self.unmet else []

    def may_run_again(self, allocation: Allocation) -> bool:
        """Whether what this allocation is for may be run again when its worker is ended."""
        return allocation.actor is None and allocation.retriable

    def demand(self, owner: Hashable, key: int, wanted: int, seen: int) -> list[Command]:
        """An owner wants `wanted` leases beyond the `seen` grants that it knew of. Repeating it changes
        nothing.
        """
        demand = self.demands.get((owner, key))
        if demand is None:
            return []
        if demand.missing <= 0:
            demand.since = self._clock()
            if self.view is not None:
                near = limits.NEAR_PATIENCE if demand.near is not None else 0
                demand.patient_until = demand.since + (near or limits.SOFT_PATIENCE)
        demand.wanted, demand.seen = wanted, seen
        if self.view is None and wanted > 0:
            text = self.never(demand.units, demand.strategy)
            if text is not None:
                demand.wanted = 0
                return [("infeasible", owner, key, text)]
        return self.schedule()

    def never(self, units: dict[str, int], strategy: Strategy = None) -> str | None:
        """Why no node that is here can ever serve such a request; None when one can."""
        return (self.view or self._alone).never(units, strategy)

    def place_actor(
        self, actor: bytes, units: dict[str, int], env: EnvKey, job: bytes, priority: int = 0
    ) -> list[Command]:
        """The head wants this actor to run here."""
        self._next_lease += 1
        allocation = Allocation(self._next_lease, None, 0, units, env, job, actor, priority)
        allocation.since = self._clock()
        self._actors.append(allocation)
        if priority or self._actors[0].priority:
            self._actors = deque(sorted(self._actors, key=lambda waiting: -waiting.priority))
        return self.schedule()

    def drop_actor(self, actor: bytes) -> list[Command]:
        """The actor is not wanted any more: forget it if it still waits. (A running one ends with its
        worker.)
        """
        self.give_up_actor(actor)
        for queue in self._awaiting.values():
            for allocation in list(queue):
                if allocation.actor == actor:
                    queue.remove(allocation)
                    self._release(allocation)
        return self.schedule()

    def give_up_actor(self, actor: bytes) -> bool:
        """Whether the actor still waits for room: then it is forgotten, and may be started elsewhere."""
        waiting = len(self._actors)
        self._actors = deque(a for a in self._actors if a.actor != actor)
        return len(self._actors) < waiting

    def schedule(self) -> list[Command]:
        """Give out what there is: actors first, then owners in their order (see `demands`), one by one."""
        commands: list[Command] = []
        now = self._clock()
        self.soon = False
        if self._withheld:
            self._withheld = {}
        if self.view is not None:
            self.view.nodes[self._own].full_for.clear()
        if self._actors:
            self._start_actors(commands)
        active = [(name, demand) for name, demand in self.demands.items() if demand.missing > 0]
        if self._wishes:
            active += self._wished(now)
        waiting = self.waiting = self._serve(active, commands, now) if active else []
        self.unmet = bool(waiting or self._actors)
        if self.unmet:
            names = {name for name, _ in waiting}
            # Nobody is helped if who waits for more of the same gives back what it has of that; unless there
            # is too much of it, or may be, since CPUs are lent whose tasks will go on.
            all_of_them = (
                bool(self._actors)
                or min(self.available.values(), default=0) < 0
                or any(a.worker is not None and a.worker.blocked for a in self.leases.values())
            )
            owners = dict.fromkeys(
                a.owner
                for a in self.leases.values()
                if a.actor is None and a.worker is not None and (all_of_them or names != {(a.owner, a.key)})
            )
            owners.update((away.owner, None) for away in self.away.by_id.values())
            commands.extend(("pressure", owner) for owner in owners)
            if now >= self._next_recall:
                self._next_recall = now + limits.RECALL_EVERY
                self._recall(waiting, commands, now)
        if self.draining:
            self._recall_all(commands, now)
        return commands

    def _recall_all(self, commands: list[Command], now: float) -> None:
        """It drains: owners keep a lease as long as they have tasks, so all are asked back."""
        for lease in self.leases.values():
            if lease.actor is None and lease.worker is not None:
                self.unmet = True
                if lease.recalled is None or now - lease.recalled >= limits.RECALL_AGAIN:
                    lease.recalled = now
                    commands.append(("recall", lease.owner, lease.number))

    def _start_actors(self, commands: list[Command]) -> None:
        """In order: one that has no room is not overtaken by others that want of the same, that is, of what
        is in no placement group, or in the same one."""
        full: set[str] = set()
        for allocation in list(self._actors):
            group = res.group_of(allocation.units)
            of = group[0] if group is not None else ""
            if of not in full and self._can_take(allocation.units):
                self._actors.remove(allocation)
                self._assign(allocation, commands)
            else:
                full.add(of)

    def _held(self) -> list[Held]:
        """All leases of tasks: of this node's workers, and of this node's owners elsewhere. Not those whose
        worker waits: its CPUs are lent."""
        here: list[Held] = [
            a for a in self.leases.values() if a.actor is None and (a.worker is None or not a.worker.blocked)
        ]
        return here + list(self.away.by_id.values())

    def _serve(self, active: Waiting, commands: list[Command], now: float) -> Waiting:
        """One lease after another, to whoever comes first; those who wait for more then, in their order."""
        order = Order(active, self._held(), now) if len(active) > 1 else None
        waiting: Waiting = []
        hopeless: dict[Any, str | None] = {}  #: shapes that nobody has room for, and why nobody can ever have
        forwards: dict[tuple[bytes, tuple[Hashable, int]], list[int]] = {}
        sort = True
        while active:
            if order is not None and sort:
                order.sort(active)
            sort = False
            name, demand = active.pop(0)
            if demand.wish:
                self._offer(name, demand, commands, waiting, now)
                continue
            if now < demand.patient_until and self._better_wait(demand):
                self.soon = True
                waiting.append((name, demand))
                continue
            target = None if demand.shape in hopeless else self._find(demand)
            if target is None:
                if demand.shape not in hopeless:
                    hopeless[demand.shape] = self._why_never(demand)
                if self._tell(name, demand, hopeless[demand.shape], commands, now):
                    waiting.append((name, demand))
                    self._reserve(demand, now)
                continue
            self._next_lease += 1
            if target == self._own:
                self._give(name, demand, commands, now)
            else:
                assert self.view is not None
                away = Away(self._next_lease, *name, target, demand, now)
                self.away.ask(away)
                self.view.took(target, demand.units)
                forwards.setdefault((target, name), []).append(away.lease_id)
            demand.since, demand.told = now, ""
            # To the end of the line: among equals, the next round begins with the others.
            self.demands[name] = self.demands.pop(name)
            if order is not None:
                order.took(*name, demand.job, demand.units)
                sort = True
            if demand.missing > 0:
                active.append((name, demand))
        for (node_id, name), leases in forwards.items():
            commands.append(("forward", node_id, leases, self.demands[name]))
        return waiting

    def _find(self, demand: Demand) -> bytes | None:
        """A node that has room for it; None: nobody has."""
        if self.view is None:
            return self._own if self._can_take(demand.units) else None
        for _ in range(2):
            target = self.view.choose(demand.units, demand.strategy, local=self._own, near=demand.near)
            if target != self._own or self._can_take(demand.units):
                return target
            self.view.refused(self._own, demand.units)  # it is kept for others, or no device is whole
        return None

    def _better_wait(self, demand: Demand) -> bool:
        """Whether it is worth a moment: the node with its data may only be held by leases that are idle and
        about to be returned; the node that it is to run on, if it can, may be so new that it is not known."""
        assert self.view is not None
        if demand.near is not None:
            row = self.view.nodes.get(demand.near)
            if row is not None and not row.has_room(demand.units):
                return self.view.allows(demand.near, demand.units, demand.strategy)
        strategy = demand.strategy
        return strategy is not None and strategy[0] == "node" and self.view.is_new(strategy[1])

    def _give(self, name: tuple[Hashable, int], demand: Demand, commands: list[Command], now: float) -> None:
        demand.granted += 1
        allocation = Allocation(
            self._next_lease, *name, demand.units, demand.env, demand.job, None, demand.priority
        )
        allocation.retriable, allocation.since = demand.retriable, now
        self._assign(allocation, commands)

    def _why_never(self, demand: Demand) -> str | None:
        return self.view.never(demand.units, demand.strategy) if self.view is not None else None

    def _tell(
        self,
        name: tuple[Hashable, int],
        demand: Demand,
        never: str | None,
        commands: list[Command],
        now: float,
    ) -> bool:
        """In a cluster: the owner hears it when nobody can ever serve this. False: it waits no more."""
        view = self.view
        if never is None or view is None:
            demand.told = ""
            return True
        lost = view.lost_cause(demand.strategy)
        if lost is None and view.unknown(demand.strategy) is not None:
            if now - demand.since < limits.UNKNOWN_NODE_GRACE:
                return True  # the news of that node may be on its way
            lost = never
        if lost is not None:
            demand.wanted = 0
            commands.append(("infeasible", *name, lost))
            return False
        if never != demand.told:
            demand.told = never
            commands.append(("waits", *name, never))
        return True

    # ---- wishes of other nodes -----------------------------------------------------------------------

    def wish(
        self, guest: Hashable, job: bytes, units: dict[str, int], priority: int, waited: float
    ) -> list[Command]:
        """Another node has something waiting that could run here, and finds no room. It says so again and
        again, as long as that is so. `waited`: seconds, 0 if its job has something already."""
        now = self._clock()
        name = (guest, job, res.key(units))
        demand = self._wishes.get(name)
        if demand is None:
            demand = self._wishes[name] = Demand(units, (), job, None, priority)
            demand.wish = True
            demand.wanted = 1
        demand.since = now - waited
        demand.priority = priority
        demand.expires = now + limits.WISH_LASTS
        return self.schedule()

    def forget_wishes(self) -> list[Command]:
        """What was kept for wishes that are not repeated any more is free. (Before others are refused it: a
        node on which nothing else happens would keep it for ever.)"""
        now = self._clock()
        return self.schedule() if any(wish.expires <= now for wish in self._wishes.values()) else []

    def _wished(self, now: float) -> Waiting:
        """Wishes that hold, as demands."""
        for name in [name for name, demand in self._wishes.items() if demand.expires <= now]:
            del self._wishes[name]
        return [((name[0], -index), demand) for index, (name, demand) in enumerate(self._wishes.items(), 1)]

    def _offer(
        self,
        name: tuple[Hashable, int],
        demand: Demand,
        commands: list[Command],
        waiting: Waiting,
        now: float,
    ) -> None:
        """It is its turn: keep room for it, if there is, and let its node know."""
        if not self._can_take(demand.units):
            waiting.append((name, demand))
            return
        res.add(self._withheld, demand.units)
        if not demand.told:
            demand.told = "offered"
            demand.expires = now + limits.WISH_LASTS
            commands.append(("offer", name[0]))

    def _reserve(self, demand: Demand, now: float) -> None:
        """A request that has waited long must not be overtaken for ever by smaller ones: if the tasks that
        run here leave it room one after another, that is kept for it, for a while."""
        if now >= demand.reserve_until:
            if now - demand.since < limits.AGING or (self.view is not None and demand.strategy):
                return
            free = dict(self.available)
            for allocation in self.leases.values():
                if allocation.actor is None:
                    res.add(free, allocation.units)
            if not res.fits(demand.units, free):
                return
            demand.reserve(now)
        if now < demand.reserve_until:
            res.add(self._withheld, demand.units)

    def _recall(self, waiting: Waiting, commands: list[Command], now: float) -> None:
        """Ask leases back from those who come after those who wait."""
        held = [x for x in self._held() if not isinstance(x, Allocation) or x.worker is not None]
        jobs = {(lease.job, lease.priority) for lease in held}
        first: Waiting = [((None, -1), self._as_demand(actor, now)) for actor in self._actors]
        for name, demand in waiting[: limits.RECALL_LOOKS]:
            if {(demand.job, demand.priority)} != jobs or now - demand.since >= limits.AGING:
                first.append((name, demand))
        if not first:
            return
        order = Order(first, self._held(), now)
        nodes: dict[bytes, Recall] = {}
        for who, demand in first[: limits.RECALL_LOOKS]:
            for node_id, available in self._places(who, demand):
                recall = nodes.get(node_id)
                if recall is None:
                    recall = nodes[node_id] = Recall(
                        [x for x in held if _where(x, self._own) == node_id], now
                    )
                found = recall.help(who, demand, available, order)
                if found is not None:
                    commands += [("recall", lease.owner, lease.number) for lease in found]
                    if node_id == self._own:
                        demand.reserve(now)
                    break

    def _places(self, who: tuple[Hashable, int], demand: Demand) -> list[tuple[bytes, dict[str, int]]]:
        """Nodes that could serve it, if room was made, and what is free there."""
        if self.view is None or who[0] is None or demand.wish:
            return [(self._own, self.available)]
        nodes = {self._own} | {away.node_id for away in self.away.by_id.values()}
        return [
            (node_id, self.view.nodes[node_id].available)
            for node_id in sorted(nodes, key=lambda node_id: (node_id != self._own, node_id))
            if self.view.allows(node_id, demand.units, demand.strategy)
        ]

    def _as_demand(self, actor: Allocation, now: float) -> Demand:
        """An actor that waits here: nobody holds less than it does."""
        demand = Demand(actor.units, actor.env, actor.job, None, actor.priority)
        waited = now - actor.since
        demand.since = now - limits.AGING if waited >= limits.LEASE_QUANTUM else now
        return demand

    def _can_take(self, units: dict[str, int]) -> bool:
        if self.draining or len(self.workers) + sum(self.starting.values()) >= limits.MAX_WORKERS:
            return False
        if not res.fits(units, self.available) or not self.bundles.can_allocate(units):
            return False
        if self._withheld:
            for name, amount in units.items():
                if name in self._withheld and self.available[name] - self._withheld[name] < amount:
                    return False
        return True

    def lease_returned(self, lease_id: int, owner: Hashable, now: float) -> list[Command]:
        """The owner does not need this lease any more. Twice is as once."""
        allocation = self.leases.get(lease_id)
        if allocation is None or allocation.owner != owner or allocation.actor is not None:
            away = self.away.returned(lease_id, owner)
            if away is None:
                return []
            self._no_more(away)
            return [("give_back", away.node_id, lease_id, ""), *self.schedule()]
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
            if not worker.ending:
                self._to_awaiting(worker, commands)
        return commands + self.schedule()

    def owner_gone(self, owner: Hashable) -> tuple[list[Worker], list[Command]]:
        """A process that held leases is gone: its workers, which must end because they may be running its
        tasks.
        """
        for owner_key in [k for k in self.demands if k[0] == owner]:
            del self.demands[owner_key]
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
        for wish in [wish for wish in self._wishes if wish[0] == owner]:
            del self._wishes[wish]
        commands: list[Command] = []
        for away in self.away.owner_gone(owner):
            why = "the process that had submitted its tasks has ended" if away.granted else ""
            commands.append(("give_back", away.node_id, away.lease_id, why))
        return orphans, commands + self.schedule()

    def _over(self, allocation: Allocation) -> None:
        name = (allocation.owner, allocation.key)
        if self._guests:
            self._guests.pop(name, None)
        demand = self.demands.get(name)
        if demand is not None:
            demand.since = self._clock()

    def _unserved(self, allocation: Allocation, text: str) -> Command:
        if allocation.actor is not None:
            return ("actor_failed", allocation.actor, text)
        # It never becomes a grant. The owner fails all that it has queued, so nothing more is wanted for now.
        demand = self.demands.get((allocation.owner, allocation.key))
        if demand is not None:
            demand.granted -= 1
            demand.wanted = 0
        return ("unserved", allocation.owner, allocation.key, allocation.env, text)

    # ---- leases of workers elsewhere -----------------------------------------------------------------

    def away_granted(self, lease_id: int, node_id: bytes, worker_id: bytes) -> Away | None:
        """Another node has a worker for it. None: it is not wanted, that node is to have it back."""
        return self.away.granted(lease_id, node_id, worker_id, self._clock())

    def away_refused(self, leases: list[int], node_id: bytes, row: dict[str, Any] | None) -> list[Command]:
        """Another node has no room, after all: its row as it is now."""
        assert self.view is not None
        refused = [away for lease in leases if (away := self.away.refused(lease, node_id)) is not None]
        if row is not None:
            self.view.apply([row])
        for away in refused:
            self.view.refused(node_id, away.units)
        return self.schedule()

    def away_failed(self, lease_id: int, node_id: bytes, text: str) -> list[Command]:
        """Another node could not start a worker for it."""
        away = self.away.refused(lease_id, node_id)
        if away is None:
            return []
        self._no_more(away)
        away.demand.wanted = 0
        return [("unserved", away.owner, away.key, away.demand.env, text), *self.schedule()]

    def away_over(self, lease_id: int, node_id: bytes) -> tuple[Away | None, list[Command]]:
        """Its worker is gone."""
        away = self.away.over(lease_id, node_id)
        if away is None:
            return None, []
        self._no_more(away)
        return (away if away.granted else None), self.schedule()

    def _no_more(self, away: Away) -> None:
        """Until its next row that node is taken to have so much more."""
        assert self.view is not None
        away.demand.since = self._clock()
        row = self.view.nodes.get(away.node_id)
        if row is not None:
            res.add(row.available, away.units)

    def node_gone(self, node_id: bytes, reason: str) -> list[Command]:
        """Another node is dead."""
        assert self.view is not None
        self.view.remove(node_id, reason)
        commands: list[Command] = []
        for away in self.away.node_gone(node_id):
            if away.granted:
                text = f"its node {node_id.hex()} is dead: {reason}"
                commands.append(("lost", away.owner, away.lease_id, text))
        return commands + self.schedule()

    # ---- guests --------------------------------------------------------------------------------------

    def lend(
        self,
        guest: Hashable,
        number: int,
        units: dict[str, int],
        env: EnvKey,
        job: bytes,
        retriable: bool,
        priority: int,
    ) -> list[Command] | None:
        """Another node asks for a lease, under its own number. None: there is no room now. Twice is as
        once: a grant is told again."""
        known = self.guest_lease(guest, number)
        if known is not None:
            return [] if known.worker is None else [("grant", guest, number, known)]
        wish = self._wishes.pop((guest, job, res.key(units)), None)
        if wish is not None and wish.told and self._withheld:
            res.subtract(self._withheld, wish.units)
        if not self._can_take(units):
            return None
        self._next_lease += 1
        allocation = Allocation(self._next_lease, guest, number, units, env, job, None, priority)
        allocation.retriable, allocation.since, allocation.guest = retriable, self._clock(), True
        self._guests[(guest, number)] = allocation.lease_id
        commands: list[Command] = []
        self._assign(allocation, commands)
        return commands

    def guest_lease(self, guest: Hashable, number: int) -> Allocation | None:
        """The lease that a guest names by this number."""
        return self.leases.get(self._guests.get((guest, number), 0))

    def guest_leases(self, guest: Hashable) -> dict[int, Allocation]:
        """All of them, by number."""
        return {number: self.leases[lease] for (who, number), lease in self._guests.items() if who == guest}

    def busy(self) -> int:
        """Workers that have something to do, or will have as soon as they are there."""
        at_work = sum(1 for worker in self.workers.values() if worker.state not in (IDLE, RETIRED))
        return at_work + sum(1 for a in self.leases.values() if a.worker is None) + len(self._actors)


def _where(lease: Held, own: bytes) -> bytes:
    return lease.node_id if isinstance(lease, Away) else own
