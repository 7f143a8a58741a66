"""What is alive: the objects that a process owns or has borrowed, and those of all processes of its node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework._net.connection import Connection, Frame
from framework._runtime.sites import format_site
from framework._serial import values
from framework._state.objects import READY
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class Listing:
    """Answers, and asks others."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.handlers = {m.LIST_OBJECTS: self._asked}

    def _asked(self, connection: Connection, frame: Frame) -> None:
        connection.reply(frame[1], self.here())

    def here(self) -> list[dict[str, Any]]:
        """On the loop: all objects that this process owns or has borrowed."""
        self._runtime.objects.drain_drops()
        found = []
        for entry in list(self._runtime.objects.table.entries.values()):
            wire = entry.value
            stored = type(wire) is list and wire[0] == values.FORM_STORED
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
                    "borrowers": [getattr(c, "name", "?") for c in entry.borrowers or ()],
                    "contains": len(entry.contained or ()),
                    "task": getattr(getattr(entry.task, "template", None), "name", ""),
                    "call_site": format_site(entry.site),
                }
            )
        return found

    def everywhere(self) -> list[dict[str, Any]]:
        """Any thread but the loop's: the objects of all processes of this node, with where each process
        is.
        """

        async def ask() -> list[dict[str, Any]]:
            assert self._runtime.node is not None
            answer = await self._runtime.node.call(m.PROCESSES)
            rows = []
            for process in answer:
                if process["ident"] == self._runtime.worker_id:
                    objects = self.here()
                else:
                    peer = self._runtime.peers.connect(process["address"])
                    if peer is None:
                        continue
                    try:
                        objects = await peer.call(m.LIST_OBJECTS)
                    except ConnectionError:
                        continue
                rows += [{**row, "pid": process["pid"], "kind": process["kind"]} for row in objects]
            return rows

        return self._runtime.run_sync(ask())
