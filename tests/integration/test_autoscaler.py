"""Nodes that appear under demand and leave when they are idle, as processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import framework as fw
from framework.autoscaler import Autoscaler, LocalNodeProvider, NodeType, ProvidedNode, local_facts
from framework.autoscaler.config import read_config
from framework.cluster_utils import Cluster
from framework.exceptions import ConnectionFailedError
from support.drivers import Driver, assert_clean
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        fw.init(address=cluster.address)
        yield cluster
        fw.shutdown()
    assert_clean(tmp_path)


@fw.remote
def where(seconds: float = 0.3) -> str:
    time.sleep(seconds)
    return fw.get_runtime_context().get_node_id()


def alive() -> int:
    return sum(node["Alive"] for node in fw.nodes())


def test_nodes_appear_under_demand_and_leave(cluster: Cluster) -> None:
    small = NodeType("small", {"CPU": 1, "object_store_memory": 50e6}, max_nodes=2)
    oven = NodeType("oven", {"CPU": 1, "oven": 1, "object_store_memory": 50e6}, {"kind": "hot"}, max_nodes=1)
    provider = LocalNodeProvider(local_facts(cluster.address))
    with Autoscaler(cluster.address, [small, oven], provider, idle_timeout=1.0, interval=0.1):
        found = set(fw.get([where.remote() for _ in range(12)], timeout=40))
        assert 2 <= len(found) <= 3, "as many as may be had"
        baked = fw.get(where.options(resources={"oven": 1}).remote(), timeout=40)
        (node,) = [node for node in fw.nodes() if node["NodeID"] == baked]
        assert node["Labels"]["kind"] == "hot"
        wait_until(lambda: alive() == 1, 20, "the end of the idle nodes")
        assert provider.non_terminated_nodes() == []
        assert fw.get(where.remote(), timeout=40), "and again"
    assert provider.non_terminated_nodes() == []


def test_a_placement_group_brings_its_nodes(cluster: Cluster) -> None:
    from framework.util import placement_group

    two = NodeType("two", {"CPU": 2, "object_store_memory": 50e6}, max_nodes=3)
    provider = LocalNodeProvider(local_facts(cluster.address))
    with Autoscaler(cluster.address, [two], provider, idle_timeout=60, interval=0.1):
        group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
        fw.get(group.ready(), timeout=40)
        assert alive() == 3


def test_a_provider_that_fails_is_asked_again(cluster: Cluster) -> None:
    class Moody(LocalNodeProvider):
        failures = 2

        def create_node(self, node_type: NodeType) -> str:
            self.failures -= 1
            if self.failures >= 0:
                raise RuntimeError("no machines left")
            return super().create_node(node_type)

    provider = Moody(local_facts(cluster.address))
    one = NodeType("one", {"CPU": 1, "object_store_memory": 50e6}, max_nodes=1)
    with Autoscaler(cluster.address, [one], provider, idle_timeout=60, interval=0.05):
        assert fw.get(where.remote(), timeout=40)
    assert provider.failures < 0


def test_a_node_that_dies_is_replaced(cluster: Cluster) -> None:
    provider = LocalNodeProvider(local_facts(cluster.address))
    kind = NodeType("kept", {"CPU": 1, "object_store_memory": 50e6}, min_nodes=1, max_nodes=1)
    with Autoscaler(cluster.address, [kind], provider, idle_timeout=0.2, interval=0.1):
        wait_until(lambda: alive() == 2, 20, "the least that there is to be")
        first: list[ProvidedNode] = provider.non_terminated_nodes()
        (pid,) = [node["pid"] for node in fw.nodes() if node["NodeID"] == first[0].node_id]
        os.killpg(pid, signal.SIGKILL)
        wait_until(lambda: provider.non_terminated_nodes() not in (first, []), 20, "another")
        assert fw.get(where.remote(), timeout=40) != first[0].node_id


def test_a_cluster_that_is_not_here() -> None:
    with pytest.raises(ConnectionFailedError, match="no node of a cluster"):
        local_facts("127.0.0.1:1")


def test_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "scale.json"
    kind = {"resources": {"CPU": 1, "object_store_memory": 5e7}, "max_nodes": 1}
    config.write_text(json.dumps({"idle_timeout": 30, "interval": 0.1, "node_types": {"one": kind}}))
    root = tmp_path / "s"
    root.mkdir()
    arguments = ["-m", "framework", "start", "--head", "--num-cpus=0", f"--autoscale={config}"]
    source = """
import framework as fw
fw.init("auto")
@fw.remote
def one(): return 1
print(fw.get(one.remote(), timeout=40))
"""
    with Driver("", root, arguments=arguments) as head:
        head.expect("Nodes come and go")
        with Driver(source, root) as driver:
            assert driver.finish(60) == 0, driver.text()
        head.signal(signal.SIGINT)
        assert head.finish(30) == 0, head.text()
    assert_clean(root)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "node_types"),
        ('{"node_types": {}}', "node_types"),
        ('{"node_types": {"a": {}}}', "resources"),
        ('{"node_types": {"a": {"resources": {}, "most": 1}}}', "'most' is unknown"),
        ('{"pause": 1, "node_types": {"a": {"resources": {}}}}', "'pause' is unknown"),
        ('{"idle_timeout": "long", "node_types": {"a": {"resources": {}}}}', "idle_timeout is a number"),
        ('{"node_types": {"a": {"resources": {"CPU": -1}}}}', "CPU must not be negative"),
        ('{"node_types": {"a": {"resources": {}, "max_nodes": "2"}}}', "max_nodes is a whole number"),
        ('{"node_types": {"a": {"resources": {}, "max_nodes": -2}}}', "min_nodes <= max_nodes"),
        ('{"node_types": {"a": {"resources": {}, "labels": {"b": 1}}}}', "labels is a dict"),
    ],
)
def test_a_file_that_makes_no_sense(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_config(str(path))
