"""Objects across nodes: where they are, how they come, who is told when they go."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework import exceptions
from framework._base import limits
from framework.cluster_utils import Cluster, ClusterNode
from support.leaks import wait_until
from support.stores import listing, objects, stats, wait_until_empty

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20


@fw.remote(num_cpus=0)
def make(mib: int, value: int = 1) -> Any:
    return np.full(mib * MIB, value, np.uint8)


@fw.remote(num_cpus=0)
def total(array: Any) -> tuple[int, bool]:
    return int(array.sum()), array.flags.writeable


@fw.remote(num_cpus=0)
def where() -> str:
    return fw.get_runtime_context().get_node_id()


def on(name: str) -> dict[str, Any]:
    """Options: on the node with this name."""
    return {"resources": {name: 0.001}}


class Nodes:
    """A cluster: the head's node, where the driver is, and others by name."""

    def __init__(self, names: str, **options: Any) -> None:
        self.cluster = Cluster()
        self.head = self.cluster.add_node(num_cpus=1, resources={"head": 1}, **options)
        fw.init(address=self.cluster.address, log_to_driver=False)
        self.named: dict[str, ClusterNode] = {}
        for name in names:
            self.add(name, **options)
        self.cluster.wait_for_nodes()

    def add(self, name: str, **options: Any) -> ClusterNode:
        self.named[name] = self.cluster.add_node(num_cpus=1, resources={name: 1}, **options)
        return self.named[name]

    def kill(self, name: str) -> None:
        self.cluster.remove_node(self.named.pop(name), allow_graceful=False)

    def __getitem__(self, name: str) -> ClusterNode:
        return self.named[name]

    def close(self) -> None:
        fw.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(session_root: object) -> Iterator[Nodes]:
    found = Nodes("abc")
    try:
        yield found
        gc.collect()
        wait_until_empty(found.cluster)
    finally:
        found.close()


# ---- to and fro ----------------------------------------------------------------------------------------


def test_results_arguments_and_puts_of_other_nodes(nodes: Nodes) -> None:
    made = make.options(**on("a")).remote(3, 2)
    array = fw.get(made)
    assert int(array.sum()) == 6 * MIB and not array.flags.writeable
    put = fw.put(np.ones(MIB, np.uint8))
    assert fw.get(total.options(**on("b")).remote(put)) == (MIB, False), "a view of the store there"
    assert fw.get(total.options(**on("c")).remote(made)) == (6 * MIB, False)
    assert stats(nodes["c"])["copies"] >= 1
    del made, put, array
    wait_until_empty(nodes.cluster)


def test_small_values_and_errors_need_no_store(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    def fail() -> None:
        raise KeyError("here")

    assert fw.get(where.options(**on("a")).remote()) == nodes["a"].node_id
    with pytest.raises(KeyError, match="here"):
        fw.get(fail.options(**on("b")).remote())
    assert all(objects(node) == 0 for node in nodes.cluster.list_all_nodes())


def test_nested_references_cross_nodes_too(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    def wrap() -> Any:
        return {"inner": fw.put(np.full(MIB, 3, np.uint8)), "fat": np.zeros(MIB, np.uint8)}

    @fw.remote(num_cpus=0)
    def unwrap(box: Any) -> int:
        return int(fw.get(box["inner"]).sum())

    box = wrap.options(**on("a")).remote()
    assert fw.get(unwrap.options(**on("b")).remote(box)) == 3 * MIB
    inner = fw.get(box)["inner"]
    del box
    assert int(fw.get(inner).sum()) == 3 * MIB
    del inner


def test_items_of_generators_come_from_where_they_are_made(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    def count(n: int) -> Iterator[Any]:
        for i in range(n):
            yield np.full(MIB, i, np.uint8)

    got = [int(fw.get(ref)[0]) for ref in count.options(**on("b")).remote(5)]
    assert got == list(range(5))


async def test_awaiting_many(nodes: Nodes) -> None:
    import asyncio

    refs = [make.options(**on(name)).remote(1, i) for i, name in enumerate("abcabcabc")]
    arrays = await asyncio.gather(*refs)
    assert [int(array[0]) for array in arrays] == list(range(9))


# ---- once ----------------------------------------------------------------------------------------------


def received(node: ClusterNode) -> dict[str, int]:
    from framework._node.control import Client
    from framework._wire import messages as m

    with Client(node.session_dir, "node") as client:
        found: dict[str, int] = client.call(m.STORE_LIST)["across"]
        return found


def test_many_readers_of_a_node_share_one_transfer(nodes: Nodes) -> None:
    before = received(nodes["b"])["objects_received"]
    ref = make.options(**on("a")).remote(8)
    sums = [total.options(**on("b")).remote(ref) for _ in range(6)]
    sums += [total.options(**on("b")).remote(ref) for _ in range(6)]
    assert fw.get(sums) == [(8 * MIB, False)] * 12
    assert received(nodes["b"])["objects_received"] == before + 1


def test_a_broadcast_is_shared_among_those_who_have_it(nodes: Nodes) -> None:
    ref = make.options(**on("a")).remote(48)
    fw.wait([ref], fetch_local=False)
    before = received(nodes["a"])["bytes_sent"]
    sums = [total.options(**on(name)).remote(ref) for name in ("head", "b", "c")]
    assert fw.get(sums) == [(48 * MIB, False)] * 3
    wait_until(lambda: sum(received(nodes[n])["pulls"] for n in "abc") == 0)
    assert received(nodes["a"])["bytes_sent"] - before <= 2.1 * 48 * MIB, "others have sent it on"
    del ref
    wait_until_empty(nodes.cluster)


# ---- wait, get with a timeout ---------------------------------------------------------------------------


def test_wait_brings_it_here_unless_told_otherwise(nodes: Nodes) -> None:
    ref = make.options(**on("a")).remote(4)
    assert fw.wait([ref], fetch_local=False, timeout=10) == ([ref], [])
    assert objects(nodes.head) == 0
    assert fw.wait([ref], timeout=10) == ([ref], [])
    assert stats(nodes.head)["copies"] == 1
    refs = [make.options(**on(name)).remote(1) for name in "abc"]
    done, rest = fw.wait(refs, num_returns=3, timeout=10)
    assert done == refs and not rest
    assert stats(nodes.head)["copies"] == 4


def test_get_with_a_timeout_covers_the_way_here(nodes: Nodes) -> None:
    ref = make.options(**on("c")).remote(8)
    fw.wait([ref], fetch_local=False)
    nodes["c"].stop()
    try:
        with pytest.raises(exceptions.GetTimeoutError):
            fw.get(ref, timeout=0.3)
    finally:
        nodes["c"].cont()
    assert fw.get(ref, timeout=20)[0] == 1


# ---- frees ---------------------------------------------------------------------------------------------


def test_a_free_reaches_all_copies(nodes: Nodes) -> None:
    refs = [make.options(**on(name)).remote(2) for name in "abc"]
    fw.get([total.options(**on(name)).remote(ref) for name in ("head", "a", "b", "c") for ref in refs])
    assert [objects(node) for node in nodes.cluster.list_all_nodes()] == [3] * 4
    del refs
    wait_until_empty(nodes.cluster)


def test_freed_while_it_is_on_its_way(nodes: Nodes) -> None:
    for _ in range(10):
        ref = make.options(**on("a")).remote(16)
        fw.wait([ref], fetch_local=False)
        fw.wait([ref], timeout=0)
        del ref
    wait_until_empty(nodes.cluster)


def test_the_end_of_an_owner_on_another_node_frees_what_it_owns(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    class Owner:
        def __init__(self) -> None:
            self.refs = [make.options(**on("b")).remote(1), fw.put(np.zeros(MIB))]

        def use(self) -> list[Any]:
            fw.get(total.options(**on("c")).remote(self.refs[0]))
            return self.refs

    owner = Owner.options(**on("a")).remote()
    refs = fw.get(owner.use.remote())
    assert fw.get(refs[0])[0] == 1
    assert objects(nodes["b"]) == 1 and objects(nodes["c"]) >= 1
    fw.kill(owner)
    wait_until(lambda: objects(nodes["b"]) == 0)
    with pytest.raises(exceptions.OwnerDiedError):
        fw.get(refs[1])
    del refs
    wait_until_empty(nodes.cluster)


# ---- little room ---------------------------------------------------------------------------------------


def test_copies_make_room_and_primaries_are_spilled(session_root: object, nodes: Nodes) -> None:
    room = stats(nodes["a"])["capacity"]
    mib = room // MIB // 3 - 1
    refs = [make.options(**on("b")).remote(mib, i) for i in range(3)]
    for _ in range(2):
        for ref in refs:
            fw.get(total.options(**on("a"), max_calls=1).remote(ref))
    # The processes that read have ended: else what they keep is asked back, and one of them may be too slow.
    wait_until(lambda: stats(nodes["a"])["pins"] == 0, what="that nobody reads the copies")
    before = stats(nodes["a"])["spilled_objects"]
    own = [make.options(**on("a")).remote(mib, i) for i in range(3)]
    fw.wait(own, num_returns=3, fetch_local=False, timeout=20)
    assert stats(nodes["a"])["spilled_objects"] == before, "the copies have gone, and nothing was written"
    assert fw.get(total.options(**on("a")).remote(refs[1])) == (mib * MIB, False), "and it comes again"
    assert stats(nodes["a"])["spilled_objects"] > before
    spilled = [fw.get(total.options(**on("c")).remote(ref))[0] // (mib * MIB) for ref in own]
    assert spilled == [0, 1, 2], "also from where it was spilled to"
    del refs, own, ref
    wait_until_empty(nodes.cluster)


# ---- copies that stay ----------------------------------------------------------------------------------


def test_put_with_replicas(nodes: Nodes) -> None:
    ref = fw.put(np.ones(MIB), replicas=2)
    assert sum(objects(node) for node in nodes.cluster.list_all_nodes()) == 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        more = fw.put(np.ones(MIB), replicas=9)
    assert "only 4 of them" in str(caught[0].message)
    small = fw.put(1, replicas=3)
    assert fw.get([ref, more, small])[2] == 1
    del ref, more
    wait_until_empty(nodes.cluster)
    with pytest.raises(ValueError, match="replicas"):
        fw.put(1, replicas=0)


def test_detached_values_outlive_their_owner(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    class Maker:
        def make(self) -> list[Any]:
            self.inner = fw.put(np.full(MIB, 5, np.uint8))
            own = fw.put({"big": np.full(MIB, 7, np.uint8), "inner": [fw.detach(self.inner)]})
            return [own, fw.detach(own), fw.detach(fw.put("small"))]

    maker = Maker.options(**on("b")).remote()
    own, detached, small = fw.get(maker.make.remote())
    fw.kill(maker)
    wait_until(lambda: objects(nodes["b"]) == 0)
    value = fw.get(detached)
    assert value["big"][0] == 7 and fw.get(value["inner"][0])[0] == 5 and fw.get(small) == "small"
    with pytest.raises(exceptions.OwnerDiedError):
        fw.get(own)
    del own, detached, small, value
    wait_until_empty(nodes.cluster)


def test_what_cannot_be_detached(nodes: Nodes) -> None:
    @fw.remote(num_cpus=0)
    def fail() -> None:
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        fw.detach(fail.remote())
    with pytest.raises(TypeError, match="ObjectRef"):
        fw.detach(1)  # type: ignore[arg-type]


# ---- pulls that nobody waits for -----------------------------------------------------------------------


def pulls(node: ClusterNode) -> int:
    found: int = listing(node)["across"]["pulls"]
    return found


@pytest.mark.parametrize("how", ["get", "wait", "await"])
def test_what_nobody_waits_for_any_more_is_not_fetched_on(
    nodes: Nodes, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PULL_UNWANTED", 0.4)  # (a node that is stopped for 4 s is dead)
    ref = make.options(**on("c")).remote(8)
    fw.wait([ref], fetch_local=False)
    nodes["c"].stop()
    try:
        if how == "get":
            with pytest.raises(exceptions.GetTimeoutError):
                fw.get(ref, timeout=0.2)
        elif how == "wait":
            assert fw.wait([ref], timeout=0.2) == ([], [ref])
        else:

            async def read() -> None:
                await asyncio.wait_for(ref, 0.2)

            with pytest.raises(TimeoutError):
                asyncio.run(read())
        assert pulls(nodes.head) == 1, "it goes on for a moment: they may come back"
        # (The node is stopped: nothing else could end it.)
        wait_until(lambda: pulls(nodes.head) == 0, 3, "the fetch is given up")
        assert stats(nodes.head)["copies"] == 0
    finally:
        nodes["c"].cont()
    assert fw.get(ref, timeout=20)[0] == 1, "and can begin again"


def test_what_somebody_waits_for_goes_on(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PULL_UNWANTED", 0.2)
    ref = make.options(**on("c")).remote(8)
    fw.wait([ref], fetch_local=False)
    nodes["c"].stop()
    try:
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(fw.get(ref, timeout=60)))
        thread.start()
        wait_until(lambda: pulls(nodes.head) == 1, 3, "it is on its way")
        seen = []
        end = time.monotonic() + 2.5 * limits.PULL_UNWANTED
        while time.monotonic() < end:
            with pytest.raises(exceptions.GetTimeoutError):
                fw.get(ref, timeout=0.05)
            seen.append(pulls(nodes.head))
        assert set(seen) == {1}
    finally:
        nodes["c"].cont()
    thread.join(20)
    assert got[0][0] == 1
