"""What workers print, on its way to drivers: each gets the lines of its own job."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from framework._base import limits
from framework._net.connection import Connection
from framework._node.logtail import LogBatch, LogMonitor
from framework._wire import messages as m


class OutputService:
    """The output files of a node's workers, and who wants to see them. Lives on the node's loop.

    `job_of(worker_id)` is the job that a worker serves, if any; `anyone_works()` whether any worker runs
    something: as long as it does, the files are looked at.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        session_dir: str,
        *,
        job_of: Callable[[bytes], bytes | None],
        anyone_works: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._directory = os.path.join(session_dir, "logs")
        self._job_of = job_of
        self._anyone_works = anyone_works
        self._logs = LogMonitor()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.drivers: dict[Connection, bytes] = {}  #: with their jobs
        #: in a cluster: takes what is for a driver on another node
        self.elsewhere: Callable[[bytes, LogBatch], None] | None = None
        self.slow_elsewhere: Callable[[], set[bytes]] = set  #: jobs whose drivers there take no more for now

    def watch(self, worker_id: bytes, pid: int) -> None:
        """A worker process has begun."""
        base = os.path.join(self._directory, f"worker-{worker_id.hex()[:12]}-{pid}")
        self._logs.watch(worker_id, pid, base + ".out", base + ".err")

    def set_active(self, worker_id: bytes, active: bool) -> None:
        """It begins to run something, or has nothing more to run."""
        self._logs.set_active(worker_id, active)
        if active and self._timer is None and not self._stopped:
            self._timer = self._loop.call_later(limits.LOG_POLL, self._poll)

    def _poll(self) -> None:
        self._timer = None
        # A driver that does not take its lines (it is stopped, or its terminal is) gets them later: they are
        # in the files.
        slow = {job for connection, job in self.drivers.items() if connection.congested}
        slow |= self.slow_elsewhere()
        self._deliver(self._logs.poll_active(lambda worker_id: self._job_of(worker_id) in slow))
        if self._anyone_works():
            self._timer = self._loop.call_later(limits.LOG_POLL, self._poll)

    def flush(self, driver: Connection) -> None:
        """A driver wants all that was printed for it so far, also lines without an end."""
        self.flush_job(self.drivers.get(driver))

    def flush_job(self, job: bytes | None) -> None:
        """All that was printed for a job so far, also lines without an end."""
        self._deliver(self._logs.flush_all(lambda worker_id: self._job_of(worker_id) in (None, job)))

    def forget(self, worker_id: bytes) -> None:
        """Its process has ended: pass on what it has left."""
        self._deliver(self._logs.forget(worker_id))

    def stop(self) -> None:
        """Look at the files no more by itself."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def deliver_rest(self) -> None:
        """All workers have ended: pass on what nobody has seen yet."""
        self._deliver(self._logs.poll_all())

    def _deliver(self, batches: list[LogBatch]) -> None:
        for batch in batches:
            job = self._job_of(batch.worker_id)
            here = False
            for connection, wanted in self.drivers.items():
                if job is not None and job != wanted:
                    continue  # the output of another driver's tasks
                here = True
                if connection.state.get("log_to_driver", True) and not connection.closed:
                    connection.cast(
                        m.LOG_LINES, batch.pid, batch.is_err, [list(line) for line in batch.lines]
                    )
            if self.elsewhere is not None and not here and job:
                self.elsewhere(job, batch)
