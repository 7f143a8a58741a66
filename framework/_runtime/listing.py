"""What is alive: the objects that a process owns or has borrowed, and those of all processes."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection, Frame
from framework._runtime.sites import format_site
from framework._serial import values
from framework._service.census import answer_census
from framework._state.objects import READY
from framework._wire import messages as m
from framework.exceptions import FrameworkError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class Listing:
    """Answers, and asks others."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.handlers = {m.LIST_OBJECTS: self._asked, m.CENSUS: answer_census}

    def _asked(self, connection: Connection, frame: Frame) -> None:
        connection.reply(frame[1], self.here())

    def here(self) -> list[dict[str, Any]]:
        """On the loop: all objects that this process owns or has borrowed."""
        self._runtime.objects.drain_drops()
        found = []
        for entry in list(self._runtime.objects.table.entries.values()):
            wire = entry.value
            stored = values.is_stored(wire)
            found.append(
                {
                    "object_id": entry.id,
                    "owner": entry.owner or self._runtime.address,
                    "borrowed": entry.owner is not None,
                    "state": ("PENDING", "READY", "FAILED")[entry.state],
                    "size": wire[3] if stored else values.wire_size(wire) if entry.state == READY else 0,
                    "stored": stored,
                    "store_id": wire[1] if stored else b"",
                    "local": entry.local,
                    "borrowers": self._runtime.objects.borrowers(entry),
                    "contains": len(entry.contained or ()),
                    "task": getattr(getattr(entry.task, "template", None), "name", ""),
                    "call_site": format_site(entry.site),
                }
            )
        return found

    def everywhere(self) -> list[dict[str, Any]]:
        """Any thread but the loop's: the objects of all processes of this node, in a cluster of all nodes,
        with where each process is. Those that do not answer in time are left out, with a `RuntimeWarning`.
        """
        rows, silent = self._runtime.run_sync(self._ask_all())
        if silent:
            warnings.warn(
                f"the objects of {len(silent)} processes are not listed, as they do not answer within "
                f"{limits.LISTING_TIMEOUT:g} s: pid {', '.join(map(str, silent[:10]))}",
                RuntimeWarning,
                stacklevel=3,
            )
        return rows

    async def _ask_all(self) -> tuple[list[dict[str, Any]], list[int]]:
        """And the numbers of those that do not answer."""
        runtime = self._runtime
        assert runtime.node is not None
        own_node = runtime.config.node_id
        opcode = m.PROCESSES if runtime.config.cluster is None else m.NODE_PROCESSES
        processes = await runtime.node.call(opcode)
        rows, silent = [], []
        found = await asyncio.gather(*map(self._ask, processes))
        for process, objects in zip(processes, found, strict=True):
            if objects is None:
                silent.append(process["pid"])
                continue
            node_id = process.get("node_id", own_node)
            where = {"pid": process["pid"], "kind": process["kind"], "node_id": node_id}
            rows += [{**row, **where} for row in objects]
        return rows, silent

    async def _ask(self, process: dict[str, Any]) -> list[dict[str, Any]] | None:
        """None when it does not answer in time; empty when it has ended."""
        if process["ident"] == self._runtime.worker_id:
            return self.here()
        peer = self._runtime.peers.connect(process["address"])
        if peer is None:
            return []
        try:
            rows: list[dict[str, Any]] = await asyncio.wait_for(
                peer.call(m.LIST_OBJECTS), limits.LISTING_TIMEOUT
            )
        except TimeoutError:
            return None
        except (ConnectionError, FrameworkError):
            return []
        return rows
