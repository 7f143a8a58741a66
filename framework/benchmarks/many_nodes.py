"""What many nodes cost the head of a cluster: ``python -m framework.benchmarks.many_nodes [200 ...]``.

The head is a real process; the nodes are links to it (`framework._node.head_link`), all in this process, over
TCP and authenticated, with no node behind them. Measured per number of nodes: how long it takes until all
have joined and know of each other, and what an idle cluster and one whose loads change costs the head in
processor time.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from framework._base.cluster import ClusterFacts
from framework._base.ids import NODE_ID_SIZE
from framework._node.head_link import HeadLink
from framework._node.launching import HeadProcess, new_facts
from framework._service.credentials import new_token
from framework._service.descriptors import raise_limit
from framework._wire import messages as m

_SECONDS = 5.0


class _Node:
    """A node that is nothing but its link."""

    def __init__(self, facts: ClusterFacts) -> None:
        self.node_id = os.urandom(NODE_ID_SIZE)
        self.known: set[bytes] = set()
        self.heard = 0
        self.ended = ""
        self.link = HeadLink(
            asyncio.get_running_loop(),
            ClusterFacts.from_dict({**facts.to_dict(), "node_id": self.node_id.hex()}),
            "/nowhere",
            info=self._info,
            handlers={},
            on_rows=self._rows,
            on_gone=lambda node_id, reason: None,
            on_end=self._end,
        )
        self.link.start()

    def _info(self) -> dict[str, Any]:
        return {
            "node_id": self.node_id,
            "host": "127.0.0.1",
            "port": 1,
            "total": {"CPU": 640_000, "memory": 10_000 << 38, "object_store_memory": 10_000 << 37},
            "labels": {"zone": "a"},
            "hostname": "simulated",
        }

    def _rows(self, rows: list[dict[str, Any]]) -> None:
        self.heard += 1
        self.known.update(row["node_id"] for row in rows)

    def _end(self, reason: str) -> None:
        self.ended = reason

    def load(self, number: int) -> None:
        free = {"CPU": 10_000 * (number % 65), "memory": 10_000 << 38, "object_store_memory": 10_000 << 37}
        self.link.cast(m.NODE_LOAD, free, [], None, 0, number % 65)


def _processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _measure(head: HeadProcess, count: int) -> dict[str, float]:
    begin, used = time.monotonic(), _processor(head.pid)
    nodes = [_Node(head.facts) for _ in range(count)]
    while not all(len(node.known) == count for node in nodes):
        if ended := [node.ended for node in nodes if node.ended]:
            raise RuntimeError(ended[0])
        await asyncio.sleep(0.01)
    result = {"joined_s": time.monotonic() - begin, "join_cpu_s": _processor(head.pid) - used}
    used = _processor(head.pid)
    await asyncio.sleep(_SECONDS)
    result["idle_cpu_%"] = 100 * (_processor(head.pid) - used) / _SECONDS
    # Each node tells a new load five times a second.
    used, begin, heard = _processor(head.pid), time.monotonic(), sum(node.heard for node in nodes)
    turn = 0
    while time.monotonic() - begin < _SECONDS:
        turn += 1
        for index, node in enumerate(nodes):
            if index % 10 == turn % 10:
                node.load(turn + index)
        await asyncio.sleep(0.02)
    spent = time.monotonic() - begin
    result["loads_per_s"] = turn * count / 10 / spent
    result["views_per_s"] = (sum(node.heard for node in nodes) - heard) / spent
    result["busy_cpu_%"] = 100 * (_processor(head.pid) - used) / spent
    for node in nodes:
        node.link.leave("measured")
    return result


def main() -> None:
    """Measure for each number of nodes that is given (1, 10, 50, 100, 200), and print a table."""
    raise_limit()
    counts = [int(word) for word in sys.argv[1:]] or [1, 10, 50, 100, 200]
    names: list[str] = []
    for count in counts:
        head = HeadProcess(new_facts(new_token(), "127.0.0.1", 0, False), parent_pid=os.getpid())
        try:
            result = asyncio.run(_measure(head, count))
        finally:
            head.stop()
        if not names:
            names = list(result)
            print(f"{'nodes':>6}", *(f"{name:>12}" for name in names))
        print(f"{count:>6}", *(f"{result[name]:>12.2f}" for name in names), flush=True)


if __name__ == "__main__":
    main()
