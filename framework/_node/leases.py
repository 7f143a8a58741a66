"""The node's side of leases: owners say what they could use, and are told what they get."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework._net.connection import Connection, Frame, Handler
from framework._state.node import IDLE, RETIRED, Allocation, env_key
from framework._state.waiting import why
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._node.service import NodeService


class NodeLeases:
    """Leases of this node's workers, for owners of this node."""

    def __init__(self, node: NodeService) -> None:
        self._node = node
        self.handlers: dict[int, Handler] = {
            m.LEASE_KEY: self._key,
            m.LEASE_FORGET: self._forget,
            m.LEASE_DEMAND: self._demand,
            m.LEASE_RETURN: self._return,
            m.BLOCKED: self._blocked,
            m.UNBLOCKED: self._unblocked,
            m.KILL_WORKER: self._kill_worker,
            m.LEASE_WHY: self._why,
            m.RETIRED: self._retired,
        }

    def _key(self, connection: Connection, frame: Frame) -> None:
        _, key, units, env, strategy, retriable, priority, near = frame
        job = self._node.job_of_peer(connection)
        self._node.state.describe_key(
            connection, key, units, env_key(env), job, strategy, retriable, priority, near
        )

    def _forget(self, connection: Connection, frame: Frame) -> None:
        self._node.run(self._node.state.forget_keys(connection, frame[1]))

    def _demand(self, connection: Connection, frame: Frame) -> None:
        self._node.run(self._node.state.demand(connection, frame[1], frame[2], frame[3]))

    def _return(self, connection: Connection, frame: Frame) -> None:
        node = self._node
        allocation = node.state.leases.get(frame[1])
        node.run(node.state.lease_returned(frame[1], connection, node.now()))
        if allocation is not None and allocation.worker is not None:
            node.output.set_active(allocation.worker.worker_id, allocation.worker.state != IDLE)
            node.watch_idle()

    def _blocked(self, connection: Connection, frame: Frame) -> None:
        self._node.run(self._node.state.blocked(connection.ident))

    def _unblocked(self, connection: Connection, frame: Frame) -> None:
        self._node.state.unblocked(connection.ident)

    def _kill_worker(self, connection: Connection, frame: Frame) -> None:
        """An owner asks for the end of a worker that it has leased."""
        worker = self._node.state.workers.get(frame[1])
        if worker is not None:
            if worker.allocation is not None and worker.allocation.owner == connection:
                self._node.processes.end(frame[1], frame[2], intended=True)
        elif self._node.forwarding is not None:
            self._node.forwarding.kill(frame[1], connection, frame[2])

    def _retired(self, connection: Connection, frame: Frame) -> None:
        """A worker has done what it may (`max_calls`), and stays for what it owns. Its owner knows that."""
        node = self._node
        allocation, commands = node.state.worker_retired(connection.ident)
        if allocation is not None and allocation.guest:
            allocation.owner.cast(m.LEASE_LOST, allocation.number, 0, 0, "", RETIRED)
        node.output.set_active(connection.ident, False)
        node.run(commands)

    def _why(self, connection: Connection, frame: Frame) -> None:
        connection.reply(frame[1], why(self._node.state, connection, frame[2]))

    def grant(self, owner: Connection, key: int, allocation: Allocation) -> None:
        """Tell the owner of its lease."""
        worker = allocation.worker
        assert worker is not None
        self._node.set_active(worker.worker_id)
        gpus = self._node.gpus_of(allocation)
        owner.cast(m.LEASE_GRANT, key, allocation.lease_id, worker.worker_id, worker.address, gpus)

    def infeasible(self, owner: Connection, key: int, text: str) -> None:
        """No node can ever serve this."""
        owner.cast(m.LEASE_INFEASIBLE, key, True, "TaskUnschedulableError", text)

    def waits(self, owner: Connection, key: int, text: str) -> None:
        """No node can serve this as things are; one that can may join."""
        owner.cast(m.LEASE_WAITS, key, text)

    def recall(self, owner: Connection, lease_id: int) -> None:
        """Others come first: this one is to return when its running task is done."""
        owner.cast(m.LEASE_RECALL, lease_id)

    def unserved(self, owner: Connection, key: int, env: object, text: str) -> None:
        """No worker could be started for this."""
        error = "RuntimeEnvSetupError" if env else "WorkerCrashedError"
        owner.cast(m.LEASE_INFEASIBLE, key, False, error, text)

    def pressure(self, owner: Connection) -> None:
        """Others wait for what this one may not need."""
        owner.cast(m.LEASE_PRESSURE)

    def worker_gone(self, allocation: Allocation, running: int, pid: int, end: str, kind: str) -> None:
        """The worker of a lease has ended."""
        if not allocation.owner.closed:
            allocation.owner.cast(m.LEASE_LOST, allocation.number, running, pid, end, kind)
