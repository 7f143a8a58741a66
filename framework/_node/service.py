"""The node service: its rooms (processes, leases, actors, output), peers that come and go, and what
`NodeState` decides carried out.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection, Frame, Handler
from framework._node.actors import NodeActors
from framework._node.bundles import NodeBundles
from framework._node.hardware import gpu_names
from framework._node.leases import NodeLeases
from framework._node.memory_monitor import MemoryMonitor
from framework._node.output_service import OutputService
from framework._node.processes import Processes
from framework._service.census import answer_census
from framework._state.node import IDLE, RETIRED, Allocation, NodeState, Worker
from framework._state.waiting import pending
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._node.forwarding import Forwarding
    from framework._node.head_link import HeadLink


class NodeService:
    """Handlers for owners (drivers and workers) and for the head. Lives on one loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        node_id: bytes,
        session_dir: str,
        total: dict[str, int],
        *,
        random_bytes: Callable[[int], bytes],
        prestart: int,
        stop: Callable[[str], None],
        memory_threshold: float = limits.MEMORY_THRESHOLD,
        stays: bool = False,
    ) -> None:
        """`stop(reason)` ends the process. A node that `stays` goes on when its last driver has left."""
        self._loop = loop
        self.now = loop.time
        self.session_dir = session_dir
        self._prestart = prestart
        self.stop_process = stop
        self._stays = stays
        self.node_id = node_id
        self.state = NodeState(total, node_id.hex(), loop.time)
        self._gpu_names = gpu_names(self.state.gpus.total)
        self.labels: dict[str, str] = {}
        self._head: Connection | HeadLink | None = None
        self._owners: dict[Connection, bytes] = {}  #: everyone who may ask for leases -> job
        self._idents: dict[bytes, Connection] = {}
        #: what else must come to an end when it drains: of what, how many and how many bytes
        self.also_busy: Callable[[], dict[str, int]] = lambda: {"objects": 0}
        self.on_drain: Callable[[], object] = lambda: None
        self._store_peer_lost: Callable[[Connection], None] = lambda _: None
        self.processes = Processes(loop, self, random_bytes)
        self.processes.config = {"session_dir": session_dir, "node_id": node_id, "total": dict(total)}
        self.actors = NodeActors(self)
        self.leases = NodeLeases(self)
        self.bundles = NodeBundles(loop, self)
        self.output = OutputService(
            loop,
            session_dir,
            job_of=self._job_of,
            anyone_works=lambda: any(w.state not in (IDLE, RETIRED) for w in self.state.workers.values()),
        )
        self.memory = MemoryMonitor(
            loop, memory_threshold, self.processes.memory_users, self.processes.end_for_memory
        )
        self._reap_timer: asyncio.TimerHandle | None = None
        self._load_timer: asyncio.TimerHandle | None = None
        self._again_timer: asyncio.TimerHandle | None = None
        self._replenish_timer: asyncio.TimerHandle | None = None
        self.forwarding: Forwarding | None = None  #: in a cluster
        self._total_told = 0  #: which state of the total the head knows
        self.stopping = False
        self._jobs_over: set[bytes] = set()  #: jobs whose driver is gone, and that still have workers
        self.handlers: dict[int, Handler] = {
            **self.leases.handlers,
            **self.actors.handlers,
            m.EXIT_DENIED: self._exit_denied,
            m.LOG_FLUSH: self._log_flush,
            m.LEAVING: self._leaving,
            m.NODE_STOP: self._node_stop,
            m.PROCESSES: self.list_processes,
            m.CENSUS: answer_census,
        }
        self.head_handlers: dict[int, Handler] = {
            **self.actors.head_handlers,
            **self.bundles.head_handlers,
            m.NODE_DRAIN: self._drain,
            m.NODE_HOLDS: self._holds,
        }

    # ---- start and stop ------------------------------------------------------------------------------

    def start(self, zygote_sock: socket.socket, zygote_pid: int, head: Connection | HeadLink) -> None:
        """Join the head and start the first workers."""
        self._head = head
        self.processes.zygotes.adopt(zygote_sock, zygote_pid)
        if isinstance(head, Connection):  # of a local session; in a cluster the `HeadLink` joins by itself
            head.call(m.NODE_JOIN, self.join_info())
        self.run(self.state.prestart(self._prestart))

    def join_info(self) -> dict[str, Any]:
        """What the head is told of this node."""
        return {
            "node_id": self.node_id,
            "total": self.state.total,
            "available": self.state.available,
            "pid": os.getpid(),
            "session_dir": self.session_dir,
            "labels": self.labels,
            "actors": self.actors.report(),
            "processes": [c.ident for c in self._owners if not c.closed and c.kind in ("driver", "worker")],
            "bundles": self.bundles.held(),
        }

    def tell_head(self, *frame: object) -> None:
        """A message without an answer; nothing happens where there is no head."""
        if self._head is not None:
            self._head.cast(*frame)

    def attach_store(self, handlers: dict[int, Handler], peer_lost: Callable[[Connection], None]) -> None:
        """The object store's messages come over the same connections."""
        self.handlers.update(handlers)
        self.head_handlers[m.STORE_FREE] = handlers[m.STORE_FREE]  # of what it keeps for actors
        self._store_peer_lost = peer_lost

    def process_of(self, ident: bytes) -> Connection | HeadLink | None:
        """The connection of a driver or worker of this node, or of the head (under the node's own id)."""
        return self._head if ident == self.node_id else self._idents.get(ident)

    def process_rows(self) -> list[dict[str, Any]]:
        """The drivers and workers that are connected."""
        return [
            {"ident": c.ident, "kind": c.kind, "pid": c.peer["pid"], "address": c.peer["address"]}
            for c in self._owners
            if not c.closed and c.kind != "tool"
        ]

    def list_processes(self, connection: Connection, frame: Frame) -> None:
        """PROCESSES of a peer of this node, or of another node."""
        connection.reply(frame[1], self.process_rows())

    def tell_all(self, *frame: object) -> None:
        """A message to all drivers and workers of this node."""
        for connection in self._owners:
            if not connection.closed:
                connection.cast(*frame)

    def say_goodbye(self, reason: str, done: Callable[[], None]) -> None:
        """Before `stop`: let actors that have a shutdown hook run it; `done` is called when they have ended,
        which may be at once."""
        self.stopping = True
        waiting = self.actors.with_hooks()
        for worker_id in sorted(waiting):
            self.state.workers[worker_id].peer.cast(m.EXIT, True, reason)
        if waiting:
            self.processes.say_goodbye(waiting, done)
        else:
            done()

    def stop(self) -> None:
        """Tell every worker and zygote to end, at once."""
        self.stopping = True
        self.memory.stop()
        self.output.stop()
        if self.forwarding is not None:
            self.forwarding.close()
        for timer in (self._reap_timer, self._load_timer, self._again_timer, self._replenish_timer):
            if timer is not None:
                timer.cancel()
        self.processes.stop()

    def deliver_rest(self) -> None:
        """After `stop`, when the workers are gone: the output that nobody has seen yet."""
        self.output.deliver_rest()
        for worker_id in list(self.processes.by_id):
            self.output.forget(worker_id)
        for connection in self.output.drivers:
            connection.flush()

    # ---- peers ---------------------------------------------------------------------------------------

    def peer_joined(self, connection: Connection) -> dict[str, object] | None:
        """A driver or worker said HELLO."""
        info = connection.peer
        facts: dict[str, object] = {
            "node_id": self.node_id,
            "total": self.processes.config["total"],
            "pid": os.getpid(),
        }
        self._owners[connection] = info.get("job", b"")
        self._idents[connection.ident] = connection
        if connection.kind == "driver":
            self.output.drivers[connection] = info.get("job", b"")
            connection.state = info
        elif connection.kind == "worker":
            process = self.processes.by_id.get(connection.ident)
            if process is None:
                connection.close()
                return None
            self.processes.up(process, connection)
            worker = Worker(process.worker_id, info["pid"], info["address"], process.env, connection)
            self.run(self.state.worker_up(worker, self._loop.time()))
            self.watch_idle()
        return facts

    def peer_lost(self, connection: Connection) -> None:
        """A driver or worker is gone."""
        job = self._owners.pop(connection, None)
        if job is None:
            return
        if self._idents.get(connection.ident) is connection:
            del self._idents[connection.ident]
        self._store_peer_lost(connection)
        self.output.drivers.pop(connection, None)
        if self.forwarding is not None and connection.kind in ("driver", "worker"):
            self.tell_head(m.OWNER_GONE, connection.ident, connection.kind, job)
        orphans, commands = self.state.owner_gone(connection)
        for worker in orphans:
            self.processes.end(
                worker.worker_id, "the process that had submitted its tasks has ended", intended=True
            )
        self.run(commands)
        if connection.kind == "worker":
            self.processes.connection_lost(connection.ident)
        elif connection.kind == "driver" and not self.stopping:
            if self.output.drivers or self._stays:
                self.job_ended(job)
            else:
                self.stop_process("its driver has ended")

    def job_ended(self, job: bytes) -> None:
        """Its driver is gone: workers are not handed on to other jobs, so those that are idle end now."""
        idle, commands = self.state.job_ended(job, self._prestart)
        for worker in idle:
            worker.peer.cast(m.JOB_OVER)
        self._jobs_over.add(job)
        self.run(commands)
        self.watch_idle()

    def job_of_peer(self, connection: Connection) -> bytes:
        """The job that a driver or worker works for. (A worker says HELLO before it has one.)"""
        job = self._owners.get(connection, b"")
        if not job and connection.kind == "worker":
            return self._job_of(connection.ident) or b""
        return job

    # ---- decisions carried out -----------------------------------------------------------------------

    def run(self, commands: list[tuple[Any, ...]]) -> None:
        """Do what `NodeState` says."""
        for command in commands:
            word = command[0]
            if word == "grant":
                self.leases.grant(*command[1:])
            elif word == "start":
                self.processes.start(command[1])
            elif word == "run_actor":
                self.actors.run(command[1], command[2])
                self.replenish_soon()
            elif word == "infeasible":
                self.leases.infeasible(*command[1:])
            elif word == "waits":
                self.leases.waits(*command[1:])
            elif word == "recall":
                self.leases.recall(*command[1:])
            elif word == "forward":
                assert self.forwarding is not None
                self.forwarding.forward(*command[1:])
            elif word == "give_back":
                assert self.forwarding is not None
                self.forwarding.give_back(*command[1:])
            elif word == "offer":
                assert self.forwarding is not None
                self.forwarding.offer(command[1])
            elif word == "lost":
                assert self.forwarding is not None
                self.forwarding.lease_lost(*command[1:])
            elif word == "unserved":
                self.leases.unserved(*command[1:])
            elif word == "pressure":
                self.leases.pressure(command[1])
            elif word == "actor_failed":
                self.actors.failed(command[1], command[2])
        if self.stopping:
            return
        if self._head is not None and self._load_timer is None:
            self._load_timer = self._loop.call_later(limits.LOAD_BATCH, self._report_load)
        if self.state.unmet and self._again_timer is None:
            delay = limits.NEAR_PATIENCE if self.state.soon else limits.SCHEDULE_AGAIN
            self._again_timer = self._loop.call_later(delay, self._schedule_again)

    def _schedule_again(self) -> None:
        """Something waits: time alone may change who comes first."""
        self._again_timer = None
        if self.state.view is not None:
            self.state.view.forget_refusals()
        self.run(self.state.schedule())
        if self.forwarding is not None and self.state.unmet:
            self.forwarding.wish()

    def _drain(self, connection: Connection, frame: Frame) -> None:
        """Nothing new from now on. The load that is told before the answer reckons in all that was taken."""
        self.state.draining = True
        self.on_drain()
        self.run(self.state.schedule())
        self.tell_load()
        connection.reply(frame[1], None)

    def _holds(self, connection: Connection, frame: Frame) -> None:
        """What is left here (of actors the head knows)."""
        tasks = sum(1 for lease in self.state.leases.values() if lease.actor is None)
        connection.reply(frame[1], {"tasks": tasks, **self.also_busy()})

    def tell_load(self) -> None:
        """Tell the head at once what is free."""
        if self._load_timer is not None:
            self._load_timer.cancel()
        self._report_load()

    def _report_load(self) -> None:
        self._load_timer = None
        changes, total = self.state.bundles.changes, None
        if changes != self._total_told:
            self._total_told, total = changes, self.state.total
        state = self.state
        waiting = pending(state) if state.unmet else []
        busy = state.busy() + self.also_busy()["objects"]
        self.tell_head(m.NODE_LOAD, state.available, waiting, total, 0, busy)

    def gpus_of(self, allocation: Allocation) -> list[Any]:
        """The devices that it may use, as processes name them."""
        return [self._gpu_names[index] for index, _ in allocation.gpu_shares]

    def _leaving(self, connection: Connection, frame: Frame) -> None:
        """A worker says why it is about to end."""
        process = self.processes.by_id.get(connection.ident)
        if process is not None:
            process.reason = process.reason or frame[1]
            process.intended = True

    def _node_stop(self, connection: Connection, frame: Frame) -> None:
        if connection in self.output.drivers or connection.kind == "tool":
            self.stop_process(frame[1])

    # ---- idle workers --------------------------------------------------------------------------------

    def replenish_soon(self) -> None:
        """An actor has taken a worker: see that there are others for the next ones."""
        if self._replenish_timer is None and not self.stopping:
            self._replenish_timer = self._loop.call_later(limits.WORKER_REPLENISH, self._replenish)

    def _replenish(self) -> None:
        self._replenish_timer = None
        if not self.stopping and not self.state.draining:
            self.run(self.state.replenish(min(self._prestart, limits.WORKERS_AT_HAND)))

    def watch_idle(self) -> None:
        """Look at idle workers after a while."""
        if self._reap_timer is None and not self.stopping:
            self._reap_timer = self._loop.call_later(limits.WORKER_IDLE_TIMEOUT, self._reap_idle)

    def _reap_idle(self) -> None:
        self._reap_timer = None
        surplus = self.state.surplus(self._loop.time(), self._prestart, limits.WORKER_IDLE_TIMEOUT * 0.9)
        for worker in surplus:
            worker.idle_since = self._loop.time()  # asked once per period
            worker.asked_to_end = True
            worker.peer.cast(m.EXIT, False, "it is idle and not needed")
        # What is left of a job without a driver: detached actors, and workers that own what those use.
        self._jobs_over &= {worker.job for worker in self.state.workers.values() if worker.job is not None}
        idle = [worker for worker in self.state.workers.values() if worker.state == IDLE]
        for worker in self.state.workers.values():
            if worker.state in (IDLE, RETIRED) and worker.job in self._jobs_over:
                worker.peer.cast(m.JOB_OVER)
        if len(idle) > self._prestart or self._jobs_over:
            self.watch_idle()

    def _exit_denied(self, connection: Connection, frame: Frame) -> None:
        """An idle worker owns objects that are in use: it stays, and may be used."""
        worker = self.state.workers.get(connection.ident)
        if worker is not None:
            worker.asked_to_end = False

    # ---- output --------------------------------------------------------------------------------------

    def set_active(self, worker_id: bytes) -> None:
        """A worker has something to do: its output and its memory are of interest."""
        process = self.processes.by_id.get(worker_id)
        if process is not None:
            process.busy_since = self._loop.time()
        self.memory.wake()
        self.output.set_active(worker_id, True)

    def _log_flush(self, connection: Connection, frame: Frame) -> None:
        self.output.flush(connection)
        connection.reply(frame[1], None)

    def _job_of(self, worker_id: bytes) -> bytes | None:
        worker = self.state.workers.get(worker_id)
        return worker.job if worker is not None else None
