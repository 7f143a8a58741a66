"""What workers print, on its way to a driver on another node: from node to node, to the one where the driver
of their job is, which the head knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from framework._base import limits
from framework._net.connection import Connection, Frame, Handler
from framework._node.logtail import LogBatch
from framework._node.output_service import OutputService
from framework._service.supervise import TaskGroupOfService
from framework._wire import messages as m


class Head(Protocol):
    """The connection to the head."""

    def call(self, opcode: int, *fields: object) -> asyncio.Future[Any]: ...


class OutputAcross:
    """Both ends of that way. Lives on the node's loop.

    `connect(node_id)`: the connection to another node, made if need be; None when there is none. `others()`:
    the nodes that may hold output. `handlers` are for other nodes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        output: OutputService,
        head: Head,
        host: str,
        *,
        connect: Callable[[bytes], Connection | None],
        others: Callable[[], Iterable[bytes]],
    ) -> None:
        self._loop = loop
        self._output = output
        self._head = head
        self._host = host
        self._connect = connect
        self._others = others
        self._where: dict[bytes, bytes | None] = {}  #: job -> node of its driver; None: nobody wants it
        self._waiting: dict[bytes, list[LogBatch]] = {}  #: until that is known
        self._underway: dict[bytes, int] = {}  #: job -> batches that its driver has not taken
        self._tasks = TaskGroupOfService(loop, "output")
        output.elsewhere = self._leave
        output.slow_elsewhere = self._slow
        self.handlers: dict[int, Handler] = {m.OUTPUT: self._arrived, m.OUTPUT_FLUSH: self._flush_asked}

    def job_over(self, job: bytes) -> None:
        """Its driver is gone: nobody wants to see it any more."""
        self._waiting.pop(job, None)
        self._where.pop(job, None)

    def node_gone(self, node_id: bytes) -> None:
        """So are the drivers that were there."""
        for job, where in list(self._where.items()):
            if where == node_id:
                self._where[job] = None

    def stop(self) -> None:
        """No more questions to the head."""
        self._tasks.cancel()

    # ---- the node where it was printed ---------------------------------------------------------------

    def _leave(self, job: bytes, batch: LogBatch) -> None:
        if job in self._where:
            self._send(job, batch)
            return
        waiting = self._waiting.setdefault(job, [])
        waiting.append(batch)
        del waiting[: -limits.LOG_BATCHES_WAITING]
        if len(waiting) == 1:
            self._tasks.start(self._ask(job), "asking where a driver is")

    async def _ask(self, job: bytes) -> None:
        try:
            self._where[job] = await self._head.call(m.JOB_NODE, job)
            if self._where[job] is None:  # it is over already: nobody will say so again
                unwanted = [other for other, where in self._where.items() if where is None]
                for other in unwanted[: -limits.JOBS_OVER_KEPT]:
                    del self._where[other]
        except Exception:  # the head is away: asked again with the next lines
            await asyncio.sleep(limits.LOG_POLL)
        waiting = self._waiting.pop(job, [])
        for batch in waiting:
            if job in self._where:
                self._send(job, batch)
            else:
                self._leave(job, batch)

    def _send(self, job: bytes, batch: LogBatch) -> None:
        node_id = self._where.get(job)
        connection = self._connect(node_id) if node_id else None
        if connection is not None and not connection.closed:
            lines = [list(line) for line in batch.lines]
            self._underway[job] = self._underway.get(job, 0) + 1
            taken = connection.call(m.OUTPUT, job, self._host, batch.pid, batch.is_err, lines)
            taken.add_done_callback(lambda future: self._taken(job, future))

    def _taken(self, job: bytes, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()  # (the connection was lost: so are the lines)
        self._underway[job] -= 1
        if not self._underway[job]:
            del self._underway[job]

    def _slow(self) -> set[bytes]:
        return {job for job, batches in self._underway.items() if batches >= limits.OUTPUT_UNDERWAY}

    def _flush_asked(self, connection: Connection, frame: Frame) -> None:
        _, _, job = frame
        self._where[job] = connection.ident  # who asks has the driver
        for batch in self._waiting.pop(job, ()):
            self._send(job, batch)
        self._output.flush_job(job)
        connection.reply(frame[1], None)  # behind the lines, on the same connection

    # ---- the driver's node ---------------------------------------------------------------------------

    def _arrived(self, connection: Connection, frame: Frame) -> None:
        _, rid, job, host, pid, is_err, lines = frame
        slow = None
        for driver, wanted in self._output.drivers.items():
            if wanted == job and not driver.closed and driver.state.get("log_to_driver", True):
                driver.cast(m.LOG_LINES_FROM, host, pid, is_err, lines)
                slow = driver if driver.congested else slow
        if slow is None:
            connection.reply(rid, None)
        else:
            slow.when_drained(partial(self._has_taken, connection, rid))

    @staticmethod
    def _has_taken(connection: Connection, rid: int) -> None:
        if not connection.closed:
            connection.reply(rid, None)

    async def flush(self, job: bytes) -> None:
        """Until all other nodes have sent what was printed for this job, or the time for it is up."""
        calls = []
        for node_id in self._others():
            connection = self._connect(node_id)
            if connection is not None and not connection.closed:
                calls.append(connection.call(m.OUTPUT_FLUSH, job))
        if calls:
            await asyncio.wait(calls, timeout=limits.SHUTDOWN_GRACE / 2)
