"""Objects whose node dies: other copies, lineage, and what is said of what is lost."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework import exceptions
from framework.cluster_utils import Cluster, ClusterNode
from support.leaks import wait_until
from support.stores import objects, wait_until_empty

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20


class Nodes:
    """A cluster: the head's node, where the driver is, and others by name, which may die and be replaced."""

    def __init__(self, names: str) -> None:
        self.cluster = Cluster()
        self.head = self.cluster.add_node(num_cpus=1, resources={"head": 1})
        fw.init(address=self.cluster.address, log_to_driver=False)
        self.named: dict[str, ClusterNode] = {}
        for name in names:
            self.add(name)
        self.cluster.wait_for_nodes()

    def add(self, name: str) -> None:
        self.named[name] = self.cluster.add_node(num_cpus=2, resources={name: 1})

    def kill(self, name: str) -> None:
        self.cluster.remove_node(self.named.pop(name), allow_graceful=False)

    def replace(self, name: str) -> None:
        self.kill(name)
        self.add(name)

    def __getitem__(self, name: str) -> ClusterNode:
        return self.named[name]


@pytest.fixture
def nodes(session_root: object, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    found = Nodes(getattr(request, "param", "ab"))
    try:
        yield found
        gc.collect()
        wait_until_empty(found.cluster)
    finally:
        fw.shutdown()
        found.cluster.shutdown()


def on(name: str) -> dict[str, Any]:
    """Options: on the node with this name."""
    return {"resources": {name: 0.001}}


@fw.remote(num_cpus=0)
def make(mib: int, value: int = 1) -> Any:
    return np.full(mib * MIB, value, np.uint8)


@fw.remote(num_cpus=0)
def total(*arrays: Any) -> int:
    return sum(int(array.sum()) for array in arrays)


@fw.remote(num_cpus=0)
def double(array: Any) -> Any:
    return array * np.uint8(2)


@fw.remote(num_cpus=0)
def add(one: Any, other: Any) -> Any:
    return one + other


def made(*refs: Any) -> None:
    fw.wait(list(refs), num_returns=len(refs), fetch_local=False, timeout=20)


# ---- other copies --------------------------------------------------------------------------------------


def test_another_copy_takes_the_place_of_the_primary(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0, max_retries=0)
    def once() -> Any:
        return np.ones(MIB, np.uint8)

    ref = once.options(**on("a")).remote()
    assert fw.get(total.options(**on("b")).remote(ref)) == MIB
    nodes.kill("a")
    assert int(fw.get(ref, timeout=20).sum()) == MIB
    assert objects(nodes["b"]) == 1


def test_replicas_survive(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    class Owner:
        def put(self) -> list[Any]:
            return [fw.put(np.full(MIB, 4, np.uint8), replicas=2)]

    owner = Owner.options(**on("head")).remote()
    (ref,) = fw.get(owner.put.remote())
    alone = fw.put(np.zeros(MIB, np.uint8), replicas=3)
    nodes.kill("a")
    nodes.kill("b")
    assert fw.get(alone).sum() == 0 and fw.get(ref)[0] == 4
    fw.kill(owner)


def test_what_dies_in_the_middle_of_a_transfer(nodes: Nodes) -> None:
    """No half block stays behind, and the task that made it runs again."""
    ref = make.options(max_retries=2, **on("a")).remote(120, 3)
    made(ref)
    fw.wait([ref], timeout=0)
    nodes.replace("a")
    assert int(fw.get(ref, timeout=30)[-1]) == 3
    fw.wait([ref], timeout=0)
    del ref
    wait_until_empty(nodes.cluster)


# ---- lineage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reconstruction", [False, True])
def test_basic_reconstruction(nodes: Nodes, reconstruction: bool) -> None:
    """As Ray's test of this name."""

    @fw.remote(num_cpus=0, max_retries=1 if reconstruction else 0)
    def create_large_object() -> Any:
        return np.zeros(10**7, dtype=np.uint8)

    @fw.remote
    def process_large_object(x: Any) -> None:
        return

    ref = create_large_object.options(**on("a")).remote()
    fw.get(process_large_object.options(**on("a")).remote(ref))
    nodes.kill("b")
    nodes.replace("a")
    there = process_large_object.options(**on("a"))
    if reconstruction:
        fw.get(there.remote(ref))
    else:
        with pytest.raises(exceptions.RayTaskError):
            fw.get(there.remote(ref))
        with pytest.raises(exceptions.ObjectLostError):
            fw.get(ref)
    nodes.replace("a")
    error = exceptions.ObjectReconstructionFailedMaxAttemptsExceededError
    with pytest.raises(error if reconstruction else exceptions.ObjectLostError):
        fw.get(ref)


def test_chains_and_diamonds(nodes: Nodes) -> None:
    first = make.options(**on("a")).remote(1, 1)
    left, right = double.options(**on("a")).remote(first), double.options(**on("a")).remote(first)
    last = add.options(**on("a")).remote(left, right)
    chain = last
    for _ in range(3):
        chain = double.options(**on("a")).remote(chain)
    made(chain)
    del first, left, right, last
    nodes.replace("a")
    assert int(fw.get(chain, timeout=40)[0]) == 32


def test_several_returns_lost_together_are_made_by_one_run(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def add(self) -> int:
            self.count += 1
            return self.count

    counter = Counter.options(**on("head")).remote()

    @fw.remote(num_cpus=0, num_returns=3)
    def three() -> Any:
        run = fw.get(counter.add.remote())
        return [np.full(MIB, run, np.uint8) for _ in range(3)]

    refs = three.options(**on("a")).remote()
    made(*refs)
    nodes.replace("a")
    assert [int(array[0]) for array in fw.get(refs, timeout=30)] == [2, 2, 2]
    assert fw.get(counter.add.remote()) == 3


def test_items_of_a_generator_are_made_again(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0, max_retries=2)
    def count(n: int) -> Iterator[Any]:
        for i in range(n):
            yield np.full(MIB, i, np.uint8)

    refs = list(count.options(**on("a")).remote(4))
    made(*refs)
    nodes.replace("a")
    assert [int(array[0]) for array in fw.get(refs, timeout=30)] == [0, 1, 2, 3]


@pytest.mark.parametrize("retries", [0, 2])
def test_results_of_an_actor(nodes: Nodes, retries: int) -> None:
    """The actor lives, its result died with the node to which its only copy had been handed."""

    @fw.remote(num_cpus=0, max_restarts=2, max_task_retries=retries)
    class Maker:
        def make(self) -> Any:
            return np.full(MIB, 6, np.uint8)

    maker = Maker.options(**on("a")).remote()
    ref = maker.make.remote()
    made(ref)
    nodes.replace("a")
    if retries:
        assert int(fw.get(ref, timeout=30)[0]) == 6
    else:
        with pytest.raises(exceptions.ObjectLostError):
            fw.get(ref, timeout=30)
    fw.kill(maker)


def test_what_was_put_there_is_lost_with_its_owner(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    class Owner:
        def put(self) -> list[Any]:
            return [fw.put(np.ones(MIB, np.uint8))]

    owner = Owner.options(**on("a")).remote()
    (ref,) = fw.get(owner.put.remote())
    kept = fw.detach(ref)
    nodes.kill("a")

    def lost() -> bool:
        """Until its end is known here, the copy that `detach` has brought is given out."""
        try:
            fw.get(ref, timeout=20)
        except exceptions.OwnerDiedError:
            return True
        return False

    wait_until(lost)
    assert int(fw.get(kept, timeout=20).sum()) == MIB


def test_a_borrower_has_the_owner_make_it_again(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    def read(box: list[Any]) -> int:
        return int(fw.get(box[0]).sum())

    ref = make.options(**on("a")).remote(1, 2)
    made(ref)
    nodes.replace("a")
    assert fw.get(read.options(**on("b")).remote([ref]), timeout=30) == 2 * MIB
    assert int(fw.get(ref).sum()) == 2 * MIB


@pytest.mark.parametrize("nodes", ["abcd"], indirect=True)
def test_a_source_dies_while_several_copy_from_it(nodes: Nodes) -> None:
    """Whoever has the object, or a part of it, helps the others; else it is made again."""
    ref = make.options(max_retries=3, **on("a")).remote(100, 1)
    made(ref)
    sums = [total.options(**on(name)).remote(ref) for name in ("b", "c", "d", "head")]
    wait_until(lambda: any(objects(nodes[name]) for name in "bcd"))
    nodes.replace("a")
    assert fw.get(sums, timeout=60) == [100 * MIB] * 4


def test_a_node_that_leaves_in_order_hands_its_objects_over(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0, max_retries=0)
    def once(value: int) -> Any:
        return np.full(MIB, value, np.uint8)

    refs = [once.options(**on("a")).remote(i) for i in range(5)]
    made(*refs)
    nodes.cluster.remove_node(nodes.named.pop("a"))
    assert [int(array[0]) for array in fw.get(refs, timeout=20)] == [0, 1, 2, 3, 4]


def test_the_saved_state_of_an_actor_survives_its_node(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0, max_restarts=1, max_task_retries=2)
    class Keeper:
        def __init__(self) -> None:
            self.array = np.zeros(MIB, np.uint8)

        def fill(self, value: int) -> None:
            self.array = np.full(MIB, value, np.uint8)
            fw.get_runtime_context().save_actor_state()

        def first(self) -> tuple[int, str]:
            return int(self.array[0]), fw.get_runtime_context().get_node_id()

        def __framework_save__(self) -> Any:
            return self.array

        def __framework_restore__(self, state: Any) -> None:
            self.array = state

    strategy = fw.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes["a"].node_id, soft=True)
    keeper = Keeper.options(scheduling_strategy=strategy).remote()
    fw.get(keeper.fill.remote(8))
    before = nodes["a"].node_id
    assert fw.get(keeper.first.remote()) == (8, before)
    nodes.kill("a")
    value, now = fw.get(keeper.first.remote(), timeout=30)
    assert value == 8 and now != before
    fw.kill(keeper)


def test_a_source_that_answers_no_more(nodes: Nodes) -> None:
    """As if its cable were pulled: another copy is used as soon as the head has declared it dead."""
    ref = make.options(max_retries=0, **on("a")).remote(4, 9)
    assert fw.get(total.options(**on("b")).remote(ref)) == 36 * MIB
    nodes["a"].stop()
    assert int(fw.get(ref, timeout=30)[0]) == 9
    nodes.kill("a")
