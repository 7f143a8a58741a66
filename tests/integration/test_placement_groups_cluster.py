"""Placement groups on several nodes: strategies, deaths of nodes, restarts of the head."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.cluster_utils import Cluster, ClusterNode
from framework.exceptions import ActorPlacementGroupRemoved, TaskPlacementGroupRemoved
from framework.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from framework.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NODE_DEATH = 10.0  #: seconds within which a death is noticed and dealt with, with much to spare


@pytest.fixture(scope="module")
def cluster(session_root: Path) -> Iterator[Cluster]:
    """A head without CPUs and two nodes with two each; tests bring it back to that."""
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=2, resources={"here": 1}, labels={"kind": "plain"})
        cluster.wait_for_nodes()
        cluster.connect(log_to_driver=False)
        yield cluster
        fw.shutdown()


@pytest.fixture(autouse=True)
def as_it_was(cluster: Cluster) -> Iterator[None]:
    yield
    for text, row in placement_group_table().items():
        if row["state"] != "REMOVED":
            remove_placement_group(by_hex(text))
    while len(cluster.worker_nodes) > 2:
        cluster.remove_node(cluster.worker_nodes[-1], allow_graceful=False)
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=2, resources={"here": 1}, labels={"kind": "plain"})
    cluster.wait_for_nodes()
    wait_until(all_free, NODE_DEATH, "all resources to be free again")


def by_hex(text: str) -> PlacementGroup:
    from framework._base.ids import PlacementGroupID

    return PlacementGroup(PlacementGroupID.from_hex(text))


def all_free() -> bool:
    free = fw.available_resources()
    return free.get("CPU") == 4.0 and not any("_group_" in name for name in free)


def within(group: PlacementGroup, index: int = -1) -> Any:
    return PlacementGroupSchedulingStrategy(group, index)


def state(group: PlacementGroup) -> str:
    return str(placement_group_table(group)["state"])


def nodes_of(group: PlacementGroup) -> list[str]:
    return list(placement_group_table(group)["bundles_to_node_id"].values())


def alive(node: ClusterNode) -> bool:
    return any(row["NodeID"] == node.node_id and row["Alive"] for row in fw.nodes())


def node_named(cluster: Cluster, node_id: str) -> ClusterNode:
    return next(node for node in cluster.worker_nodes if node.node_id == node_id)


@fw.remote(num_cpus=1)
def where() -> str:
    return fw.get_runtime_context().get_node_id()


@fw.remote(num_cpus=1, max_restarts=5, max_task_retries=-1)
class Actor:
    def where(self) -> str:
        return fw.get_runtime_context().get_node_id()


@fw.remote(num_cpus=1)
def hold(path: str) -> str:
    Path(path).touch()
    time.sleep(60)
    return "done"


@pytest.mark.parametrize(
    ("strategy", "nodes"), [("PACK", 1), ("STRICT_PACK", 1), ("SPREAD", 2), ("STRICT_SPREAD", 2)]
)
def test_strategies(cluster: Cluster, strategy: str, nodes: int) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy=strategy)
    assert group.wait(10)
    placed = nodes_of(group)
    assert len(set(placed)) == nodes
    found = fw.get([where.options(scheduling_strategy=within(group, i)).remote() for i in (0, 1)], timeout=20)
    assert found == placed
    actors = [Actor.options(scheduling_strategy=within(group, i)).remote() for i in (0, 1)]
    assert fw.get([actor.where.remote() for actor in actors], timeout=20) == placed


def test_strict_strategies_wait_where_the_others_make_do(cluster: Cluster) -> None:
    three = [{"CPU": 1}] * 3
    for strategy in ("STRICT_PACK", "STRICT_SPREAD"):
        group = placement_group(three, strategy=strategy)
        assert not group.wait(0.3)
        assert "no placement is possible" in placement_group_table(group)["stats"]["scheduling_state"]
        remove_placement_group(group)
    for strategy in ("PACK", "SPREAD"):
        group = placement_group(three, strategy=strategy)
        assert group.wait(10)
        assert len(set(nodes_of(group))) == 2
        remove_placement_group(group)
        wait_until(all_free, 5, "its resources")


def test_a_new_node_makes_a_waiting_group_possible(cluster: Cluster) -> None:
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    ref = where.options(scheduling_strategy=within(group, 2)).remote()
    assert not group.wait(0.2)
    cluster.add_node(num_cpus=1)
    assert group.wait(20)
    assert len(set(nodes_of(group))) == 3
    assert fw.get(ref, timeout=20) == nodes_of(group)[2]


def test_nothing_is_held_for_a_group_that_fits_only_in_part(cluster: Cluster) -> None:
    blocker = placement_group([{"CPU": 2}])
    assert blocker.wait(10)
    group = placement_group([{"CPU": 2}, {"CPU": 1}])
    assert not group.wait(0.3)
    assert fw.available_resources().get("CPU") == 2.0
    # The node that is free serves others meanwhile.
    assert fw.get(where.options(num_cpus=2).remote(), timeout=20) not in nodes_of(blocker)
    remove_placement_group(blocker)
    assert group.wait(10)


def test_bundles_ask_for_labels(cluster: Cluster) -> None:
    special = cluster.add_node(num_cpus=1, labels={"kind": "special"})
    group = placement_group(
        [{"CPU": 1}, {"CPU": 1}], bundle_label_selector=[{"kind": "special"}, {"kind": "!special"}]
    )
    assert group.wait(10)
    first, second = nodes_of(group)
    assert first == special.node_id
    assert second != special.node_id


def test_bundles_of_a_node_that_dies_are_placed_anew(cluster: Cluster) -> None:
    group = placement_group([{"CPU": 2}, {"CPU": 1}], strategy="STRICT_SPREAD")
    assert group.wait(10)
    first, second = nodes_of(group)
    lost = Actor.options(scheduling_strategy=within(group, 0)).remote()
    stays = Actor.options(scheduling_strategy=within(group, 1)).remote()
    assert fw.get([lost.where.remote(), stays.where.remote()], timeout=20) == [first, second]
    cluster.remove_node(node_named(cluster, first), allow_graceful=False)
    wait_until(lambda: state(group) == "RESCHEDULING", NODE_DEATH, "the death to be noticed")
    assert nodes_of(group) == ["", second]
    # What is left of it goes on; what needs the lost bundle waits.
    assert fw.get(stays.where.remote(), timeout=10) == second
    waits = where.options(scheduling_strategy=within(group, 0)).remote()
    call = lost.where.remote()
    assert fw.wait([waits, call], timeout=0.3)[0] == []
    new = cluster.add_node(num_cpus=2)
    assert fw.get(group.ready(), timeout=20) == group
    assert nodes_of(group) == [new.node_id, second]
    assert fw.get([waits, call], timeout=20) == [new.node_id, new.node_id]
    assert fw.get(stays.where.remote(), timeout=10) == second


def test_tasks_are_retried_in_the_new_place(cluster: Cluster, tmp_path: Path) -> None:
    @fw.remote(num_cpus=1)
    def once_slow(path: str) -> str:
        node = fw.get_runtime_context().get_node_id()
        if not os.path.exists(path):
            Path(path).write_text(node)
            time.sleep(60)
        return str(node)

    group = placement_group([{"CPU": 2}])
    path = tmp_path / "begun"
    ref = once_slow.options(scheduling_strategy=within(group)).remote(str(path))
    wait_until(lambda: path.exists() and path.read_text() != "", 20, "the task")
    first = path.read_text()
    cluster.remove_node(node_named(cluster, first), allow_graceful=False)
    assert fw.get(ref, timeout=30) == nodes_of(group)[0] != first


def test_a_node_that_falls_silent_in_the_middle_of_a_reservation(cluster: Cluster) -> None:
    """Its part is given up with all others, and the group is placed as a whole elsewhere."""
    silent, other = cluster.worker_nodes
    silent.stop()
    try:
        group = placement_group([{"CPU": 2}, {"CPU": 2}], strategy="STRICT_SPREAD")
        assert not group.wait(0.5)
        assert state(group) == "PENDING"
        # Nobody can be in it, although the other node has its bundle reserved.
        ref = where.options(scheduling_strategy=within(group, 0)).remote()
        assert fw.wait([ref], timeout=0.2)[0] == []
        wait_until(lambda: not alive(silent), NODE_DEATH, "the verdict")
        wait_until(lambda: fw.available_resources().get("CPU") == 2.0, 5, "the rollback at the other")
        assert state(group) == "PENDING"
    finally:
        cluster.remove_node(silent, allow_graceful=False)
    new = cluster.add_node(num_cpus=2)
    assert group.wait(20)
    assert set(nodes_of(group)) == {other.node_id, new.node_id}
    assert fw.get(ref, timeout=20) == nodes_of(group)[0]


def test_removal_ends_what_is_in_it_on_all_nodes(cluster: Cluster, tmp_path: Path) -> None:
    group = placement_group([{"CPU": 2}, {"CPU": 2}], strategy="STRICT_SPREAD")
    tasks = [
        hold.options(scheduling_strategy=within(group, i)).remote(str(tmp_path / str(i))) for i in range(2)
    ]
    actors = [Actor.options(scheduling_strategy=within(group, i)).remote() for i in range(2)]
    fw.get([actor.where.remote() for actor in actors], timeout=20)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 20, "the tasks")
    remove_placement_group(group)
    for task in (*tasks, where.options(scheduling_strategy=within(group)).remote()):
        with pytest.raises(TaskPlacementGroupRemoved, match=group.id.hex()):
            fw.get(task, timeout=10)
    for actor in actors:
        with pytest.raises(ActorPlacementGroupRemoved, match=group.id.hex()):
            fw.get(actor.where.remote(), timeout=10)
    wait_until(all_free, 10, "the resources of both nodes")


def test_groups_outlive_the_head(cluster: Cluster) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD", name="kept")
    waiting = placement_group([{"CPU": 100}], name="waiting")
    assert group.wait(10)
    placed = nodes_of(group)
    actor = Actor.options(scheduling_strategy=within(group, 1)).remote()
    assert fw.get(actor.where.remote(), timeout=20) == placed[1]
    cluster.kill_head()
    assert fw.get(actor.where.remote(), timeout=20) == placed[1]
    cluster.restart_head()
    assert get_placement_group("kept") == group
    assert state(group) == "CREATED"
    assert nodes_of(group) == placed
    assert fw.get(where.options(scheduling_strategy=within(group, 0)).remote(), timeout=20) == placed[0]
    assert state(waiting) == "PENDING"
    remove_placement_group(get_placement_group("waiting"))
    remove_placement_group(group)


def test_a_group_that_is_removed_while_its_node_has_no_head(cluster: Cluster) -> None:
    group = placement_group([{"CPU": 2}, {"CPU": 2}], strategy="STRICT_SPREAD")
    assert group.wait(10)
    node = node_named(cluster, nodes_of(group)[0])
    node.stop()
    remove_placement_group(group)
    node.cont()
    wait_until(all_free, NODE_DEATH, "what it held")


DRIVER = """
import framework as fw
from framework.util.placement_group import placement_group
fw.init(address={address!r}, namespace="ours", log_to_driver=False)
for name, lifetime in (("passing", None), ("lasting", "detached")):
    assert placement_group([{{"CPU": 1}}], name=name, lifetime=lifetime).wait(10)
print("made", flush=True)
"""


def test_groups_end_with_their_job_unless_detached(cluster: Cluster) -> None:
    environ = {**os.environ, "FRAMEWORK_TOKEN": cluster.token}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.format(address=cluster.address)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["made"], done.stderr
    states = {row["name"]: row["state"] for row in placement_group_table().values()}
    wait_until(
        lambda: {r["name"]: r["state"] for r in placement_group_table().values()}.get("passing") == "REMOVED",
        NODE_DEATH,
        "the end of what belonged to the job",
    )
    assert states["lasting"] == "CREATED"


def test_groups_that_are_made_while_the_head_dies(cluster: Cluster) -> None:
    groups = [
        placement_group([{"CPU": 0.05}, {"CPU": 0.05}], strategy="STRICT_SPREAD", name=f"g{n}" * (n % 2))
        for n in range(20)
    ]
    refs = [group.ready() for group in groups]
    fw.get(refs[0], timeout=10)
    cluster.kill_head()
    refs += [placement_group([{"CPU": 0.05}]).ready() for _ in range(5)]
    cluster.restart_head()
    assert len(fw.get(refs, timeout=30)) == 25
    for group in groups:
        assert len(set(nodes_of(group))) == 2


def test_nothing_is_lost_or_counted_twice_while_nodes_die(cluster: Cluster) -> None:
    """Groups come and go, nodes too; in the end every group is there, and the ledgers say so."""
    for _ in range(2):
        groups = [placement_group([{"CPU": 0.25}, {"CPU": 0.25}], strategy="SPREAD") for _ in range(6)]
        cluster.remove_node(cluster.worker_nodes[0], allow_graceful=False)
        groups += [placement_group([{"CPU": 0.25}]) for _ in range(2)]
        for group in groups[:2]:
            remove_placement_group(group)
        cluster.add_node(num_cpus=2, resources={"here": 1}, labels={"kind": "plain"})
        cluster.wait_for_nodes()
        living = groups[2:]
        wait_until(lambda living=living: all(state(g) == "CREATED" for g in living), 30, "all groups")
        here = {node.node_id for node in cluster.worker_nodes}
        assert all(set(nodes_of(group)) <= here for group in living)
        free = 4.0 - sum(0.25 * group.bundle_count for group in living)
        wait_until(lambda free=free: fw.available_resources()["CPU"] == free, 10, "the ledgers")
        for group in living:
            fw.get(where.options(num_cpus=0.25, scheduling_strategy=within(group)).remote(), timeout=20)
            remove_placement_group(group)
        wait_until(all_free, 10, "everything to be free")
