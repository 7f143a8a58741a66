"""A node's part in placement groups: it reserves bundles, and ends what is in those that are taken back.

At a join the head is told what is held: ``[[group id, index, attempt, committed], ...]``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from framework._base import limits
from framework._net.connection import Connection, Frame, Handler
from framework._state.bundles import REMOVED
from framework._state.pool import Allocation
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._node.service import NodeService


class NodeBundles:
    """The bundles of one node."""

    def __init__(self, loop: asyncio.AbstractEventLoop, node: NodeService) -> None:
        self._loop = loop
        self._node = node
        self._timer: asyncio.TimerHandle | None = None
        self._told = 0.0  #: when the load was last told
        self.head_handlers: dict[int, Handler] = {
            m.GROUP_PREPARE: self._prepare,
            m.GROUP_COMMIT: self._commit,
            m.GROUP_RETURN: self._return,
        }

    def held(self) -> list[list[Any]]:
        """For the join."""
        return self._node.state.bundles.held()

    def _prepare(self, connection: Connection, frame: Frame) -> None:
        _, group, attempt, rows = frame
        state = self._node.state
        text = "it takes nothing new" if state.draining else state.bundles.prepare(group, attempt, rows)
        self._node.tell_head(m.GROUP_PREPARED, group, attempt, text)
        if text is not None:
            self._tell_load()  # what the head knows of this node is out of date

    def _commit(self, connection: Connection, frame: Frame) -> None:
        _, group, attempt, rows = frame
        text = self._node.state.bundles.commit(group, attempt, [index for index, _ in rows])
        self._node.tell_head(m.GROUP_COMMITTED, group, attempt, text)
        self._tell_load()

    def _return(self, connection: Connection, frame: Frame) -> None:
        _, group, attempt, reason = frame
        node = self._node
        removed = attempt < 0
        text = f"{REMOVED}: {group.hex()}: {reason}" if removed else reason
        commands = []
        for user in node.state.bundles.give_back(group, attempt):
            allocation = cast(Allocation, user)
            if allocation.worker is None:
                commands += node.state.revoke(allocation, text)
            elif allocation.actor is not None:
                self._end(allocation, text, removed)
            else:
                # It may be idle and be given back at once: then its process lives on, with all that others
                # have from it of tasks outside of this group.
                allocation.owner.cast(m.LEASE_RECALL, allocation.number)
                self._loop.call_later(limits.GROUP_LEAVE, self._end, allocation, text, removed)
        node.run([*commands, *node.state.schedule()])
        self._tell_load()  # others may wait for what is free now

    def _end(self, allocation: Allocation, text: str, removed: bool) -> None:
        """The process of a lease or an actor in a bundle that was taken back, if it is still there."""
        worker = allocation.worker
        if worker is None or worker.allocation is not allocation:
            return
        process = self._node.processes.by_id.get(worker.worker_id)
        if process is not None:
            if removed:
                process.kind = process.kind or "group"
            self._node.processes.end(worker.worker_id, text, intended=removed)

    def _tell_load(self) -> None:
        """Have the head know soon, but not with every one of many bundles: what is told has all of them."""
        if self._timer is None:
            pause = limits.GROUP_LOAD_PAUSE * (1 + len(self._node.state.available))
            when = max(self._node.now(), self._told + pause)
            self._timer = self._loop.call_at(when, self._tell_load_now)

    def _tell_load_now(self) -> None:
        self._timer = None
        if not self._node.stopping:
            self._told = self._node.now()
            self._node.tell_load()
