"""Worker processes from fork to exit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import SEVERAL_TASKS
from framework._net.connection import Connection
from framework._node.zygote_client import Zygote, describe_exit, load_time_part
from framework._node.zygotes import Zygotes
from framework._state.memory import Candidate
from framework._state.node import ACTOR, IDLE, EnvKey

if TYPE_CHECKING:
    from framework._node.service import NodeService

log = logging.getLogger("framework.node")


class WorkerProcess:
    """One of them."""

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
        "start_timer",
        "status",
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
        self.status: int | None = None  #: as `os.waitpid` has it, once it has ended
        self.start_timer: asyncio.TimerHandle | None = None  #: until it is up, or has ended


class Processes:
    """All of a node's. The zygotes fork them and tell of their ends."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, node: NodeService, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._loop = loop
        self._node = node
        self._random_bytes = random_bytes
        self.by_id: dict[bytes, WorkerProcess] = {}
        self._by_pid: dict[int, WorkerProcess] = {}
        self.zygotes = Zygotes(loop, on_forked=self._forked, on_exit=self._exited, on_lost=self._zygote_lost)
        self._saying_goodbye: tuple[set[bytes], Callable[[], None]] | None = None
        #: what every worker is told at its start, beside its own id
        self.config: dict[str, Any] = {}

    # ---- starts --------------------------------------------------------------------------------------

    def start(self, env: EnvKey) -> None:
        """Have a process forked for this environment."""
        try:
            zygote = self.zygotes.use(env)
        except OSError as error:
            self._start_failed(env, f"no worker process could be started: {error}")
            return
        worker_id = self._random_bytes(28)
        process = self.by_id[worker_id] = WorkerProcess(worker_id, env)
        zygote.fork(worker_id, env, {**self.config, "worker_id": worker_id})
        process.start_timer = self._loop.call_later(
            limits.WORKER_START_TIMEOUT, self._start_timed_out, worker_id
        )

    @staticmethod
    def _start_over(process: WorkerProcess) -> None:
        timer, process.start_timer = process.start_timer, None
        if timer is not None:
            timer.cancel()

    def up(self, process: WorkerProcess, connection: Connection) -> None:
        """It has said HELLO."""
        process.connection = connection
        self._start_over(process)

    def _start_failed(self, env: EnvKey, text: str) -> None:
        self._node.run(self._node.state.start_failed(env, text))

    def _start_timed_out(self, worker_id: bytes) -> None:
        process = self.by_id.get(worker_id)
        if process is None:
            return
        process.start_timer = None
        if process.connection is None and worker_id not in self._node.state.workers:
            if process.pid:
                self.end(worker_id, "it did not start in time", intended=False)
            else:
                self._forked(worker_id, 0, "the zygote does not answer")

    def _forked(self, worker_id: bytes, pid: int, error: str) -> None:
        process = self.by_id.get(worker_id)
        if process is None:
            return
        if error:
            del self.by_id[worker_id]
            self._start_over(process)
            self.zygotes.released(process.env)
            self._start_failed(process.env, f"no worker process could be started: {error}")
            return
        process.pid = pid
        self._by_pid[pid] = process
        self._node.output.watch(worker_id, pid)
        workers = self._node.state.workers
        if worker_id in workers and workers[worker_id].state != IDLE:
            self._node.set_active(worker_id)

    # ---- ends ----------------------------------------------------------------------------------------

    def end(self, worker_id: bytes, reason: str, *, intended: bool) -> None:
        """Kill it. `intended`: nobody needs to wonder why."""
        process = self.by_id.get(worker_id)
        if process is None or process.status is not None:
            return
        # (It may have registered before its zygote has told of it.)
        pid = process.pid or (process.connection.peer["pid"] if process.connection is not None else 0)
        if not pid:
            return
        process.reason = process.reason or reason
        process.intended = process.intended or intended
        self._node.state.worker_ending(worker_id)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def connection_lost(self, worker_id: bytes) -> None:
        """Normally it is dead or dying, and the zygote tells how. If it only lost its connection, it ends
        soon."""
        process = self.by_id.get(worker_id)
        if process is not None:
            process.connection = None
            if process.status is not None:
                self._ended(process, process.status)
            elif process.pid:
                self._loop.call_later(limits.EXIT_GRACE, self._make_sure, process)

    def _make_sure(self, process: WorkerProcess) -> None:
        if process.worker_id in self.by_id:
            self.end(process.worker_id, "it lost its connection to the node", intended=False)

    def _exited(self, pid: int, status: int) -> None:
        process = self._by_pid.pop(pid, None)
        if process is None:
            return
        if process.connection is None:
            self._ended(process, status)
            return
        # What it said last (that it was about to leave, and why) may not have been read yet: its end counts
        # when that of its connection is seen, which is there already, or when a process that it has left
        # behind keeps that open.
        process.status = status
        self._loop.call_later(limits.EXIT_GRACE, process.connection.close)

    def _ended(self, process: WorkerProcess, status: int) -> None:
        """It is gone, and nothing more will be heard of it."""
        node, pid = self._node, process.pid
        worker_id = process.worker_id
        self.by_id.pop(worker_id, None)
        self._start_over(process)
        self.zygotes.released(process.env)
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
        node.output.forget(worker_id)
        noted = self._running_task(worker_id)
        if worker_id not in node.state.workers:
            self._start_failed(process.env, f"{detail} while it was starting")
        allocation, commands = node.state.worker_gone(worker_id)
        if process.kind == "memory":
            node.memory.ended()
        if process.actor is not None:
            node.actors.process_gone(process, detail, SEVERAL_TASKS if noted is None else noted)
        elif allocation is not None and allocation.actor is None:
            node.leases.worker_gone(allocation, noted or 0, pid, end, process.kind)
        node.run(commands)

    def _running_task(self, worker_id: bytes) -> int | None:
        """What the worker wrote down as running when it died (0: nothing; None: nobody knows), from the file
        that it maps. Its files go.
        """
        socket_file = os.path.join(self._node.session_dir, "sockets", worker_id.hex()[:12])
        path = f"{socket_file}.run"
        with contextlib.suppress(OSError):
            os.unlink(socket_file)
        try:
            with open(path, "rb") as file:
                data = file.read(8)
            os.unlink(path)
        except OSError:
            return None
        return int.from_bytes(data, sys.byteorder)  # as that process has written it

    def _zygote_lost(self, zygote: Zygote) -> None:
        """A zygote died. Its workers die with it (parent-death signal), and nobody reports them: do it
        here.
        """
        if self._node.stopping:
            return
        log.error("the zygote process %d died; its workers die with it", zygote.pid)
        for process in list(self.by_id.values()):
            if load_time_part(process.env) == zygote.env:
                if process.status is not None:
                    continue  # its end was told before
                if process.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                    process.reason = process.reason or "its zygote died"
                    self._exited(process.pid, signal.SIGKILL)
                else:
                    self._forked(process.worker_id, 0, "the zygote died")
        if not zygote.env:
            try:
                self.zygotes.ensure_first()
            except OSError as error:
                self._node.stop_process(f"no zygote can be started: {error}")

    def say_goodbye(self, waiting: set[bytes], done: Callable[[], None]) -> None:
        """Call `done` when these have ended."""
        self._saying_goodbye = waiting, done

    def stop(self) -> None:
        """Tell every worker and zygote to end, at once."""
        for process in self.by_id.values():
            if process.pid and process.status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self.zygotes.stop()

    # ---- memory --------------------------------------------------------------------------------------

    def memory_users(self, measure: Callable[[int], int]) -> list[Candidate]:
        """The workers that run something, and the memory of each."""
        found = []
        state = self._node.state
        for worker in state.workers.values():
            process = self.by_id.get(worker.worker_id)
            if worker.state == IDLE or worker.allocation is None or process is None or process.reason:
                continue
            if process.status is not None:
                continue
            what = "task"
            if worker.state == ACTOR:
                what = f"actor {self._node.actors.class_name(process.actor)}"
            found.append(
                Candidate(
                    worker.worker_id,
                    f"{what} in worker process {worker.pid}",
                    state.may_run_again(worker.allocation),
                    worker.state == ACTOR,
                    process.busy_since,
                    measure(worker.pid),
                )
            )
        return found

    def end_for_memory(self, worker_id: bytes, text: str) -> None:
        """It uses too much of it."""
        process = self.by_id.get(worker_id)
        if process is not None:
            process.kind = "memory"
            self.end(worker_id, text, intended=False)
