"""Workers on lease: asked of the node by demand, filled with tasks, given back when idle, mourned when they
die. All on the loop.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.resources import lendable
from framework._net.connection import Connection, Frame
from framework._runtime.frames import send_tasks
from framework._runtime.task_errors import crashed, group_removed, unschedulable
from framework._state.bundles import REMOVED
from framework._state.leases import KeyState, Lease
from framework._state.tasks import QUEUED, TaskRecord
from framework._wire import messages as m
from framework.exceptions import RuntimeEnvSetupError, WorkerCrashedError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

log = logging.getLogger("framework")

_UNKNOWN = -1  #: as the task that had begun: the first one on the worker, then


class Leasing:
    """The leases of this process, and the tasks that are on them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._loop = runtime.loop
        self._catalogue = runtime.catalogue
        self._submitter = runtime.submitter
        self._leases: dict[int, Lease] = {}
        self.dirty: dict[KeyState, None] = {}  #: keys where something may have changed
        self._lease_timer: Any = None
        self._stall_timer: Any = None
        self._pressure_until = 0.0
        self.handlers = {m.RETURNED: self._returned, m.RETIRING: self._retiring}
        self.node_handlers = {
            m.LEASE_GRANT: self._granted,
            m.LEASE_INFEASIBLE: self._infeasible,
            m.LEASE_LOST: self._lost,
            m.LEASE_PRESSURE: self._pressure,
            m.LEASE_RECALL: self._recalled,
            m.LEASE_WAITS: self._waits,
        }

    # ---- sending -------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what can be sent, for all keys where something changed."""
        pressed = bool(self.dirty) and self._loop.time() < self._pressure_until
        while self.dirty:
            key, _ = self.dirty.popitem()
            if pressed and key.free:
                # One that has run empty goes back, even if tasks wait here: the node knows whose turn it is.
                for lease in key.take_idle(self._loop.time(), 0.0, worked=True):
                    self._give_back(lease)
            with self._submitter.outcome:
                sends = key.dispatch()
            for lease, tasks in sends.items():
                send_tasks(lease.connection, tasks, self._catalogue.prepare)
                if lease.connection.full and not lease.full:
                    lease.full = True
                    lease.connection.when_drained(partial(self._drained, lease))
            self._tell_demand(key)
            if key.spread and key.free and not key.pending:
                self._return_leases(key, 0.0)
        if self._leases:
            self._tend_leases()

    def _drained(self, lease: Lease) -> None:
        """Its worker takes what is sent to it again."""
        lease.full = False
        self.dirty[lease.key] = None
        self._runtime.flush_soon()

    def _tell_demand(self, key: KeyState) -> None:
        node = self._runtime.node
        if node is None:
            return
        if key.pending and key.strategy and key.strategy[0] == "group":
            if not self._runtime.groups.is_open(key) and key.pending:
                return
        seen = key.seen
        wanted = key.wanted()
        if wanted is not None:
            if not node.state.get(key.key_id):
                node.state[key.key_id] = True
                node.cast(
                    m.LEASE_KEY,
                    key.key_id,
                    key.resources,
                    key.env,
                    key.strategy,
                    key.retriable,
                    key.priority,
                    key.near,
                )
            node.cast(m.LEASE_DEMAND, key.key_id, wanted, seen)

    def node_connected(self) -> None:
        """There is a node to ask now."""
        keys = list(self._catalogue.keys_by_id.values())
        self.dirty.update((key, None) for key in keys if key.pending)
        self.flush()

    # ---- leases --------------------------------------------------------------------------------------

    def _granted(self, node: Connection, frame: Frame) -> None:
        _, key_id, lease_id, worker_id, address, gpus = frame
        key = self._catalogue.keys_by_id.get(key_id)
        if key is None:  # nobody wants it any more
            node.cast(m.LEASE_RETURN, lease_id)
            return
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
            omp = max(lendable(key.resources).values(), default=0) // 10_000
            connection.buffer(connection.pack((m.LEASE_BEGIN, lease_id, gpus, omp)))
        self.dirty[key] = None
        self.flush()

    def give_up(self, key: KeyState, text: str, *, gone: bool) -> None:
        """The tasks of this key can never run; `gone`: as their placement group was removed."""
        key.infeasible, key.gone = text, gone
        if gone:
            for lease in list(key.leases.values()):
                self._recall(lease)  # nothing more is put on it; its worker ends if it does not return
        tasks = [task for task in key.pending if task.state == QUEUED]
        key.pending.clear()
        for task in tasks:
            self._submitter.fail(task, unschedulable(task, text))
        self.dirty[key] = None  # nothing more is wanted of the node
        self._runtime.flush_soon()

    def _infeasible(self, node: Connection, frame: Frame) -> None:
        _, key_id, forever, error, text = frame
        key = self._catalogue.keys_by_id.get(key_id)
        if key is None:
            return
        key.demand_sent = 0
        if text.startswith(REMOVED):
            self.give_up(key, text, gone=True)
            return
        if forever:
            key.infeasible = text
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
        for key in dict.fromkeys(lease.key for lease in self._leases.values()):
            self._return_leases(key, age)

    def _return_leases(self, key: KeyState, age: float) -> None:
        for lease in key.take_idle(self._loop.time(), age):
            self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        self._forget(lease)
        if self._runtime.node is not None:
            self._runtime.node.cast(m.LEASE_RETURN, lease.lease_id)

    def _forget(self, lease: Lease) -> list[TaskRecord]:
        self._leases.pop(lease.lease_id, None)
        lease.connection.state.leases.pop(lease.lease_id, None)
        with self._submitter.outcome:
            return lease.key.lost(lease)

    def _pressure(self, node: Connection, frame: Frame) -> None:
        self._pressure_until = self._loop.time() + 1.0
        self._return_idle(0.0)

    def _recalled(self, node: Connection, frame: Frame) -> None:
        """Others come first now."""
        lease = self._leases.get(frame[1])
        if lease is not None:
            self._recall(lease)

    def _recall(self, lease: Lease) -> None:
        """This lease goes back when its running task is done."""
        if lease.recalled:
            return
        with self._submitter.outcome:  # a thread may just be taking the answer to its task itself
            lease.recalled = lease.retiring = True
        if len(lease.inflight) > 1:
            lease.reclaiming = True
            lease.connection.cast(m.RECLAIM, len(lease.inflight) - 1)
        elif not lease.inflight:
            self._end_recalled(lease)

    def _end_recalled(self, lease: Lease) -> None:
        """It is idle, unless a user's thread is just putting a task on it."""
        if lease.dead or lease.inflight:
            return
        if lease.key.withdraw(lease):
            self._give_back(lease)
        else:
            self._loop.call_later(limits.STALL, self._end_recalled, lease)

    def _waits(self, node: Connection, frame: Frame) -> None:
        """No node can serve this as the cluster is; one that can may join."""
        _, key_id, text = frame
        key = self._catalogue.keys_by_id.get(key_id)
        if key is None:
            return
        names = {task.template.name for task in key.pending if task.state == QUEUED}
        if names and text != key.warned:
            key.warned = text
            calls = ", ".join(f"{name}()" for name in sorted(names)[:5])
            log.warning(
                "%s waits, as no node can run it now: %s. It runs when one that can joins", calls, text
            )

    def pressed(self) -> bool:
        """Any thread: whether others want leases, so that none may stay without work."""
        return self._pressure_until > 0.0 and self._runtime.clock() < self._pressure_until

    def _stall_tick(self) -> None:
        self._stall_timer = None
        now = self._loop.time()
        again = False
        for key in dict.fromkeys(lease.key for lease in self._leases.values()):
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
                lease.load = max(lease.load, limits.LEASE_BUDGET_MOST_US) if lease.inflight else lease.load
        for lease, group in by_lease.items():
            for task in lease.key.handed_back(lease, group, now):
                if task.template.mean_us is not None:
                    task.template.mean_us = max(task.template.mean_us, limits.STALL * 1e6 / 4)
            lease.blocked = blocked
            self.dirty[lease.key] = None

    def _retiring(self, connection: Connection, frame: Frame) -> None:
        for lease in connection.state.leases.values():
            lease.retiring, lease.recalled = True, False  # it does not come back: its worker ends
        if connection.state.address:
            connection.state.templates.clear()

    def peer_lost(self, connection: Connection) -> None:
        """The connection to a worker is gone: the node will say why (LEASE_LOST)."""
        if connection.state is None:
            return  # it was not let in
        for lease in list(connection.state.leases.values()):
            lease.retiring = True
            if lease.verdict is not None:
                self._lose(*lease.verdict)
                self._runtime.flush_soon()
            else:
                self._loop.call_later(limits.DEATH_VERDICT_TIMEOUT, self._unheard, lease)

    def _unheard(self, lease: Lease) -> None:
        """The connection to a worker is gone, and nobody says that the worker is. On another machine it may
        live, and run our task: it must end before that is run again."""
        if lease.dead:
            return
        running = 0
        if self._runtime.config.cluster is not None and self._runtime.node is not None:
            running = _UNKNOWN
            why = "its owner has lost the connection to it"
            self._runtime.node.cast(m.KILL_WORKER, lease.worker_id, why)
        self._lose(lease.lease_id, running, 0, "the connection to it was lost", "")

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
        self.dirty[lease.key] = None
        # `running` is what the worker had begun. If it is not among ours, none of ours had started: no retry
        # is spent. Where nobody knows, it is the first one.
        if running == _UNKNOWN:
            running = tasks[0].unique if tasks else 0
        for task in reversed(tasks):
            task.lost = True
            if task.cancelled is not None:
                self._submitter.end_cancelled(task)
            elif kind == "group":
                self._submitter.discard_results(task)
                self._submitter.fail(task, group_removed(task, detail))
            elif task.unique != running:
                task.state = QUEUED
                lease.key.pending.appendleft(task)
            elif kind == "memory":
                self._submitter.out_of_memory(task, pid, detail)
            elif self._submitter.survives(task):
                who = f"its worker (pid={pid})" if pid else "its worker"  # (not known of another node's)
                self._submitter.retry(task, f"{who} died: {detail}")
            else:
                self._submitter.discard_results(task)
                self._submitter.fail(task, crashed(task, pid, detail))

    def end_retired(self, lease: Lease) -> None:
        """Its last task is done. A worker that is about to exit: the node takes the lease back when it sees
        that."""
        if lease.recalled:
            self._give_back(lease)
        else:
            self._forget(lease)

    def clear(self) -> None:
        """There is no node any more. No worker is to get anything: nobody would tell what became of it."""
        for key in list(self._catalogue.keys_by_id.values()):
            key.pending.clear()
        for lease in list(self._leases.values()):
            self._forget(lease)
        self.dirty.clear()

    def close(self) -> None:
        """No more timers."""
        for timer in (self._lease_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
