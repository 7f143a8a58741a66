"""The world of a random program in a simulation."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Any

from framework._sim.cluster import SimCluster
from framework._sim.faults import Injector
from framework._sim.record import Record
from framework._sim.world import Happening


class SimWorld:
    """See `framework._sim.world.World`. Its coroutines are for the driver's loop."""

    simulated = True
    can_add_nodes = True
    pace = 1.0
    patience = 300.0
    resource = "everlasting"

    def __init__(
        self,
        cluster: SimCluster,
        injector: Injector,
        *,
        count: int,
        kinds: Mapping[str, float] | None,
        skip: Set[int],
        store_bytes: int,
        cpus: int,
    ) -> None:
        self._cluster = cluster
        self._kernel = cluster.kernel
        self._injector = injector
        self.rng: random.Random = cluster.kernel.choices.derive("program")
        self.count = count
        self.kinds = kinds
        self.skip = skip
        self.store_bytes = store_bytes
        self.cpus = cpus
        self.faults_possible = injector.faults.any()
        self.happened: list[Happening] = injector.happened
        self.seen = Record()

    def note(self, kind: str, **facts: Any) -> None:
        self._injector.note(kind, **facts)

    def now(self) -> float:
        return self._kernel.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def add_node(self, **options: Any) -> str:
        node = self._cluster.add_node(**options)
        while node.alive and (node.service is None or node.service.cluster.head.connection is None):
            await asyncio.sleep(0.05)
        self.note("node_added", node=node.node_id)
        return node.node_id

    async def remove_node(self, node_id: str, graceful: bool) -> None:
        node = self._cluster.nodes.get(node_id)
        if node is None or not node.alive:
            return
        self.note("node_removed", node=node_id, graceful=graceful)
        self.faults_possible = True  # from here on: others' actors may have been there
        os.kill(node.process.pid, signal.SIGTERM if graceful else signal.SIGKILL)
        while node.alive:
            await asyncio.sleep(0.05)

    async def in_driver(self, job: Callable[[], Awaitable[Any]]) -> Any:
        answers: list[Any] = []
        problems: list[BaseException] = []

        async def run() -> None:
            try:
                answers.append(await job())
            except Exception as error:
                problems.append(error)

        process = self._cluster.start_driver(run)
        while process.alive:
            await asyncio.sleep(0.02)
        if problems:
            raise problems[0]
        if not answers:
            raise RuntimeError(f"the other driver has ended without an answer: {process.errors}")
        return answers[0]
