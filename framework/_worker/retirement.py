"""When a worker may end: one that is idle, and one that has run as many tasks as it may (`max_calls`).

The latter takes no more. Others may hold objects that it owns, or it has submitted tasks that are not done:
then it stays until that is over, without its lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework._base import limits
from framework._net.connection import Connection
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._worker.executor import Executor


def is_needed(executor: Executor, job_over: bool) -> bool:
    """Loop: whether a worker without a task must stay: work is queued, others hold objects that it owns (or
    soon will: whoever has got a result with references may be slow to say so), or actors that it has created
    live by a handle that it keeps (unless its job is over). What is only for itself goes with it."""
    runtime = executor.runtime
    runtime.objects.drain_drops()
    if executor.queue or executor.contexts or runtime.submitter.tasks or runtime.objects.handing_over:
        return True
    if not job_over and runtime.actors.owns_living():
        return True
    return any(entry.owner is None and entry.borrowers for entry in runtime.objects.table.entries.values())


class Retirement:
    """Of one worker."""

    def __init__(self, executor: Executor, reason: str) -> None:
        self._executor = executor
        self._reason = reason
        self._caller: Connection | None = None
        self._looks = 0
        self._told = False  #: the node knows that it stays

    def begin(self, caller: Connection) -> None:
        """Any thread: its last task is done; `caller` gets the reply to it."""
        self._caller = caller
        self._executor.runtime.post(self._look)

    def _look(self) -> None:
        runtime = self._executor.runtime
        needed = is_needed(self._executor, self._executor.job_over)
        written = self._caller is None or self._caller.written
        if not needed and written and runtime.objects.all_handed_over():
            self._executor.push((None, ["exit", self._reason]))
            return
        self._looks += 1
        seldom = self._looks > limits.RETIRED_LOOKS
        if (needed or seldom) and not self._told and runtime.node is not None:
            self._told = True
            runtime.node.cast(m.RETIRED)
        pause = limits.RETIRED_SELDOM if seldom else limits.RETIRED_LOOK
        runtime.loop.call_later(pause, self._look)
