"""Tasks on several nodes: where they go, what they wait for, and what becomes of them when a node dies."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import framework as fw
from framework._wire import messages as m
from framework.cluster_utils import Cluster
from framework.util.scheduling_strategies import (
    DoesNotExist,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)
from framework.util.state import why_pending
from support.leaks import wait_until

pytestmark = pytest.mark.slow


@fw.remote
def where() -> str:
    return fw.get_runtime_context().get_node_id()


@fw.remote
def meet(directory: str, number: int, count: int) -> str:
    """Where it runs, when all `count` of them run at the same time."""
    Path(directory, str(number)).touch()
    wait_until(lambda: len(os.listdir(directory)) >= count, 20, "the others")
    return fw.get_runtime_context().get_node_id()


@fw.remote
def hold(path: str) -> str:
    """Runs until the file is there."""
    wait_until(lambda: os.path.exists(path), 30, path)
    return fw.get_runtime_context().get_node_id()


class World:
    """A head with 2 CPUs, nodes B (2 CPUs, zone b) and C (1 CPU, an oven, zone c)."""

    def __init__(self, root: Path) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "labels": {"zone": "a"}})
        self.b = self.cluster.add_node(num_cpus=2, labels={"zone": "b"})
        self.c = self.cluster.add_node(num_cpus=1, resources={"oven": 2}, labels={"zone": "c", "disk": "ssd"})
        self.cluster.wait_for_nodes()
        fw.init(address=self.cluster.address, log_to_driver=False)
        self.root = root
        self.files = 0
        (head,) = [node for node in self.cluster.list_all_nodes() if node.is_head]
        self.a = head

    def path(self) -> str:
        self.files += 1
        return str(self.root / f"file{self.files}")

    def directory(self) -> str:
        path = self.path()
        os.mkdir(path)
        return path

    def idle(self) -> None:
        """All is free again."""
        wait_until(lambda: fw.available_resources().get("CPU") == 5, 10, "all CPUs")


@pytest.fixture(scope="module")
def world(session_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("w"))
    yield world
    fw.shutdown()
    world.cluster.shutdown()


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> None:
    if "world" in request.fixturenames:
        request.getfixturevalue("world").idle()


def test_what_does_not_fit_here_goes_elsewhere(world: World) -> None:
    directory = world.directory()
    nodes = fw.get([meet.remote(directory, n, 5) for n in range(5)])
    assert Counter(nodes) == {world.a.node_id: 2, world.b.node_id: 2, world.c.node_id: 1}


def test_little_work_stays_here(world: World) -> None:
    assert {fw.get(where.remote()) for _ in range(5)} == {world.a.node_id}


def test_custom_resources_are_found(world: World) -> None:
    baking = where.options(num_cpus=0, resources={"oven": 1})
    assert set(fw.get([baking.remote() for _ in range(6)])) == {world.c.node_id}


def test_spread(world: World) -> None:
    spread = where.options(scheduling_strategy="SPREAD")
    one_after_another = [fw.get(spread.remote()) for _ in range(6)]
    assert Counter(one_after_another) == {n.node_id: 2 for n in (world.a, world.b, world.c)}
    wide = meet.options(scheduling_strategy="SPREAD")

    def nodes() -> set[str]:
        directory = world.directory()
        return set(fw.get([wide.remote(directory, n, 3) for n in range(3)]))

    wait_until(
        lambda: len(nodes()) == 3, 10, "all nodes at the same time"
    )  # (as soon as it is seen to be idle)


@pytest.mark.parametrize("soft", [False, True])
def test_affinity(world: World, soft: bool) -> None:
    for node in (world.a, world.b, world.c):
        there = where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft))
        assert set(fw.get([there.remote() for _ in range(4)])) == {node.node_id}


def test_affinity_to_a_node_that_is_none(world: World) -> None:
    nobody = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    with pytest.raises(fw.exceptions.TaskUnschedulableError, match="abab"):
        fw.get(where.options(scheduling_strategy=nobody).remote(), timeout=20)
    nobody = NodeAffinitySchedulingStrategy("ab" * 28, soft=True)
    assert fw.get(where.options(scheduling_strategy=nobody).remote(), timeout=20)


def test_actors_with_affinity(world: World) -> None:
    @fw.remote
    class Where:
        def node(self) -> str:
            return fw.get_runtime_context().get_node_id()

    there = NodeAffinitySchedulingStrategy(world.b.node_id, soft=False)
    actor = Where.options(scheduling_strategy=there).remote()
    assert fw.get(actor.node.remote(), timeout=20) == world.b.node_id
    nobody = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    with pytest.raises(fw.exceptions.ActorUnschedulableError, match="abab"):
        fw.get(Where.options(scheduling_strategy=nobody).remote().node.remote(), timeout=20)


def test_labels(world: World) -> None:
    def run(**options: Any) -> set[str]:
        return set(fw.get([where.options(**options).remote() for _ in range(3)], timeout=20))

    b, c = world.b.node_id, world.c.node_id
    assert run(label_selector={"zone": "b"}) == {b}
    assert run(label_selector={"zone": "in(c, x)", "disk": "ssd"}) == {c}
    assert run(label_selector={"zone": "!in(a, c)"}) == {b}
    assert run(scheduling_strategy=NodeLabelSchedulingStrategy({"zone": In("c")})) == {c}
    assert run(
        scheduling_strategy=NodeLabelSchedulingStrategy({"zone": NotIn("a"), "disk": DoesNotExist()})
    ) == {b}
    world.idle()  # what is only wished for does not make anything wait
    soft = NodeLabelSchedulingStrategy({}, soft={"zone": In("c")})
    assert fw.get(where.options(scheduling_strategy=soft).remote()) == c
    assert run(scheduling_strategy=NodeLabelSchedulingStrategy({}, soft={"zone": In("nowhere")}))


def test_actors_have_labels_too(world: World) -> None:
    @fw.remote
    class Where:
        def node(self) -> str:
            return fw.get_runtime_context().get_node_id()

    actor = Where.options(label_selector={"zone": "c"}).remote()
    assert fw.get(actor.node.remote()) == world.c.node_id
    del actor


def test_a_task_goes_to_its_data(world: World) -> None:
    @fw.remote
    def make(size: int) -> bytes:
        return bytes(size)

    @fw.remote
    def look(data: bytes) -> tuple[str, int]:
        return fw.get_runtime_context().get_node_id(), len(data)

    there = NodeAffinitySchedulingStrategy(world.b.node_id, soft=False)
    large = make.options(scheduling_strategy=there).remote(4 << 20)
    small = make.options(scheduling_strategy=there).remote(200_000)
    fw.wait([large, small], num_returns=2)
    assert fw.get(look.remote(large)) == (world.b.node_id, 4 << 20)
    assert fw.get(look.remote(small)) == (world.a.node_id, 200_000)


def test_nested_tasks_on_every_node(world: World) -> None:
    @fw.remote
    def child(n: int) -> int:
        return n + 1

    @fw.remote
    def parent(directory: str, n: int) -> int:
        Path(directory, str(n)).touch()
        wait_until(lambda: len(os.listdir(directory)) >= 5, 20, "the others")  # every CPU is taken now
        return sum(fw.get([child.remote(n) for _ in range(3)]))

    directory = world.directory()
    assert fw.get([parent.remote(directory, n) for n in range(5)], timeout=60) == [
        3 * n + 3 for n in range(5)
    ]


def test_nested_deep(world: World) -> None:
    @fw.remote(scheduling_strategy="SPREAD")
    def down(depth: int) -> list[str]:
        here = [fw.get_runtime_context().get_node_id()]
        return here if not depth else here + fw.get(down.remote(depth - 1))

    assert len(set(fw.get(down.remote(12), timeout=60))) == 3


def test_a_tree_of_tasks(world: World) -> None:
    @fw.remote
    def tree(depth: int) -> int:
        return 1 if not depth else sum(fw.get([tree.remote(depth - 1) for _ in range(3)]))

    assert fw.get(tree.remote(4), timeout=60) == 81


def test_many_short_tasks(world: World) -> None:
    @fw.remote
    def add(a: int, b: int) -> int:
        return a + b

    assert sum(fw.get([add.remote(n, 1) for n in range(3000)])) == sum(range(3001))


def test_why_it_waits(world: World) -> None:
    path = world.path()
    holds = [hold.remote(path) for _ in range(5)]
    wait_until(lambda: "runs on" in why_pending(holds[4]), 10, "the last to run")
    assert "tcp:" in why_pending(holds[4])
    more = where.remote()
    text = why_pending(more)
    assert "needs {CPU: 1}" in text and "free" in text and world.b.node_id[:8] in text, text

    @fw.remote
    def use(x: Any) -> Any:
        return x

    later = use.remote(more)
    text = why_pending(later)
    assert more.hex() in text and "where()" in text and "waits for a worker" in text
    Path(path).touch()
    fw.get([*holds, later])
    assert "ready" in why_pending(later)


def test_what_nobody_can_do_waits_for_somebody_who_can(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "framework"):
        impossible = where.options(resources={"rocket": 1}).remote()
        wait_until(lambda: "rocket" in caplog.text, 10, "the warning")
        assert not fw.wait([impossible], timeout=0.2)[0]
    assert caplog.text.count("rocket: 1}") == 1
    assert "no node can run it" in why_pending(impossible) and "rocket" in why_pending(impossible)
    node = world.cluster.add_node(num_cpus=1, resources={"rocket": 1})
    try:
        assert fw.get(impossible, timeout=20) == node.node_id
    finally:
        world.cluster.remove_node(node)


def test_a_high_priority_goes_first(world: World) -> None:
    order = world.path()

    @fw.remote(resources={"oven": 2}, num_cpus=0)
    def note(name: str) -> None:
        with open(order, "a") as file:
            file.write(f"{name}\n")
        time.sleep(0.02)

    gate = world.path()
    first = hold.options(resources={"oven": 2}, num_cpus=0).remote(gate)
    wait_until(lambda: "runs on" in why_pending(first), 10, "it to run")
    low = [note.remote("low") for _ in range(5)]
    high = [note.options(priority=5).remote("high") for _ in range(5)]
    wait_until(lambda: "waits for a worker" in why_pending(high[0]), 10, "all to wait")
    Path(gate).touch()
    fw.get([first, *low, *high])
    lines = Path(order).read_text().split()
    assert lines == ["high"] * 5 + ["low"] * 5


def test_a_high_priority_does_not_wait_for_a_long_queue(world: World) -> None:
    @fw.remote(resources={"oven": 2}, num_cpus=0)
    def short() -> None:
        time.sleep(0.02)

    queue = [short.remote() for _ in range(300)]  # one worker would be busy with them for six seconds
    wait_until(lambda: fw.wait(queue[:1], timeout=0)[0], 10, "the first")
    fw.get(short.options(priority=1).remote(), timeout=20)
    assert not fw.wait(queue[-1:], timeout=0)[0], "the queue is not over"
    for ref in queue:
        fw.cancel(ref)


def test_a_worker_dies_elsewhere(world: World) -> None:
    there = NodeAffinitySchedulingStrategy(world.b.node_id, soft=False)

    @fw.remote(scheduling_strategy=there, max_retries=0)
    def die() -> None:
        os._exit(7)

    with pytest.raises(fw.exceptions.WorkerCrashedError, match="7"):
        fw.get(die.remote(), timeout=20)

    path = world.path()

    @fw.remote(scheduling_strategy=there)
    def once() -> str:
        if not os.path.exists(path):
            Path(path).touch()
            os._exit(1)
        return fw.get_runtime_context().get_node_id()

    assert fw.get(once.remote(), timeout=20) == world.b.node_id


def test_cancelled_by_force_elsewhere(world: World) -> None:
    there = NodeAffinitySchedulingStrategy(world.b.node_id, soft=False)
    ref = hold.options(scheduling_strategy=there).remote(world.path())
    wait_until(lambda: "runs on" in why_pending(ref), 10, "it to run")
    fw.cancel(ref, force=True)
    with pytest.raises(fw.exceptions.TaskCancelledError):
        fw.get(ref, timeout=20)


def _started(directory: str) -> Callable[[], bool]:
    return lambda: bool(os.listdir(directory))


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_node_of_a_task_dies(world: World, how: str) -> None:
    doomed = world.cluster.add_node(num_cpus=1)
    doomed_id = doomed.node_id
    directory = world.directory()
    there = NodeAffinitySchedulingStrategy(doomed_id, soft=True)

    @fw.remote(scheduling_strategy=there)
    def survive(n: int) -> str:
        here = fw.get_runtime_context().get_node_id()
        Path(directory, f"{here}-{n}").touch()
        if here == doomed_id:
            time.sleep(60)
        return here

    refs = [survive.remote(0), survive.options(max_retries=0).remote(1)]
    wait_until(_started(directory), 20, "it to start")
    begun = os.listdir(directory)
    if how == "kill":
        world.cluster.remove_node(doomed, allow_graceful=False)
    else:
        doomed.stop()
    for n, ref in enumerate(refs):
        if n and any(name.endswith("-1") for name in begun):
            with pytest.raises(fw.exceptions.WorkerCrashedError, match=doomed_id):
                fw.get(ref, timeout=30)
        else:
            assert fw.get(ref, timeout=30) != doomed_id, "what had not begun costs no retry"
    hard = NodeAffinitySchedulingStrategy(doomed_id, soft=False)
    with pytest.raises(fw.exceptions.TaskUnschedulableError, match="dead"):
        fw.get(where.options(scheduling_strategy=hard).remote(), timeout=20)
    if how == "stop":
        world.cluster.remove_node(doomed, allow_graceful=False)


def test_a_node_that_is_drained_takes_nothing_new(world: World) -> None:
    leaving = world.cluster.add_node(num_cpus=3)
    there = NodeAffinitySchedulingStrategy(leaving.node_id, soft=False)
    gate = world.path()
    last = hold.options(scheduling_strategy=there).remote(gate)
    wait_until(lambda: "runs on" in why_pending(last), 20, "it to run")
    drained: list[Any] = []

    def drain() -> None:
        with world.cluster._client() as head:  # (`remove_node` has less patience)
            head.timeout = 60
            drained.append(head.call(m.NODE_DRAIN, bytes.fromhex(leaving.node_id), "maintenance"))

    leaver = threading.Thread(target=drain)
    leaver.start()
    wait_until(lambda: _refused(there), 10, "the news that the node is drained")
    directory = world.directory()
    nodes = fw.get([meet.remote(directory, n, 5) for n in range(5)], timeout=30)
    assert leaving.node_id not in nodes
    assert not drained
    Path(gate).touch()
    assert fw.get(last, timeout=20) == leaving.node_id, "it may finish"
    leaver.join()
    assert drained[0]["drained"]
    world.cluster.remove_node(leaving)


def _refused(there: NodeAffinitySchedulingStrategy) -> bool:
    try:
        fw.get(where.options(scheduling_strategy=there).remote(), timeout=20)
    except fw.exceptions.TaskUnschedulableError as error:
        assert "drained" in str(error)
        return True
    return False


def test_the_owner_of_tasks_elsewhere_dies(world: World) -> None:
    directory = world.directory()

    @fw.remote
    def child() -> None:
        Path(directory, str(os.getpid())).touch()
        time.sleep(60)

    @fw.remote(max_retries=0)
    def parent(node: str) -> None:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        ref = child.options(scheduling_strategy=there).remote()
        wait_until(_started(directory), 20, "the child")
        del ref
        os._exit(1)

    with pytest.raises(fw.exceptions.WorkerCrashedError):
        fw.get(parent.remote(world.b.node_id), timeout=30)
    (pid,) = os.listdir(directory)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10, "the end of the child")


@pytest.mark.parametrize("same_node", [True, False])
def test_two_jobs_share_what_there_is(world: World, same_node: bool) -> None:
    """A second driver does not wait for the long queue of the first, also if no node sees both queues."""
    program = """
import sys, time
import framework as fw

@fw.remote
def short():
    time.sleep(0.02)

fw.init(address=sys.argv[1], log_to_driver=False)
begin = time.monotonic()
fw.get([short.options(label_selector={"zone": "b"}).remote() for _ in range(50)])
print(time.monotonic() - begin)
"""

    @fw.remote
    def short() -> None:
        time.sleep(0.02)

    queue = [short.remote() for _ in range(5000)]  # twenty seconds for five CPUs
    wait_until(lambda: fw.wait(queue[:1], timeout=0)[0], 10, "the first")
    address = world.cluster.address if same_node else world.c.session_dir
    done = subprocess.run(
        [sys.executable, "-c", program, address], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    print(f"fifty tasks of 20 ms beside a queue of {len(queue)}: {float(done.stdout):.2f} s")
    over = len(fw.wait(queue, num_returns=len(queue), timeout=0)[0])
    for ref in queue:
        fw.cancel(ref)
    assert over < 0.75 * len(queue), f"they have waited for {over} of {len(queue)}"


def test_a_head_without_cpus(session_root: Path, world: World) -> None:
    """(It takes the place of the other session for a moment.)"""
    fw.shutdown()
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        fw.init(address=cluster.address, log_to_driver=False)
        waiting = where.remote()
        assert not fw.wait([waiting], timeout=0.2)[0]
        node = cluster.add_node(num_cpus=1)
        assert fw.get(waiting, timeout=20) == node.node_id
        assert fw.get([where.remote() for _ in range(20)]) == [node.node_id] * 20
        fw.shutdown()
    fw.init(address=world.cluster.address, log_to_driver=False)


@fw.remote(num_cpus=1, max_calls=1)
def put_once(value: str) -> tuple[int, list[Any]]:
    return os.getpid(), [fw.put(value)]


def test_a_used_up_worker_elsewhere_stays_for_what_it_owns(world: World) -> None:
    there = put_once.options(scheduling_strategy=NodeAffinitySchedulingStrategy(world.b.node_id, soft=False))
    found = fw.get([there.remote(f"value {n}") for n in range(5)], timeout=30)
    world.idle()  # although none of these workers has ended
    assert len({pid for pid, _ in found}) == 5
    assert [fw.get(refs[0], timeout=10) for _, refs in found] == [f"value {n}" for n in range(5)]
    assert all(psutil.pid_exists(pid) for pid, _ in found)
    pids = [pid for pid, _ in found]
    del found
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 20, "they end when nobody needs them")
