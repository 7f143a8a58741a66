"""Random programs in real sessions: see `framework._sim.world.World`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from framework._sim.record import Record
from framework.cluster_utils import Cluster, ClusterNode


class RealWorld:
    """A session that this process is connected to; `cluster`, if nodes may come and go."""

    simulated = False
    faults_possible = False
    pace = 0.05
    patience = 30.0
    cpus = 2

    def __init__(
        self,
        seed: int,
        *,
        count: int = 20,
        kinds: Mapping[str, float] | None = None,
        skip: frozenset[int] = frozenset(),
        cluster: Cluster | None = None,
        store_bytes: int = 0,
        resource: str = "",
    ) -> None:
        self.rng = random.Random(seed)
        self.count = count
        self.kinds = kinds
        self.skip = skip
        self.store_bytes = store_bytes
        self.resource = resource
        self.can_add_nodes = cluster is not None
        self.happened: list[tuple[float, str, Mapping[str, Any]]] = []
        self.seen = Record()
        self._cluster = cluster
        self._nodes: dict[str, ClusterNode] = {}

    def note(self, kind: str, **facts: Any) -> None:
        self.happened.append((self.now(), kind, facts))

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def add_node(self, **options: Any) -> str:
        assert self._cluster is not None
        node = await asyncio.to_thread(self._cluster.add_node, **options)
        self._nodes[node.node_id] = node
        self.note("node_added", node=node.node_id)
        return node.node_id

    async def remove_node(self, node_id: str, graceful: bool) -> None:
        node = self._nodes.pop(node_id, None)
        if node is not None:
            assert self._cluster is not None
            self.note("node_removed", node=node_id, graceful=graceful)
            await asyncio.to_thread(self._cluster.remove_node, node, graceful)

    async def in_driver(self, job: Callable[[], Awaitable[Any]]) -> Any:
        raise NotImplementedError("this process is the only driver")
