"""The random programs of the simulation, in real sessions: without faults all oracles are quiet, and nothing
is left over. (In a simulation they run under faults: tests/sim.)"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import pytest

import framework as fw
from framework._runtime.current import current
from framework._sim.inspection import leftovers
from framework._sim.invariants import invariants
from framework._sim.oracles import judge
from framework._sim.programs import WEIGHTS, run_program
from framework.cluster_utils import Cluster
from support.leaks import wait_until
from support.random_worlds import RealWorld

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STORE = 32 * 1024 * 1024


@pytest.fixture(scope="module")
def cluster(session_root: object) -> Iterator[Cluster]:
    """Two nodes with two CPUs each."""
    with_resource: dict[str, Any] = {"num_cpus": 2, "resources": {"oven": 1}, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=with_resource)
    cluster.add_node(num_cpus=2, object_store_memory=STORE)
    cluster.wait_for_nodes()
    cluster.connect(log_to_driver=False)
    yield cluster
    cluster.shutdown()


def run(world: RealWorld) -> list[str]:
    asyncio.run(run_program(world))
    return [str(violation) for violation in judge(world)]


def left() -> list[str]:
    gc.collect()
    return leftovers([], [], [current()])


@pytest.mark.parametrize("seed", range(3))
def test_oracles_are_quiet(cluster: Cluster, seed: int) -> None:
    # Nodes take their time to come.
    kinds = {kind: weight for kind, weight in WEIGHTS.items() if kind != "node" or not seed}
    world = RealWorld(seed, count=16, kinds=kinds, cluster=cluster, store_bytes=STORE, resource="oven")
    assert run(world) == []
    assert len(world.seen.observations) > world.count
    with contextlib.suppress(AssertionError):  # (the next line says what it is)
        wait_until(lambda: not left(), 10)
    assert left() == []
    assert invariants([], [], [current()]) == []


def test_what_is_held_is_found(cluster: Cluster) -> None:
    ref = fw.put([fw.put(1)])
    (found,) = left()
    assert found.startswith(f"driver {current().worker_id.hex()[:8]}"), found
    assert "2 objects in the owner table" in found
    assert "contains 1" in found and "test_random_programs.py" in found
    del ref
    wait_until(lambda: not left(), 10)
