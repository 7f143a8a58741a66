"""What a node process has in a cluster, beyond that of a local session: the way to the head, to other nodes,
and what the services of this node have to do with them, put together.

Loaded in clusters only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net.connection import Connection, Frame
from framework._node.forwarding import Forwarding
from framework._node.head_link import HeadLink
from framework._node.neighbours import Neighbours
from framework._node.objects_across import ObjectsAcross
from framework._node.output_across import OutputAcross
from framework._node.service import NodeService
from framework._node.store_service import StoreService
from framework._service.credentials import write_private
from framework._service.supervise import TaskGroupOfService
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._node.head_keeper import HeadKeeper

log = logging.getLogger("framework.node")

Row = dict[str, Any]


class ClusterSide:
    """See above. `stop(reason)` ends the process; `joined()` is called once, when the head has let it in."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: dict[str, Any],
        facts: ClusterFacts,
        node: NodeService,
        store: StoreService,
        *,
        stop: Callable[[str], None],
        joined: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._session_dir: str = config["session_dir"]
        self._facts = facts
        self._node = node
        self._store = store
        self._joined: Callable[[], None] | None = joined
        self._tasks = TaskGroupOfService(loop, "cluster")
        self.neighbours = Neighbours(loop, facts)
        self.objects = ObjectsAcross(loop, facts, store, self.neighbours)
        node.handlers.update(self.objects.handlers)
        node.also_busy = self.objects.without_copy
        node.on_drain = self.objects.drain
        self.objects.on_handed_over = node.tell_load
        node.head_handlers.update(self.objects.head_handlers)
        self._data_port = 0
        self.forwarding = Forwarding(loop, node, self.neighbours)
        self.head = HeadLink(
            loop,
            facts,
            self._session_dir,
            info=self._info,
            handlers={**node.head_handlers, m.JOB_END: self._job_end},
            on_rows=self._on_rows,
            on_gone=self._on_gone,
            on_end=stop,
            on_joined=self._on_joined,
        )
        self.output = OutputAcross(
            loop,
            node.output,
            self.head,
            facts.host,
            connect=self.neighbours.connection,
            others=self._with_output,
        )
        self.neighbours.handlers |= {
            **self.output.handlers,
            m.PROCESSES: node.list_processes,
            m.STORE_LIST: store.handlers[m.STORE_LIST],
        }
        node.handlers[m.LOG_FLUSH] = self._log_flush
        node.handlers[m.NODE_PROCESSES] = self._node_processes
        node.handlers[m.NODE_STORES] = self._node_stores
        node.processes.config["cluster"] = facts.to_dict()
        self._keeper: HeadKeeper | None = None
        if config["cluster"].get("keeps_head"):
            from framework._node.head_keeper import HeadKeeper

            self._keeper = HeadKeeper(loop, self._session_dir, config["cluster"]["keeps_head"])

    # ---- life ----------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Let other nodes connect. OSError when the address is not of this machine."""
        self.neighbours.listen()
        self._data_port = self.objects.listen()

    def start(self) -> None:
        """Join the cluster."""
        self.head.start()

    def leave(self, reason: str) -> None:
        """This node ends in order: the head need not wait for its silence."""
        if self._keeper is not None:
            self._keeper.stop()
        self.head.leave(reason)

    def close(self) -> None:
        """End all connections to other machines."""
        if self._keeper is not None:
            self._keeper.stop()
        self.output.stop()
        self._tasks.cancel()
        self.head.stop()
        self.forwarding.close()
        self.objects.close()
        self.neighbours.close()
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._session_dir, "cluster.json"))

    # ---- the head ------------------------------------------------------------------------------------

    def _info(self) -> dict[str, Any]:
        return {
            **self._node.join_info(),
            "gone": self.neighbours.recently_dead(),
            "host": self._facts.host,
            "port": self.neighbours.port,
            "data_port": self._data_port,
            "hostname": socket.gethostname(),
            "head": os.path.exists(os.path.join(self._session_dir, "head.json")),
        }

    def _on_joined(self, reply: dict[str, Any]) -> None:
        joined, self._joined = self._joined, None
        if joined is not None:
            write_private(os.path.join(self._session_dir, "cluster.json"), self._facts.to_dict())
            if self._keeper is not None:
                self._keeper.start()
            joined()

    def _on_rows(self, rows: list[Row]) -> None:
        self.neighbours.update(rows)
        self.objects.update(rows)
        self.forwarding.rows(rows)

    def _on_gone(self, node_id: bytes, reason: str) -> None:
        self.neighbours.gone(node_id, reason)
        self.output.node_gone(node_id)
        self._node.tell_all(m.NODE_GONE, node_id, reason)

    def _job_end(self, connection: Connection, frame: Frame) -> None:
        self.output.job_over(frame[1])
        self._node.job_ended(frame[1])

    # ---- output and lists ----------------------------------------------------------------------------

    def _log_flush(self, connection: Connection, frame: Frame) -> None:
        self._node.output.flush(connection)
        job = self._node.output.drivers.get(connection)

        async def others() -> None:
            if job:
                await self.output.flush(job)
            if not connection.closed:
                connection.reply(frame[1], None)

        self._tasks.start(others(), "fetching output from other nodes")

    def _with_output(self) -> list[bytes]:
        """Nodes that may have printed something for a driver of this one."""
        others = self.neighbours.others()
        if len(others) <= limits.OUTPUT_FLUSH_NODES:
            return others
        return [node_id for node_id in others if self.neighbours.existing(node_id) is not None]

    def _node_processes(self, connection: Connection, frame: Frame) -> None:
        async def gather() -> None:
            answers = await self._of_all_others(m.PROCESSES)
            answers.insert(0, (self._node.node_id, self._node.process_rows()))
            if not connection.closed:
                connection.reply(frame[1], [{**row, "node_id": n} for n, rows in answers for row in rows])

        self._tasks.start(gather(), "listing the processes of all nodes")

    def _node_stores(self, connection: Connection, frame: Frame) -> None:
        async def gather() -> None:
            state = self._store.state
            answers = await self._of_all_others(m.STORE_LIST)
            answers.insert(0, (self._node.node_id, {"objects": state.describe(), "stats": state.stats}))
            if not connection.closed:
                connection.reply(frame[1], [{**store, "node_id": node_id} for node_id, store in answers])

        self._tasks.start(gather(), "listing the stores of all nodes")

    async def _of_all_others(self, opcode: int) -> list[tuple[bytes, Any]]:
        """What the other nodes answer, as far as they do in time."""

        async def ask(node_id: bytes) -> tuple[bytes, Any] | None:
            with contextlib.suppress(Exception):
                neighbour = self.neighbours.connection(node_id)
                if neighbour is not None:
                    return node_id, await asyncio.wait_for(neighbour.call(opcode), limits.LISTING_TIMEOUT)
            return None

        found = await asyncio.gather(*map(ask, self.neighbours.others()))
        return [answer for answer in found if answer is not None]
