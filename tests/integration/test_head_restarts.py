"""The head of a cluster is killed and started again: what runs goes on, what was there is there, what has
ended meanwhile is found out. Deaths of nodes as their actors, callers and owners see them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework._runtime.current import current
from framework.cluster_utils import Cluster, ClusterNode
from framework.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError
from framework.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from support.drivers import assert_clean
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@fw.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()

    def node(self) -> str:
        return fw.get_runtime_context().get_node_id()

    def wait_for(self, path: str) -> str:
        wait_until(lambda: os.path.exists(path))
        return "done"


@fw.remote(num_cpus=0)
def wait_for(path: str) -> str:
    wait_until(lambda: os.path.exists(path))
    return "done"


@fw.remote
def one() -> int:
    return 1


@fw.remote(num_cpus=0)
class Maker:
    """Owns an actor."""

    def __init__(self, **options: Any) -> None:
        self.counter = Counter.options(**options).remote()

    def counter_of(self) -> Any:
        fw.get(self.counter.add.remote())
        return self.counter


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head with a node, and a driver."""
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 2}) as cluster:
        fw.init(address=cluster.address, namespace="here")
        yield cluster
        fw.shutdown()
    assert_clean(tmp_path)


@pytest.fixture
def oven(cluster: Cluster) -> ClusterNode:
    """A second node, the only one with an oven."""
    return cluster.add_node(num_cpus=2, resources={"oven": 1})


BAKED = {"resources": {"oven": 0.01}}


def alive() -> int:
    return sum(node["Alive"] for node in fw.nodes())


# ---- the head is away, and back --------------------------------------------------------------------------


def test_what_runs_goes_on(
    cluster: Cluster, oven: ClusterNode, tmp_path_factory: pytest.TempPathFactory
) -> None:
    go = str(tmp_path_factory.mktemp("go") / "go")
    here, there = Counter.remote(), Counter.options(**BAKED).remote()
    assert fw.get([here.add.remote(), there.add.remote()]) == [1, 1]
    running = [
        wait_for.remote(go),
        wait_for.options(**BAKED).remote(go),
        here.wait_for.remote(go),
        there.wait_for.remote(go),
    ]
    cluster.kill_head()
    # Leases, objects and calls do not need the head.
    assert fw.get([one.remote() for _ in range(50)], timeout=20) == [1] * 50
    big = fw.put(bytes(1_000_000))
    assert len(fw.get(big)) == 1_000_000
    Path(go).touch()
    assert fw.get(running, timeout=20) == ["done"] * 4
    assert fw.get([here.add.remote(), there.add.remote()], timeout=20) == [2, 2]
    cluster.restart_head()
    assert fw.get([here.add.remote(), there.add.remote()], timeout=20) == [3, 3]


def test_within_a_second_everything_is_back(cluster: Cluster, oven: ClusterNode) -> None:
    named = Counter.options(name="named").remote()
    detached = Counter.options(name="detached", lifetime="detached", **BAKED).remote()
    pids = fw.get([named.pid.remote(), detached.pid.remote()])
    cluster.kill_head()
    new = Counter.remote()  # made while nobody is there to hear of it
    reference = new.add.remote()
    cluster.restart_head()
    begin = time.monotonic()
    assert fw.get(fw.get_actor("named").pid.remote(), timeout=5) == pids[0]
    assert fw.get(fw.get_actor("detached").pid.remote(), timeout=5) == pids[1]
    assert fw.get(reference, timeout=5) == 1
    assert alive() == 2
    took = time.monotonic() - begin
    assert took < 3.0, took  # (0.2 s on an idle machine)
    with pytest.raises(ValueError, match="named"):
        fw.get(Counter.options(name="named").remote().pid.remote(), timeout=20)


def test_again_and_again(cluster: Cluster, oven: ClusterNode) -> None:
    kept = Counter.options(name="kept", lifetime="detached", **BAKED).remote()
    for turn in range(1, 4):
        assert fw.get(kept.add.remote(), timeout=20) == turn
        cluster.restart_head()
        fresh = Counter.options(**BAKED).remote()
        assert fw.get(fresh.add.remote(), timeout=20) == 1
        assert fw.get(fw.get_actor("kept").node.remote(), timeout=20) == oven.node_id


def test_what_died_meanwhile_is_found_out(cluster: Cluster, oven: ClusterNode) -> None:
    mortal = Counter.options(**BAKED).remote()
    again = Counter.options(max_restarts=1, **BAKED).remote()
    pids = fw.get([mortal.pid.remote(), again.pid.remote()])
    cluster.kill_head()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    cluster.restart_head()
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        fw.get(mortal.add.remote(), timeout=20)
    wait_until(lambda: _answers(again))
    assert fw.get(again.pid.remote(), timeout=20) != pids[1]


def _answers(actor: Any) -> bool:
    try:
        return bool(fw.get(actor.add.remote(), timeout=20))
    except ActorUnavailableError:
        return False


def test_a_node_that_died_meanwhile(cluster: Cluster, oven: ClusterNode) -> None:
    lost = Counter.options(**BAKED).remote()
    moves = Counter.options(max_restarts=-1, max_task_retries=-1).remote()
    assert fw.get([lost.add.remote(), moves.add.remote()]) == [1, 1]
    cluster.kill_head()
    oven.kill()
    cluster.restart_head()
    with pytest.raises(ActorDiedError, match="did not come back after a restart of the head"):
        fw.get(lost.add.remote(), timeout=20)
    assert fw.get(moves.add.remote(), timeout=20) >= 1
    assert alive() == 1


def test_handles_dropped_meanwhile_end_their_actor(cluster: Cluster, oven: ClusterNode) -> None:
    actor = Counter.options(**BAKED).remote()
    pid = fw.get(actor.pid.remote())
    cluster.kill_head()
    del actor
    time.sleep(0.5)  # the drop is noticed within `limits.DROP_TICK_MAX`
    cluster.restart_head()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_head_may_be_away_for_long(cluster: Cluster, oven: ClusterNode) -> None:
    """Longer than all of its own limits."""
    actor = Counter.options(**BAKED).remote()
    assert fw.get(actor.add.remote()) == 1
    cluster.kill_head()
    time.sleep(7)
    assert fw.get(one.remote(), timeout=20) == 1
    cluster.restart_head()
    assert fw.get(actor.add.remote(), timeout=20) == 2
    assert alive() == 2


# ---- nodes die -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_verdict_on_a_node_comes_in_time(cluster: Cluster, oven: ClusterNode, how: str) -> None:
    lost = Counter.options(**BAKED).remote()
    moves = Counter.options(max_restarts=1, max_task_retries=1).remote()
    other = Counter.options(
        max_restarts=1,
        max_task_retries=1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(oven.node_id, soft=True),
    ).remote()
    assert fw.get([lost.add.remote(), moves.add.remote(), other.node.remote()]) == [1, 1, oven.node_id]
    begin = time.monotonic()
    getattr(oven, how)()
    calls = [lost.add.remote(), other.node.remote()]
    with pytest.raises(ActorDiedError, match=oven.node_id[:8]) as told:
        fw.get(calls[0], timeout=20)
    assert time.monotonic() - begin < 6.0
    assert "died" in str(told.value)
    assert fw.get(calls[1], timeout=20) != oven.node_id
    assert alive() == 1
    if how == "stop":
        oven.cont()
        wait_until(lambda: not oven.alive)  # it is fenced


def test_an_owner_on_a_dead_node_takes_its_actors_along(cluster: Cluster, oven: ClusterNode) -> None:
    assert cluster.head_node is not None
    here = NodeAffinitySchedulingStrategy(cluster.head_node.node_id, soft=False)
    options = {"scheduling_strategy": here}
    maker = Maker.options(**BAKED).remote(**options)
    other = Maker.options(**BAKED).remote(lifetime="detached", name="kept", **options)
    owned, detached = fw.get([maker.counter_of.remote(), other.counter_of.remote()])
    assert fw.get([owned.node.remote(), detached.node.remote()]) == [cluster.head_node.node_id] * 2
    oven.kill()
    wait_until(lambda: alive() == 1)
    with pytest.raises(ActorDiedError, match="its owner"):
        fw.get(owned.add.remote(), timeout=20)
    assert fw.get(fw.get_actor("kept").add.remote(), timeout=20) == 2


def test_an_actor_waits_for_a_node_that_can_have_it(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    actor = Counter.options(resources={"kiln": 1}).remote()
    reference = actor.node.remote()
    with pytest.raises(GetTimeoutError):
        fw.get(reference, timeout=0.5)
    assert "kiln" in caplog.text and "waits for a node" in caplog.text
    node = cluster.add_node(num_cpus=1, resources={"kiln": 1})
    assert fw.get(reference, timeout=20) == node.node_id


def test_actors_wait_in_the_queue_of_a_busy_cluster(cluster: Cluster) -> None:
    """A never ending stream of tasks does not keep an actor that needs a CPU from being started."""

    @fw.remote(num_cpus=1)
    def spin() -> None:
        time.sleep(0.01)

    pending = [spin.remote() for _ in range(300)]
    actor = Counter.options(num_cpus=1).remote()
    assert fw.get(actor.add.remote(), timeout=20) == 1
    assert len(fw.wait(pending, num_returns=len(pending), timeout=0)[1]) > 0
    fw.get(pending, timeout=60)


def test_a_drained_node_gives_its_actors_away(cluster: Cluster, oven: ClusterNode) -> None:
    strategy = NodeAffinitySchedulingStrategy(oven.node_id, soft=True)
    actor = Counter.options(max_restarts=1, scheduling_strategy=strategy).remote()
    assert fw.get(actor.node.remote()) == oven.node_id
    cluster.remove_node(oven)
    assert fw.get(actor.node.remote(), timeout=20) == cluster.head_node.node_id
    # It has not cost it its restart.
    os.kill(fw.get(actor.pid.remote()), signal.SIGKILL)
    wait_until(lambda: _answers(actor))


def test_the_end_of_a_driver_reaches_all_nodes(cluster: Cluster, oven: ClusterNode) -> None:
    ended = Counter.options(**BAKED).remote()
    stays = Counter.options(name="stays", lifetime="detached", **BAKED).remote()
    pids = fw.get([ended.pid.remote(), stays.pid.remote()])
    fw.shutdown()
    wait_until(lambda: not os.path.exists(f"/proc/{pids[0]}"))
    fw.init(address=cluster.address, namespace="here")
    assert fw.get(fw.get_actor("stays").pid.remote(), timeout=20) == pids[1]


def test_a_connection_to_an_actor_breaks_while_both_ends_live(
    cluster: Cluster, oven: ClusterNode, tmp_path_factory: pytest.TempPathFactory
) -> None:
    go = str(tmp_path_factory.mktemp("go") / "go")
    actor = Counter.options(**BAKED).remote()
    careful = Counter.options(max_task_retries=1, **BAKED).remote()
    pids = fw.get([actor.pid.remote(), careful.pid.remote()])
    under_way = [actor.wait_for.remote(go), careful.wait_for.remote(go)]
    runtime = current()
    connections = [
        client.connection for client in runtime.actors._clients.values() if client.connection is not None
    ]
    assert len(connections) == 2
    for connection in connections:
        runtime.post(connection.close)
    wait_until(lambda: all(connection.closed for connection in connections))
    behind = actor.add.remote()
    Path(go).touch()
    with pytest.raises(ActorUnavailableError, match="the connection to its actor was lost"):
        fw.get(under_way[0], timeout=20)
    assert fw.get(under_way[1], timeout=20) == "done"  # made again: it may
    assert fw.get(behind, timeout=20) == 1
    assert fw.get([actor.pid.remote(), careful.pid.remote()], timeout=20) == pids
