"""Workers on lease: asked of the node by demand, filled with tasks, given back when idle, mourned when they
die. All on the loop.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection, Frame
from framework._runtime.task_errors import crashed, unschedulable
from framework._state.leases import KeyState, Lease
from framework._state.tasks import QUEUED, TaskRecord
from framework._wire import messages as m
from framework.exceptions import RuntimeEnvSetupError, WorkerCrashedError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class Leasing:
    """The leases of this process, and the tasks that are on them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._loop = runtime.loop
        self._catalogue = runtime.catalogue
        self._submitter = runtime.submitter
        self._leases: dict[int, Lease] = {}
        self.dirty: set[KeyState] = set()  #: keys where something may have changed
        self._lease_timer: Any = None
        self._stall_timer: Any = None
        self._pressure_until = 0.0
        self.handlers = {m.RETURNED: self._returned, m.RETIRING: self._retiring}
        self.node_handlers = {
            m.LEASE_GRANT: self._granted,
            m.LEASE_INFEASIBLE: self._infeasible,
            m.LEASE_LOST: self._lost,
            m.LEASE_PRESSURE: self._pressure,
        }

    # ---- sending -------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what can be sent, for all keys where something changed."""
        while self.dirty:
            key = self.dirty.pop()
            touched: set[Lease] = set()
            with self._submitter.outcome:
                sends = key.dispatch()
            for lease, task in sends:
                connection = lease.connection
                self._catalogue.prepare(connection, task.template)
                connection.buffer(task.frame)
                touched.add(lease)
            for lease in touched:
                lease.connection.flush()
                if lease.connection.full and not lease.full:
                    lease.full = True
                    lease.connection.when_drained(partial(self._drained, lease))
            self._tell_demand(key)
        if self._leases:
            self._tend_leases()

    def _drained(self, lease: Lease) -> None:
        """Its worker takes what is sent to it again."""
        lease.full = False
        self.dirty.add(lease.key)
        self._runtime.flush_soon()

    def _tell_demand(self, key: KeyState) -> None:
        node = self._runtime.node
        if node is None:
            return
        seen = key.seen
        wanted = key.wanted()
        if wanted is not None:
            if seen == 0 and not node.state.get(key.key_id):
                node.state[key.key_id] = True
                node.cast(m.LEASE_KEY, key.key_id, key.resources, key.env, key.strategy, key.retriable)
            node.cast(m.LEASE_DEMAND, key.key_id, wanted, seen)

    def node_connected(self) -> None:
        """There is a node to ask now."""
        self.dirty.update(key for key in self._catalogue.keys_by_id.values() if key.pending)
        self.flush()

    # ---- leases --------------------------------------------------------------------------------------

    def _granted(self, node: Connection, frame: Frame) -> None:
        _, key_id, lease_id, worker_id, address, gpus = frame
        key = self._catalogue.keys_by_id[key_id]
        now = self._loop.time()
        connection = self._runtime.peers.connect(address)
        if connection is None:
            # Dead before we could use it: the node will hear, too.
            key.seen += 1
            key.demand_sent = max(0, key.demand_sent - 1)
            node.cast(m.LEASE_RETURN, lease_id)
        else:
            lease = Lease(lease_id, key, worker_id, address, gpus, connection, now)
            key.granted(lease)
            self._leases[lease_id] = lease
            connection.state.leases[lease_id] = lease
            omp = key.resources.get("CPU", 0) // 10_000
            connection.buffer(connection.pack((m.LEASE_BEGIN, lease_id, gpus, omp)))
        self.dirty.add(key)
        self.flush()

    def _infeasible(self, node: Connection, frame: Frame) -> None:
        _, key_id, forever, error, text = frame
        key = self._catalogue.keys_by_id[key_id]
        if forever:
            key.infeasible = text
        key.demand_sent = 0
        tasks = [task for task in key.pending if task.state == QUEUED]
        key.pending.clear()
        for task in tasks:
            if forever:
                self._submitter.fail(task, unschedulable(task, text))
            elif error == "RuntimeEnvSetupError":
                variables = ", ".join(key.env or ())
                self._submitter.fail(
                    task,
                    RuntimeEnvSetupError(
                        f"{task.template.name}() could not run with the env_vars of its runtime_env "
                        f"({variables}): {text}"
                    ),
                )
            else:
                self._submitter.fail(
                    task, WorkerCrashedError(f"{task.template.name}() could not run: {text}")
                )

    def _tend_leases(self) -> None:
        now = self._loop.time()
        if now < self._pressure_until:
            self._return_idle(0.0)
        if self._lease_timer is None and self._leases:
            self._lease_timer = self._loop.call_later(limits.LEASE_IDLE, self._lease_tick)
        if self._stall_timer is None and any(len(lease.inflight) > 1 for lease in self._leases.values()):
            self._stall_timer = self._loop.call_later(limits.STALL, self._stall_tick)

    def _lease_tick(self) -> None:
        self._lease_timer = None
        self._return_idle(limits.LEASE_IDLE * 0.8)
        if self._leases:
            self._lease_timer = self._loop.call_later(limits.LEASE_IDLE, self._lease_tick)

    def _return_idle(self, age: float) -> None:
        now = self._loop.time()
        node = self._runtime.node
        for key in {lease.key for lease in self._leases.values()}:
            for lease in key.take_idle(now, age):
                self._forget(lease)
                if node is not None:
                    node.cast(m.LEASE_RETURN, lease.lease_id)

    def _forget(self, lease: Lease) -> list[TaskRecord]:
        self._leases.pop(lease.lease_id, None)
        lease.connection.state.leases.pop(lease.lease_id, None)
        with self._submitter.outcome:
            return lease.key.lost(lease)

    def _pressure(self, node: Connection, frame: Frame) -> None:
        self._pressure_until = self._loop.time() + 1.0
        self._return_idle(0.0)

    def pressed(self) -> bool:
        """Any thread: whether others want leases, so that none may stay without work."""
        return self._pressure_until > 0.0 and self._runtime.clock() < self._pressure_until

    def _stall_tick(self) -> None:
        self._stall_timer = None
        now = self._loop.time()
        again = False
        for key in {lease.key for lease in self._leases.values()}:
            for lease in key.stalled(now):
                lease.reclaiming = True
                lease.connection.cast(m.RECLAIM, len(lease.inflight) - 1)
            again = again or any(len(lease.inflight) > 1 for lease in key.leases.values())
        if again:
            self._stall_timer = self._loop.call_later(limits.STALL, self._stall_tick)

    def _returned(self, connection: Connection, frame: Frame) -> None:
        _, uniques, blocked = frame
        now = self._loop.time()
        by_lease: dict[Lease, list[int]] = {}
        for unique in uniques:
            task = self._submitter.tasks.get(unique)
            if task is not None and task.lease is not None:
                by_lease.setdefault(task.lease, []).append(unique)
        for lease in connection.state.leases.values():
            lease.reclaiming = False
            if blocked:
                lease.blocked = True
            else:
                lease.progress = now
                # Its running task is slow after all: it takes no more before that is done.
                lease.load = max(lease.load, limits.LEASE_BUDGET_US) if lease.inflight else lease.load
        for lease, group in by_lease.items():
            for task in lease.key.handed_back(lease, group, now):
                if task.template.mean_us is not None:
                    task.template.mean_us = max(task.template.mean_us, limits.STALL * 1e6 / 4)
            lease.blocked = blocked
            self.dirty.add(lease.key)

    def _retiring(self, connection: Connection, frame: Frame) -> None:
        for lease in connection.state.leases.values():
            lease.retiring = True
        if connection.state.address:
            connection.state.templates.clear()

    def peer_lost(self, connection: Connection) -> None:
        """The connection to a worker is gone: the node will say why (LEASE_LOST)."""
        for lease in list(connection.state.leases.values()):
            lease.retiring = True
            if lease.verdict is not None:
                self._lose(*lease.verdict)
                self._runtime.flush_soon()
            else:
                verdict = (lease.lease_id, 0, 0, "the connection to it was lost", "")
                self._loop.call_later(limits.DEATH_VERDICT_TIMEOUT, self._lose, *verdict)

    def _lost(self, node: Connection, frame: Frame) -> None:
        verdict = frame[1:]
        lease = self._leases.get(verdict[0])
        if lease is None:
            return
        if lease.connection.closed:
            self._lose(*verdict)
            self.flush()
            return
        # The node's word has overtaken what the worker has still said: that is read first, so that no task
        # that was done runs again. The end of the connection may not come, if user code has forked a process
        # that holds it open.
        lease.retiring = True
        lease.verdict = verdict
        self._loop.call_later(limits.EXIT_GRACE, self._lose, *verdict)

    def _lose(self, lease_id: int, running: int, pid: int, detail: str, kind: str) -> None:
        lease = self._leases.get(lease_id)
        if lease is None:
            return
        lease.connection.close()
        tasks = self._forget(lease)
        self.dirty.add(lease.key)
        # `running` is what the worker had begun. If it is not among ours, none of ours had started: no retry
        # is spent.
        for task in reversed(tasks):
            if task.cancelled is not None:
                self._submitter.end_cancelled(task)
            elif task.unique != running:
                task.state = QUEUED
                lease.key.pending.appendleft(task)
            elif kind == "memory":
                self._submitter.out_of_memory(task, pid, detail)
            elif self._submitter.survives(task):
                self._submitter.retry(task, f"its worker (pid={pid}) died: {detail}")
            else:
                self._submitter.discard_results(task)
                self._submitter.fail(task, crashed(task, pid, detail))

    def end_retired(self, lease: Lease) -> None:
        """Its worker is about to exit: the node takes the lease back when it sees that."""
        self._forget(lease)

    def clear(self) -> None:
        """There is no node any more."""
        for key in self._catalogue.keys_by_id.values():
            key.pending.clear()
        self._leases.clear()
        self.dirty.clear()

    def close(self) -> None:
        """No more timers."""
        for timer in (self._lease_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
