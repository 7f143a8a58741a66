"""A node that ends in order: what lies there for others is there afterwards, and what keeps it is said."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework import exceptions
from framework._base import limits
from framework.cluster_utils import Cluster, ClusterNode
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20


@fw.remote(num_cpus=0, max_retries=0)
def make(mib: int, value: int) -> Any:
    return np.full(mib * MIB, value, np.uint8)


@fw.remote(num_cpus=0)
class Keeper:
    def pid(self) -> int:
        return os.getpid()


class Nodes:
    """The driver's node, and B, where there is no other room."""

    def __init__(self, other_bytes: int = 256 * MIB) -> None:
        self.cluster = Cluster()
        self.cluster.add_node(num_cpus=1, resources={"a": 1}, object_store_memory=256 * MIB)
        fw.init(address=self.cluster.address, log_to_driver=False)
        self.b = self.cluster.add_node(num_cpus=1, resources={"b": 1}, object_store_memory=other_bytes)
        self.cluster.wait_for_nodes()

    def made_there(self, count: int, mib: int) -> list[Any]:
        refs = [make.options(resources={"b": 0.001}).remote(mib, value) for value in range(count)]
        fw.wait(refs, num_returns=count, fetch_local=False, timeout=30)
        return refs


@pytest.fixture
def nodes(session_root: object) -> Iterator[Nodes]:
    found = Nodes()
    try:
        yield found
    finally:
        fw.shutdown()
        found.cluster.shutdown()


def cli(nodes: Nodes, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "framework", *arguments, "--address", nodes.cluster.address]
    environment = {**os.environ, "FRAMEWORK_TOKEN": nodes.cluster.token}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment, input=""
    )


def values(refs: list[Any]) -> list[int]:
    return [int(array[-1]) for array in fw.get(refs, timeout=30)]


def test_objects_of_a_node_that_is_removed_can_be_read_afterwards(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow it goes: the time that is given grows with the bytes.
    monkeypatch.setattr(limits, "SHUTDOWN_GRACE", 0.0)
    monkeypatch.setattr(limits, "DRAIN_RATE", 5e6)
    refs = nodes.made_there(20, 8)
    nodes.cluster.remove_node(nodes.b)
    assert values(refs) == list(range(20))


def test_objects_of_a_node_that_is_drained_can_be_read_afterwards(nodes: Nodes) -> None:
    refs = nodes.made_there(10, 8)
    done = cli(nodes, "drain", nodes.b.node_id[:12])
    assert (done.returncode, "has no work left and ends" in done.stdout) == (0, True), done
    wait_until(lambda: len(alive()) == 1, 20, "its end")
    assert values(refs) == list(range(10))


def alive() -> list[Any]:
    return [node for node in fw.nodes() if node["Alive"]]


def test_what_keeps_a_node_is_said(nodes: Nodes) -> None:
    keeper = Keeper.options(name="the keeper", resources={"b": 0.001}).remote()
    fw.get(keeper.pid.remote(), timeout=20)
    done = cli(nodes, "drain", nodes.b.node_id[:12], "--timeout=1.5")
    assert done.returncode != 0
    for told in ("actor Keeper 'the keeper'", "may not be restarted", "not drained after 1.5 s"):
        assert told in done.stderr, done
    assert len(alive()) == 2, "it is not ended"
    del keeper
    done = cli(nodes, "drain", nodes.b.node_id[:12])
    assert done.returncode == 0, done


def test_what_is_lost_with_a_node_is_said(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    view = fw.get(fw.put(np.zeros(200 * MIB, np.uint8)))  # (it cannot be spilled)
    ref, other = nodes.made_there(2, 100)
    with caplog.at_level(logging.WARNING, "framework.cluster"):
        nodes.cluster.remove_node(nodes.b)
    assert "lost are 2 objects of 200.0 MiB" in caplog.text
    del view, other
    with pytest.raises(exceptions.ObjectLostError):
        fw.get(ref, timeout=30)


def test_a_task_that_runs_for_long_does_not_keep_a_node_from_being_removed(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper.options(resources={"b": 0.001}).remote()
    fw.get(keeper.pid.remote(), timeout=20)
    with caplog.at_level(logging.WARNING, "framework.cluster"):
        nodes.cluster.remove_node(nodes.b)
    assert "lost are actor Keeper" in caplog.text
    with pytest.raises(exceptions.ActorDiedError):
        fw.get(keeper.pid.remote(), timeout=30)


def test_the_last_node_beside_none_can_be_drained(session_root: object) -> None:
    cluster = Cluster()
    node: ClusterNode = cluster.add_node(num_cpus=1)
    try:
        fw.init(address=cluster.address, log_to_driver=False)
        ref = fw.put(bytes(MIB))
        from framework._node.draining import drain

        done, rest = drain(cluster._client, bytes.fromhex(node.node_id), "a test", 10.0)
        assert (done, rest) == (True, "1 objects of 1.0 MiB found no room on other nodes")
        assert len(fw.get(ref)) == MIB
    finally:
        fw.shutdown()
        cluster.shutdown()
