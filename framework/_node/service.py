"""The node service: turns what `NodeState` decides into messages, forks and kills."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from framework._base import limits
from framework._base.ids import SEVERAL_TASKS
from framework._net.connection import Connection, Frame, Handler
from framework._node.hardware import gpu_names
from framework._node.memory_monitor import MemoryMonitor
from framework._node.output_service import OutputService
from framework._node.zygote_client import Zygote, describe_exit, load_time_part
from framework._node.zygotes import Zygotes
from framework._state.memory import Candidate
from framework._state.node import ACTOR, IDLE, Allocation, EnvKey, NodeState, Worker, env_key
from framework._wire import messages as m

log = logging.getLogger("framework.node")


class _Process:
    """A worker process from fork to exit."""

    __slots__ = (
        "actor",
        "busy_since",
        "connection",
        "env",
        "incarnation",
        "intended",
        "kind",
        "pid",
        "reason",
        "worker_id",
    )

    def __init__(self, worker_id: bytes, env: EnvKey) -> None:
        self.worker_id = worker_id
        self.env = env
        self.pid = 0
        self.connection: Connection | None = None
        self.actor: bytes | None = None
        self.incarnation = 0
        self.reason = ""  #: why we ended it, if we did
        self.kind = ""  #: "memory" when that was for want of memory
        self.busy_since = 0.0
        self.intended = False


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
        self._session_dir = session_dir
        self._random_bytes = random_bytes
        self._prestart = prestart
        self._stop = stop
        self._stays = stays
        self.node_id = node_id
        self.state = NodeState(total, node_id.hex())
        self._gpu_names = gpu_names(self.state.gpus.total)
        self._head: Connection | None = None
        self._owners: dict[Connection, bytes] = {}  #: everyone who may ask for leases -> job
        self._idents: dict[bytes, Connection] = {}
        self._store_peer_lost: Callable[[Connection], None] = lambda _: None
        self._saying_goodbye: tuple[set[bytes], Callable[[], None]] | None = None
        self._processes: dict[bytes, _Process] = {}
        self._by_pid: dict[int, _Process] = {}
        self._zygotes = Zygotes(loop, on_forked=self._forked, on_exit=self._exited, on_lost=self._zygote_lost)
        self._actor_specs: dict[bytes, tuple[dict[str, Any], int]] = {}
        self._output = OutputService(
            loop,
            session_dir,
            job_of=self._job_of,
            anyone_works=lambda: any(worker.state != IDLE for worker in self.state.workers.values()),
        )
        self._memory = MemoryMonitor(loop, memory_threshold, self._memory_users, self._end_for_memory)
        self._reap_timer: asyncio.TimerHandle | None = None
        self._load_timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._jobs_over: set[bytes] = set()  #: jobs whose driver is gone, and that still have workers
        self.handlers: dict[int, Handler] = {
            m.LEASE_KEY: self._lease_key,
            m.LEASE_DEMAND: self._lease_demand,
            m.LEASE_RETURN: self._lease_return,
            m.BLOCKED: self._blocked,
            m.UNBLOCKED: self._unblocked,
            m.EXIT_DENIED: self._exit_denied,
            m.ACTOR_UP: self._actor_up,
            m.LOG_FLUSH: self._log_flush,
            m.KILL_WORKER: self._kill_worker,
            m.LEAVING: self._leaving,
            m.NODE_STOP: self._node_stop,
            m.PROCESSES: self._list_processes,
        }
        self.head_handlers: dict[int, Handler] = {
            m.ACTOR_PLACE: self._actor_place,
            m.ACTOR_END: self._actor_end,
        }

    # ---- start and stop ------------------------------------------------------------------------------

    def start(self, zygote_sock: socket.socket, zygote_pid: int, head: Connection) -> None:
        """Join the head and start the first workers."""
        self._head = head
        self._zygotes.adopt(zygote_sock, zygote_pid)
        head.cast(
            m.NODE_JOIN,
            {
                "node_id": self.node_id,
                "total": self.state.total,
                "pid": os.getpid(),
                "session_dir": self._session_dir,
            },
        )
        self._run(self.state.prestart(self._prestart))

    def attach_store(self, handlers: dict[int, Handler], peer_lost: Callable[[Connection], None]) -> None:
        """The object store's messages come over the same connections."""
        self.handlers.update(handlers)
        self.head_handlers[m.STORE_FREE] = handlers[m.STORE_FREE]  # of what it keeps for actors
        self._store_peer_lost = peer_lost

    def process_of(self, ident: bytes) -> Connection | None:
        """The connection of a driver or worker of this node, or of the head (under the node's own id)."""
        return self._head if ident == self.node_id else self._idents.get(ident)

    def _list_processes(self, connection: Connection, frame: Frame) -> None:
        rows = [
            {"ident": c.ident, "kind": c.kind, "pid": c.peer["pid"], "address": c.peer["address"]}
            for c in self._owners
            if not c.closed
        ]
        connection.reply(frame[1], rows)

    def say_goodbye(self, reason: str, done: Callable[[], None]) -> None:
        """Before `stop`: let actors that have a shutdown hook run it; `done` is called when they have ended,
        which may be at once."""
        self._stopping = True
        waiting: set[bytes] = set()
        for worker in self.state.workers.values():
            process = self._processes.get(worker.worker_id)
            if worker.state == ACTOR and process is not None and process.actor is not None:
                if self._actor_specs.get(process.actor, ({}, 0))[0].get("shutdown_hook"):
                    waiting.add(worker.worker_id)
                    worker.peer.cast(m.EXIT, True, reason)
        if waiting:
            self._saying_goodbye = waiting, done
        else:
            done()

    def stop(self) -> None:
        """Tell every worker and zygote to end, at once."""
        self._stopping = True
        self._memory.stop()
        self._output.stop()
        for timer in (self._reap_timer, self._load_timer):
            if timer is not None:
                timer.cancel()
        for process in self._processes.values():
            if process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._zygotes.stop()

    def deliver_rest(self) -> None:
        """After `stop`, when the workers are gone: the output that nobody has seen yet."""
        self._output.deliver_rest()
        for worker_id in list(self._processes):
            self._output.forget(worker_id)
        for connection in self._output.drivers:
            connection.flush()

    # ---- peers ---------------------------------------------------------------------------------------

    def peer_joined(self, connection: Connection) -> dict[str, object] | None:
        """A driver or worker said HELLO."""
        info = connection.peer
        facts: dict[str, object] = {
            "node_id": self.node_id,
            "total": self.state.total,
            "pid": os.getpid(),
        }
        self._owners[connection] = info.get("job", b"")
        self._idents[connection.ident] = connection
        if connection.kind == "driver":
            self._output.drivers[connection] = info.get("job", b"")
            connection.state = info
        elif connection.kind == "worker":
            process = self._processes.get(connection.ident)
            if process is None:
                connection.close()
                return None
            process.connection = connection
            worker = Worker(process.worker_id, info["pid"], info["address"], process.env, connection)
            self._run(self.state.worker_up(worker, self._loop.time()))
            self._watch_idle()
        return facts

    def peer_lost(self, connection: Connection) -> None:
        """A driver or worker is gone."""
        job = self._owners.pop(connection, None)
        if job is None:
            return
        if self._idents.get(connection.ident) is connection:
            del self._idents[connection.ident]
        self._store_peer_lost(connection)
        self._output.drivers.pop(connection, None)
        orphans, commands = self.state.owner_gone(connection)
        for worker in orphans:
            self._end_worker(
                worker.worker_id, "the process that had submitted its tasks has ended", intended=True
            )
        self._run(commands)
        if connection.kind == "worker":
            process = self._processes.get(connection.ident)
            if process is not None:
                process.connection = None
                if process.pid:
                    # Normally it is dead or dying, and the zygote tells how. If it only lost its connection,
                    # it ends now.
                    self._loop.call_later(limits.EXIT_GRACE, self._make_sure, process)
        elif connection.kind == "driver" and not self._stopping:
            if self._output.drivers or self._stays:
                self._job_ended(job)
            else:
                self._stop("its driver has ended")

    def _job_ended(self, job: bytes) -> None:
        """Its driver is gone: workers are not handed on to other jobs, so those that are idle end now."""
        idle, commands = self.state.job_ended(job, self._prestart)
        for worker in idle:
            worker.peer.cast(m.JOB_OVER)
        self._jobs_over.add(job)
        self._run(commands)
        self._watch_idle()

    def _make_sure(self, process: _Process) -> None:
        if process.worker_id in self._processes:
            self._end_worker(process.worker_id, "it lost its connection to the node", intended=False)

    # ---- leases --------------------------------------------------------------------------------------

    def _lease_key(self, connection: Connection, frame: Frame) -> None:
        _, key, units, env, strategy, retriable = frame
        job = self._owners.get(connection, b"")
        self.state.describe_key(connection, key, units, env_key(env), job, strategy, retriable)

    def _lease_demand(self, connection: Connection, frame: Frame) -> None:
        self._run(self.state.demand(connection, frame[1], frame[2], frame[3]))

    def _lease_return(self, connection: Connection, frame: Frame) -> None:
        allocation = self.state.leases.get(frame[1])
        self._run(self.state.lease_returned(frame[1], connection, self._loop.time()))
        if allocation is not None and allocation.worker is not None:
            self._output.set_active(allocation.worker.worker_id, allocation.worker.state != IDLE)
            self._watch_idle()

    def _blocked(self, connection: Connection, frame: Frame) -> None:
        self._run(self.state.blocked(connection.ident))

    def _unblocked(self, connection: Connection, frame: Frame) -> None:
        self.state.unblocked(connection.ident)

    def _run(self, commands: list[tuple[Any, ...]]) -> None:
        for command in commands:
            word = command[0]
            if word == "grant":
                self._grant(*command[1:])
            elif word == "start":
                self._start_worker(command[1])
            elif word == "run_actor":
                self._run_actor(command[1], command[2])
            elif word == "infeasible":
                command[1].cast(m.LEASE_INFEASIBLE, command[2], True, "TaskUnschedulableError", command[3])
            elif word == "unserved":
                _, owner, key, env, text = command
                error = "RuntimeEnvSetupError" if env else "WorkerCrashedError"
                owner.cast(m.LEASE_INFEASIBLE, key, False, error, text)
            elif word == "pressure":
                command[1].cast(m.LEASE_PRESSURE)
            elif word == "actor_failed":
                self._actor_failed(command[1], command[2])
        if self._head is not None and self._load_timer is None and not self._stopping:
            self._load_timer = self._loop.call_later(0.05, self._report_load)

    def _report_load(self) -> None:
        self._load_timer = None
        if self._head is not None:
            self._head.cast(m.NODE_LOAD, self.state.available)

    def _grant(self, owner: Connection, key: int, allocation: Allocation) -> None:
        worker = allocation.worker
        assert worker is not None
        self._set_active(worker.worker_id)
        gpus = [self._gpu_names[index] for index, _ in allocation.gpu_shares]
        owner.cast(m.LEASE_GRANT, key, allocation.lease_id, worker.worker_id, worker.address, gpus)

    # ---- processes -----------------------------------------------------------------------------------

    def _start_worker(self, env: EnvKey) -> None:
        try:
            zygote = self._zygotes.use(env)
        except OSError as error:
            self._run(self.state.start_failed(env, f"no worker process could be started: {error}"))
            return
        worker_id = self._random_bytes(28)
        process = _Process(worker_id, env)
        self._processes[worker_id] = process
        zygote.fork(worker_id, env, self._worker_config(worker_id))
        self._loop.call_later(limits.WORKER_START_TIMEOUT, self._start_timed_out, worker_id)

    def _worker_config(self, worker_id: bytes) -> dict[str, Any]:
        return {
            "session_dir": self._session_dir,
            "node_id": self.node_id,
            "worker_id": worker_id,
            "total": self.state.total,
        }

    def _start_timed_out(self, worker_id: bytes) -> None:
        process = self._processes.get(worker_id)
        if process is not None and process.connection is None and worker_id not in self.state.workers:
            if process.pid:
                self._end_worker(worker_id, "it did not start in time", intended=False)
            else:
                self._forked(worker_id, 0, "the zygote does not answer")

    def _forked(self, worker_id: bytes, pid: int, error: str) -> None:
        process = self._processes.get(worker_id)
        if process is None:
            return
        if error:
            del self._processes[worker_id]
            self._zygotes.released(process.env)
            self._run(self.state.start_failed(process.env, f"no worker process could be started: {error}"))
            return
        process.pid = pid
        self._by_pid[pid] = process
        self._output.watch(worker_id, pid)
        if worker_id in self.state.workers and self.state.workers[worker_id].state != IDLE:
            self._set_active(worker_id)

    def _exited(self, pid: int, status: int) -> None:
        process = self._by_pid.pop(pid, None)
        if process is None:
            return
        worker_id = process.worker_id
        self._processes.pop(worker_id, None)
        self._zygotes.released(process.env)
        if self._saying_goodbye is not None:
            waiting, done = self._saying_goodbye
            waiting.discard(worker_id)
            if not waiting:
                self._saying_goodbye = None
                self._loop.call_soon(done)
        end = describe_exit(status, by_us=bool(process.reason))
        if process.reason:
            end = f"{process.reason} ({end})"
        detail = f"worker process {pid}{':' if process.reason else ''} {end}"
        self._output.forget(worker_id)
        noted = self._running_task(worker_id)
        known = worker_id in self.state.workers
        if not known:
            self._run(self.state.start_failed(process.env, f"{detail} while it was starting"))
        allocation, commands = self.state.worker_gone(worker_id)
        if process.kind == "memory":
            self._memory.ended()
        if process.actor is not None and self._head is not None:
            if self._actor_specs.get(process.actor, (None, -1))[1] == process.incarnation:
                del self._actor_specs[process.actor]  # (its next incarnation may wait for a place already)
            self._head.cast(
                m.ACTOR_GONE,
                process.actor,
                process.incarnation,
                detail,
                process.intended,
                SEVERAL_TASKS if noted is None else noted,
                process.kind,
            )
        elif allocation is not None and allocation.actor is None and not allocation.owner.closed:
            allocation.owner.cast(m.LEASE_LOST, allocation.lease_id, noted or 0, pid, end, process.kind)
        self._run(commands)

    def _running_task(self, worker_id: bytes) -> int | None:
        """What the worker wrote down as running when it died (0: nothing; None: nobody knows), from the file
        that it maps. Its files go.
        """
        socket_file = os.path.join(self._session_dir, "sockets", worker_id.hex()[:12])
        path = f"{socket_file}.run"
        with contextlib.suppress(OSError):
            os.unlink(socket_file)
        try:
            with open(path, "rb") as file:
                data = file.read(8)
            os.unlink(path)
        except OSError:
            return None
        return int.from_bytes(data, "little")

    def _zygote_lost(self, zygote: Zygote) -> None:
        """A zygote died. Its workers die with it (parent-death signal), and nobody reports them: do it
        here.
        """
        if self._stopping:
            return
        log.error("the zygote process %d died; its workers die with it", zygote.pid)
        for process in list(self._processes.values()):
            if load_time_part(process.env) == zygote.env:
                if process.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                    process.reason = process.reason or "its zygote died"
                    self._exited(process.pid, signal.SIGKILL)
                else:
                    self._forked(process.worker_id, 0, "the zygote died")
        if not zygote.env:
            try:
                self._zygotes.ensure_first()
            except OSError as error:
                self._stop(f"no zygote can be started: {error}")

    def _end_worker(self, worker_id: bytes, reason: str, *, intended: bool) -> None:
        process = self._processes.get(worker_id)
        if process is None or not process.pid:
            return
        process.reason = process.reason or reason
        process.intended = process.intended or intended
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)

    def _memory_users(self, measure: Callable[[int], int]) -> list[Candidate]:
        """The workers that run something, and the memory of each."""
        found = []
        for worker in self.state.workers.values():
            process = self._processes.get(worker.worker_id)
            if worker.state == IDLE or worker.allocation is None or process is None or process.reason:
                continue
            spec = self._actor_specs.get(process.actor, ({}, 0))[0] if process.actor is not None else {}
            what = f"actor {spec.get('class_name', '?')}" if worker.state == ACTOR else "task"
            found.append(
                Candidate(
                    worker.worker_id,
                    f"{what} in worker process {worker.pid}",
                    self.state.may_run_again(worker.allocation),
                    worker.state == ACTOR,
                    process.busy_since,
                    measure(worker.pid),
                )
            )
        return found

    def _end_for_memory(self, worker_id: bytes, text: str) -> None:
        process = self._processes.get(worker_id)
        if process is not None:
            process.kind = "memory"
            self._end_worker(worker_id, text, intended=False)

    def _kill_worker(self, connection: Connection, frame: Frame) -> None:
        """An owner asks for the end of a worker that it has leased."""
        worker = self.state.workers.get(frame[1])
        if worker is not None and worker.allocation is not None and worker.allocation.owner == connection:
            self._end_worker(frame[1], frame[2], intended=True)

    def _leaving(self, connection: Connection, frame: Frame) -> None:
        """A worker says why it is about to end."""
        process = self._processes.get(connection.ident)
        if process is not None:
            process.reason = process.reason or frame[1]
            process.intended = True

    def _node_stop(self, connection: Connection, frame: Frame) -> None:
        if connection in self._output.drivers or connection.kind == "tool":
            self._stop(frame[1])

    # ---- idle workers --------------------------------------------------------------------------------

    def _watch_idle(self) -> None:
        if self._reap_timer is None and not self._stopping:
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
        for worker in idle:
            if worker.job in self._jobs_over:
                worker.peer.cast(m.JOB_OVER)
        if len(idle) > self._prestart or self._jobs_over:
            self._watch_idle()

    def _exit_denied(self, connection: Connection, frame: Frame) -> None:
        """An idle worker owns objects that are in use: it stays, and may be used."""
        worker = self.state.workers.get(connection.ident)
        if worker is not None:
            worker.asked_to_end = False

    # ---- actors --------------------------------------------------------------------------------------

    def _actor_place(self, connection: Connection, frame: Frame) -> None:
        _, actor, spec, incarnation = frame
        text = self.state.never(spec["placement"], spec.get("strategy"))
        if text is not None:
            error = ["ActorUnschedulableError", f"the actor {spec['class_name']} can never be placed: {text}"]
            connection.cast(m.ACTOR_PLACED, actor, incarnation, b"", "", 0, [2, 2, *error])
            return
        self._actor_specs[actor] = (spec, incarnation)
        self._run(self.state.place_actor(actor, spec["resources"], env_key(spec.get("env")), spec["job"]))

    def _run_actor(self, actor: bytes, allocation: Allocation) -> None:
        worker = allocation.worker
        assert worker is not None
        process = self._processes.get(worker.worker_id)
        found = self._actor_specs.get(actor)
        if process is None or found is None:
            self._end_worker(worker.worker_id, "its actor is not wanted any more", intended=True)
            return
        spec, incarnation = found
        process.actor, process.incarnation = actor, incarnation
        self._set_active(worker.worker_id)
        gpus = [self._gpu_names[index] for index, _ in allocation.gpu_shares]
        worker.peer.cast(m.ACTOR_RUN, actor, spec, gpus, incarnation)

    def _actor_up(self, connection: Connection, frame: Frame) -> None:
        _, actor, error = frame
        process = self._processes.get(connection.ident)
        if process is None or self._head is None:
            return
        address = connection.peer["address"]
        self._head.cast(
            m.ACTOR_PLACED, actor, process.incarnation, connection.ident, address, process.pid, error
        )
        if error is not None:
            process.actor = None
            self._end_worker(process.worker_id, "its actor could not be constructed", intended=True)

    def _actor_failed(self, actor: bytes, text: str) -> None:
        _, incarnation = self._actor_specs.pop(actor, ({}, 0))
        if self._head is not None:
            self._head.cast(m.ACTOR_GONE, actor, incarnation, text, False, 0, "")

    def _actor_end(self, connection: Connection, frame: Frame) -> None:
        _, actor, incarnation, force, reason = frame
        wanted = self._actor_specs.get(actor)
        if incarnation < 0:
            self._actor_specs.pop(actor, None)
        if wanted is None or incarnation < 0 or incarnation == wanted[1]:  # its successor may wait already
            self._run(self.state.drop_actor(actor))
        for worker in list(self.state.workers.values()):
            if worker.state == ACTOR and worker.allocation is not None and worker.allocation.actor == actor:
                process = self._processes.get(worker.worker_id)
                if process is None or 0 <= incarnation != process.incarnation:
                    continue
                if force:
                    self._end_worker(worker.worker_id, reason, intended=False)
                else:
                    process.reason = reason
                    worker.peer.cast(m.EXIT, True, reason)

    # ---- output --------------------------------------------------------------------------------------

    def _set_active(self, worker_id: bytes) -> None:
        process = self._processes.get(worker_id)
        if process is not None:
            process.busy_since = self._loop.time()
        self._memory.wake()
        self._output.set_active(worker_id, True)

    def _log_flush(self, connection: Connection, frame: Frame) -> None:
        self._output.flush(connection)
        connection.reply(frame[1], None)

    def _job_of(self, worker_id: bytes) -> bytes | None:
        worker = self.state.workers.get(worker_id)
        return worker.job if worker is not None else None
