"""Clusters of real processes on this machine: nodes come and go, drivers connect in every way, the head is
restarted, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import framework as fw
from framework.cluster_utils import Cluster
from framework.exceptions import ConnectionFailedError
from support.command_line import run_command_line
from support.drivers import ROOT, Driver, alive, assert_clean
from support.leaks import framework_processes, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for sessions, of which nothing but logs is left."""
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    monkeypatch.delenv("FRAMEWORK_TOKEN", raising=False)
    monkeypatch.delenv("FRAMEWORK_ADDRESS", raising=False)
    yield tmp_path
    fw.shutdown()
    assert_clean(tmp_path)


@pytest.fixture
def cluster(root: Path) -> Iterator[Cluster]:
    """A head without CPUs; tests add nodes."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        yield cluster
        fw.shutdown()


@fw.remote
def where() -> str:
    return fw.get_runtime_context().get_node_id()


@fw.remote(num_cpus=0)
class Resident:
    def where(self) -> tuple[str, int]:
        return fw.get_runtime_context().get_node_id(), os.getpid()


def alive_nodes() -> list[str]:
    return sorted(node["NodeID"] for node in fw.nodes() if node["Alive"])


def test_nodes_come_and_go(cluster: Cluster) -> None:
    assert cluster.head_node is not None
    fw.init(address=cluster.address)
    assert alive_nodes() == [cluster.head_node.node_id]
    first = cluster.add_node(num_cpus=1, resources={"oven": 2}, labels={"zone": "a"})
    second = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    assert alive_nodes() == sorted(node.node_id for node in cluster.list_all_nodes())
    facts = {node["NodeID"]: node for node in fw.nodes()}
    assert facts[first.node_id]["Resources"]["oven"] == 2.0
    assert facts[first.node_id]["Labels"]["zone"] == "a"
    assert facts[first.node_id]["NodeManagerAddress"] == "127.0.0.1"
    assert fw.cluster_resources()["CPU"] == 3.0
    assert fw.get(where.options(resources={"oven": 1}).remote(), timeout=20) == first.node_id
    cluster.remove_node(first)
    cluster.wait_for_nodes()
    assert alive_nodes() == sorted([cluster.head_node.node_id, second.node_id])
    assert facts[first.node_id]["pid"] == first.pid and not alive(first.pid)
    assert fw.get(where.remote(), timeout=20) == second.node_id
    cluster.remove_node(second, allow_graceful=False)
    cluster.wait_for_nodes()
    assert fw.cluster_resources().get("CPU", 0) == 0
    assert [node["NodeID"] for node in fw.nodes() if not node["Alive"]]
    third = cluster.add_node(num_cpus=1)
    assert fw.get(where.remote(), timeout=20) == third.node_id


def test_a_node_that_is_removed_in_order_hands_over_what_it_has(cluster: Cluster) -> None:
    leaving = cluster.add_node(num_cpus=1, resources={"a": 1})
    staying = cluster.add_node(num_cpus=1)
    fw.init(address=cluster.address)

    @fw.remote(max_retries=0)
    def large() -> bytes:
        return b"x" * 3_000_000

    ref = large.options(resources={"a": 1}).remote()
    fw.wait([ref], timeout=20)
    here = fw.util.scheduling_strategies.NodeAffinitySchedulingStrategy(leaving.node_id, soft=True)
    actor = Resident.options(max_restarts=1, max_task_retries=3, scheduling_strategy=here).remote()
    assert fw.get(actor.where.remote(), timeout=20)[0] == leaving.node_id
    cluster.remove_node(leaving)
    assert not alive(leaving.pid)
    assert len(fw.get(ref, timeout=20)) == 3_000_000, "it cannot be made again"
    head = cluster.head_node
    assert head is not None
    assert fw.get(actor.where.remote(), timeout=20)[0] in (staying.node_id, head.node_id)


def test_tasks_spread_over_all_nodes(cluster: Cluster) -> None:
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    fw.init(address=cluster.address)

    @fw.remote(scheduling_strategy="SPREAD")
    def slow() -> str:
        time.sleep(0.2)
        return fw.get_runtime_context().get_node_id()

    found = fw.get([slow.remote() for _ in range(8)], timeout=30)
    assert set(found) == {node.node_id for node in nodes}


def test_actors_live_on_any_node(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=1, resources={"oven": 1})
    fw.init(address=cluster.address)
    actor = Resident.options(resources={"oven": 1}).remote()
    assert fw.get(actor.where.remote(), timeout=20)[0] == node.node_id


def test_a_large_value_goes_from_node_to_node(cluster: Cluster) -> None:
    for name in ("a", "b"):
        cluster.add_node(num_cpus=1, resources={name: 1})
    fw.init(address=cluster.address)

    @fw.remote
    def make() -> bytes:
        return b"x" * 3_000_000

    @fw.remote
    def size(value: bytes) -> int:
        return len(value)

    ref = make.options(resources={"a": 1}).remote()
    assert fw.get(size.options(resources={"b": 1}).remote(ref), timeout=20) == 3_000_000
    assert len(fw.get(ref, timeout=20)) == 3_000_000
    put = fw.put(b"y" * 2_000_000)
    assert (
        fw.get([size.options(resources={name: 1}).remote(put) for name in "ab"], timeout=20)
        == [2_000_000] * 2
    )


def test_output_of_all_nodes_reaches_the_driver(cluster: Cluster, root: Path) -> None:
    cluster.add_node(num_cpus=1, resources={"a": 1})
    cluster.add_node(num_cpus=1, resources={"b": 1})
    source = f"""
import framework as fw
fw.init(address={cluster.address!r})
@fw.remote
def inner(): print("said by inner")
@fw.remote
def outer():
    print("said by outer")
    fw.get(inner.options(resources={{"b": 1}}).remote())
fw.get(outer.options(resources={{"a": 1}}).remote())
"""
    with Driver(source, root) as driver:
        assert driver.finish(30) == 0, driver.text()
    text = driver.text()
    assert "said by outer" in text and "said by inner" in text, text
    assert "ip=127.0.0.1" in text, text
    assert driver.err == [], text


def test_drivers_connect_and_leave(cluster: Cluster, root: Path) -> None:
    """By address, session directory and environment; what one leaves does not disturb another."""
    assert cluster.head_node is not None
    node = cluster.add_node(num_cpus=2)
    fw.init(address=cluster.address)
    mine = Resident.remote()
    before = fw.get(mine.where.remote(), timeout=20)
    source = """
import os, framework as fw
fw.init(**eval(os.environ["ARGUMENTS"]))
@fw.remote
def double(x): return 2 * x
@fw.remote(num_cpus=0)
class Stays:
    def pid(self): return os.getpid()
a = Stays.remote()
print(sum(fw.get([double.remote(n) for n in range(10)], timeout=20)), fw.get(a.pid.remote(), timeout=20))
"""
    for arguments, variables in (
        ({"address": cluster.address}, {}),
        ({"address": node.session_dir}, {}),
        ({"address": cluster.head_node.session_dir}, {}),
        ({}, {"FRAMEWORK_ADDRESS": cluster.address}),
    ):
        with Driver(source, root, env={"ARGUMENTS": repr(arguments), **variables}) as driver:
            assert driver.finish(30) == 0, driver.text()
            total, pid = driver.out[-1].split()
            assert total == "90", driver.text()
        wait_until(lambda pid=pid: not alive(int(pid)), 5, "the end of the actor of a driver that has left")
    assert fw.get(mine.where.remote(), timeout=20) == before
    fw.shutdown()
    wait_until(lambda: not alive(before[1]), 5, "the end of our actor")


def test_addresses_where_nothing_is(root: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionFailedError, match="FRAMEWORK_TOKEN"):
        fw.init(address="127.0.0.1:1")
    monkeypatch.setenv("FRAMEWORK_TOKEN", "ab" * 32)
    began = time.monotonic()
    with pytest.raises(ConnectionFailedError, match="no head of a cluster answers at 127.0.0.1:1"):
        fw.init(address="127.0.0.1:1")
    assert time.monotonic() - began < 10
    assert not fw.is_initialized()


def test_a_wrong_token_is_refused(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(elsewhere))  # as on another machine
    monkeypatch.setenv("FRAMEWORK_TOKEN", "ab" * 32)
    with pytest.raises(ConnectionFailedError, match="does not accept") as caught:
        fw.init(address=cluster.address)
    assert "ab" * 32 not in str(caught.value)
    monkeypatch.setenv("FRAMEWORK_TOKEN", "nonsense")
    with pytest.raises(ValueError, match="hexadecimal"):
        fw.init(address=cluster.address)
    assert_clean(elsewhere)


@pytest.mark.parametrize("tls", [False, True])
def test_a_driver_without_a_node_brings_one(root: Path, tmp_path: Path, tls: bool) -> None:
    """A machine of its own is played by another directory for sessions."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with Cluster(tls=tls) as cluster:
        cluster.add_node(num_cpus=1)
        source = f"""
import framework as fw
fw.init(address={cluster.address!r})
@fw.remote
def where(x): return fw.get_runtime_context().get_node_id(), len(x)
node, size = fw.get(where.remote(b"x" * 500_000), timeout=20)
mine = fw.get_runtime_context().get_node_id()
print(node != mine, size, len([n for n in fw.nodes() if n["Alive"]]))
"""
        with Driver(source, elsewhere, env={"FRAMEWORK_TOKEN": cluster.token}) as driver:
            assert driver.finish(30) == 0, driver.text()
            assert driver.out == ["True 500000 2"], driver.text()
        assert_clean(elsewhere)
        # A driver that is killed takes its node along.
        source = f"import framework as fw, time; fw.init({cluster.address!r}); print('UP'); time.sleep(99)"
        with Driver(source, elsewhere, env={"FRAMEWORK_TOKEN": cluster.token}) as driver:
            driver.expect("UP")
            driver.signal(signal.SIGKILL)
        assert_clean(elsewhere)
        cluster.wait_for_nodes()


def test_the_head_is_restarted(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=2)
    fw.init(address=cluster.address)
    actor = Resident.options(name="stays").remote()
    before = fw.get(actor.where.remote(), timeout=20)
    ref = fw.put(b"z" * 1_000_000)

    @fw.remote
    def slow(value: bytes) -> int:
        time.sleep(1.5)
        return len(value)

    running = slow.remote(ref)
    address = cluster.address
    cluster.kill_head()
    assert fw.get(actor.where.remote(), timeout=20) == before, "calls go on without a head"
    assert fw.get(where.remote(), timeout=20) == node.node_id, "so do tasks"
    cluster.restart_head()
    assert cluster.address == address
    cluster.wait_for_nodes(10)
    assert fw.get(running, timeout=20) == 1_000_000
    assert fw.get(fw.get_actor("stays").where.remote(), timeout=20) == before
    another = cluster.add_node(num_cpus=1, resources={"new": 1})
    assert fw.get(where.options(resources={"new": 1}).remote(), timeout=20) == another.node_id


def test_a_stopped_node_is_dead_and_may_not_come_back(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=1, resources={"a": 1})
    fw.init(address=cluster.address)
    assert fw.get(where.options(resources={"a": 1}).remote(), timeout=20) == node.node_id
    node.stop()
    began = time.monotonic()
    wait_until(lambda: node.node_id not in alive_nodes(), 8, "the verdict")
    assert time.monotonic() - began < 6
    node.cont()
    wait_until(lambda: not node.alive, 10, "its end: it is fenced")
    cluster.remove_node(node, allow_graceful=False)
    cluster.wait_for_nodes()


def test_everything_ends_with_the_process_that_made_it(root: Path) -> None:
    source = """
import os, time
from framework.cluster_utils import Cluster
import framework as fw
cluster = Cluster()
cluster.add_node(num_cpus=1)
node = cluster.add_node(num_cpus=1)
stopped = cluster.add_node(num_cpus=1)
fw.init(address=cluster.address)
stopped.stop()
print("UP", cluster.head_pid, node.pid, stopped.pid)
time.sleep(99)
"""
    with Driver(source, root) as driver:
        pids = [int(word) for word in driver.expect("UP").split()[1:]]
        driver.signal(signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids)), 5, "the end of all processes")
    assert_clean(root)


def test_a_cluster_ends_at_exit(root: Path) -> None:
    source = """
from framework.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
print("DONE")
"""
    with Driver(source, root) as driver:
        assert driver.finish(20) == 0, driver.text()
        assert driver.out == ["DONE"] and driver.err == [], driver.text()
    assert_clean(root)


def test_wrong_use(root: Path) -> None:
    cluster = Cluster()
    with pytest.raises(ValueError, match="add_node"):
        _ = cluster.address
    with pytest.raises(TypeError, match="num_cpu"):
        cluster.add_node(num_cpu=1)
    with pytest.raises(ValueError, match="label"):
        cluster.add_node(labels={"a b": "c"})
    with pytest.raises(ValueError, match="initialize_head"):
        Cluster(connect=True)
    assert not framework_processes(root)
    cluster.shutdown()
    cluster.shutdown()


# ---- the command line --------------------------------------------------------------------------------


def cli(root: Path, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "FRAMEWORK_TMPDIR": str(root), **(env or {})}
    return run_command_line(*arguments, env=variables, code=code)


@pytest.mark.parametrize("tls", [False, True])
def test_a_node_joins_by_the_printed_line(root: Path, tmp_path: Path, tls: bool) -> None:
    there = tmp_path / "there"
    there.mkdir()
    text = cli(root, "start", "--head", "--num-cpus=1", "--tls" if tls else "--no-tls")
    try:
        (line,) = [line for line in text.splitlines() if "start --address=" in line]
        variable, *words = line.partition(":")[2].split()
        token = variable.partition("=")[2]
        assert variable.startswith("FRAMEWORK_TOKEN=") and ("-" in token) == tls
        env = {"FRAMEWORK_TOKEN": token}
        said = cli(there, *words[3:], "--num-cpus=2", '--labels={"zone": "b"}', env=env)
        session_dir = said.split("session ")[1].split()[0]
        status = cli(root, "status")
        assert "CPU: 0 of 3 in use" in status and "zone=b" in status, status
        assert token.partition("-")[0] not in status
        assert f"cluster at {words[-1].partition('=')[2]}" in cli(there, "status")
        nodes = json.loads(cli(root, "list", "nodes", "--format=json", "--detail"))
        assert [node["state"] for node in nodes] == ["ALIVE", "ALIVE"]
        (joined,) = [node for node in nodes if node["labels"].get("zone") == "b"]
        # The secret is in no command line and in no log.
        for process in psutil.process_iter(["cmdline", "pid"]):
            assert token.partition("-")[0] not in " ".join(process.info["cmdline"] or [])
        for place in (root, there):
            for log in place.rglob("*.log"):
                assert token.partition("-")[0] not in log.read_text()
        assert "has no work left" in cli(root, "drain", joined["node_id"][:10])
        wait_until(lambda: not os.path.exists(os.path.join(session_dir, "sockets")), 5, "its end")
        assert "no node's id begins" in cli(root, "drain", joined["node_id"][:10], code=1)
    finally:
        cli(there, "stop")
        cli(root, "stop")
    assert_clean(there)
    assert_clean(root)


def test_stopping_the_head_ends_the_cluster(root: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    text = cli(root, "start", "--head", "--num-cpus=1")
    token = text.split("FRAMEWORK_TOKEN=")[1].split()[0]
    address = text.split("--address=")[1].split()[0]
    cli(there, "start", f"--address={address}", "--num-cpus=1", env={"FRAMEWORK_TOKEN": token})
    assert "Stopped" in cli(root, "stop")
    assert_clean(there, within=5)
    assert_clean(root)


def test_what_is_said_when_it_cannot_start(root: Path) -> None:
    assert "FRAMEWORK_TOKEN" in cli(root, "start", "--address=127.0.0.1:1", code=1)
    wrong = {"FRAMEWORK_TOKEN": "ab" * 32}
    assert "no head of a cluster answers" in cli(root, "start", "--address=127.0.0.1:1", code=1, env=wrong)
    assert "HOST:PORT" in cli(root, "start", "--address=nowhere", code=1, env=wrong)
    assert "cannot listen" in cli(root, "start", "--head", "--host=192.0.2.1", code=1)
    text = cli(root, "start", "--head", "--num-cpus=1")
    address = text.split("--address=")[1].split()[0]
    assert "does not accept" in cli(root, "start", f"--address={address}", code=1, env=wrong)
    port = address.rpartition(":")[2]
    assert "cannot listen" in cli(root, "start", "--head", f"--port={port}", code=1)
    cli(root, "stop")


def test_what_a_cluster_without_a_head_cannot_do(root: Path) -> None:
    with Cluster() as cluster:
        for ask in (cluster.wait_for_nodes, cluster.kill_head, cluster.restart_head, cluster.connect):
            with pytest.raises(ValueError, match="the cluster has no head yet"):
                ask()
        with pytest.raises(ValueError, match="None is not a node of this cluster"):
            cluster.remove_node(None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="head_node_args is a dict"):
            Cluster(initialize_head=True, head_node_args=5)  # type: ignore[arg-type]
