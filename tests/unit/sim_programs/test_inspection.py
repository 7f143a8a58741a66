"""Invariants and leftovers, looked up in real tables: nothing in good ones, each planted damage found."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from framework._base.resources import UNIT
from framework._head.service import HeadService
from framework._sim import inspection
from framework._sim.invariants import of_head, of_locations, of_resources, of_store, of_workers
from framework._state.copies import SharedStoreState
from framework._state.node import NodeState, Worker
from framework._state.store import StoreState
from framework._state.transfers import Pulls

JOB = b"\1\0\0\0"
GROUP = b"g" * 18
OBJECT = b"o" * 28


def one(cpus: float = 1) -> dict[str, int]:
    return {"CPU": round(cpus * UNIT)}


def busy_node() -> NodeState:
    """With a lease, one that waits for a worker, one that lends its CPUs, an actor and a bundle."""
    state = NodeState({"CPU": 8 * UNIT, "GPU": 2 * UNIT}, "ab" * 28)
    state.describe_key("owner", 1, one(), (), JOB)
    state.describe_key("owner", 2, {**one(), "GPU": UNIT // 2}, (), JOB)
    for name in (b"w1", b"w2", b"w3"):
        state.worker_up(Worker(name, 1, "a", (), None), 0.0)
    state.demand("owner", 1, 2, 0)
    state.demand("owner", 2, 1, 0)
    state.blocked(b"w1")
    assert state.bundles.prepare(GROUP, 1, [(0, {**one(2), "GPU": UNIT})]) is None
    assert state.bundles.commit(GROUP, 1, [0]) is None
    state.place_actor(b"actor", one(0.5), (), JOB)
    return state


def problems(state: NodeState) -> list[str]:
    return [*of_resources(state), *of_workers(state)]


def test_a_good_node_keeps_its_invariants() -> None:
    state = busy_node()
    assert problems(state) == []
    state.bundles.give_back(GROUP)
    assert problems(state) == []
    state.worker_gone(b"w1")
    state.lease_returned(2, "owner", 1.0)
    assert problems(state) == []
    state.owner_gone("owner")
    assert problems(state) == []


def twice_free(state: NodeState) -> None:
    state.available["CPU"] += UNIT


def given_twice(state: NodeState) -> None:
    state.leases[99] = next(lease for lease in state.leases.values() if not lease.lent)


def forgotten_release(state: NodeState) -> None:
    lease = next(lease for lease in state.leases.values() if lease.worker is not None)
    assert lease.worker is not None
    del state.leases[lease.lease_id]


def negative(state: NodeState) -> None:
    state.total["gold"], state.available["gold"] = 0, -1
    next(iter(state.leases.values())).units["gold"] = 1


def gpu_leak(state: NodeState) -> None:
    state.gpus._free[0] = 0
    state.gpus._free[1] = 0


def idle_with_a_lease(state: NodeState) -> None:
    state.workers[b"w2"].state = "idle"


def lends_without_waiting(state: NodeState) -> None:
    state.workers[b"w1"].blocked = False


def nobody_starts(state: NodeState) -> None:
    state.starting.clear()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (twice_free, "of CPU there are"),
        (given_twice, "of CPU there are"),
        (forgotten_release, "is over"),
        (negative, "more of gold"),
        (gpu_leak, "GPUs"),
        (idle_with_a_lease, "has lease"),
        (lends_without_waiting, "does not wait"),
        (nobody_starts, "wait for a worker"),
    ],
)
def test_damage_to_a_node_is_found(damage: Callable[[NodeState], None], text: str) -> None:
    state = busy_node()
    damage(state)
    assert any(text in problem for problem in problems(state)), problems(state)


# ---- the store ---------------------------------------------------------------------------------------


def busy_store() -> StoreState:
    """With a block that is written, one that is read, one on its way to disk, one on disk, and a region."""
    state = SharedStoreState(1 << 20)
    for number in range(5):
        name = bytes([number]) * 28
        ((_, _, offset),) = state.create(number, "writer", name, 150_000, "owner")
        if number:
            state.seal(name, offset, "writer")
    state.pin("t", "reader", b"\1" * 28)
    state.lease("r", "writer", 100_000)
    ((_, spilled, offset, _), *_) = [
        c for c in state.create("x", "w", OBJECT, 400_000, "o") if c[0] == "spill"
    ]
    state.spilled(spilled, offset, "file")
    return state


def test_a_good_store_keeps_its_invariants() -> None:
    state = busy_store()
    assert list(of_store(state)) == []
    state.holder_gone("writer")
    state.free(b"\1" * 28)
    assert list(of_store(state)) == []
    state.holder_gone("reader")
    state.holder_gone("owner")
    assert list(of_store(state)) == []


def overlap(state: StoreState) -> None:
    first = min(state.allocator._sizes)
    state.allocator._sizes[first] += 4096


def lost_space(state: StoreState) -> None:
    state._regions.clear()


def pin_lost(state: StoreState) -> None:
    state._readers["reader"] = 7


def pin_below_zero(state: StoreState) -> None:
    state.blocks[b"\1" * 28].pins["other"] = -1


def freed_and_there(state: StoreState) -> None:
    block = state.blocks[b"\1" * 28]
    state._end_pins(block, "reader", 1)
    block.deleting = True


def unused_and_read(state: StoreState) -> None:
    state._idle[b"\1" * 28] = None


def disk_miscounted(state: StoreState) -> None:
    state.spilled_bytes = 0


def moved(state: StoreState) -> None:
    state.blocks[b"\1" * 28].offset += 4096


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (overlap, "overlaps"),
        (lost_space, "nobody's"),
        (pin_lost, "pins of sealed blocks"),
        (pin_below_zero, "has -1 pins"),
        (freed_and_there, "it is there"),
        (unused_and_read, "counts as unused"),
        (disk_miscounted, "on disk"),
        (moved, "is listed at"),
    ],
)
def test_damage_to_a_store_is_found(damage: Callable[[StoreState], None], text: str) -> None:
    state = busy_store()
    damage(state)
    found = list(of_store(state))
    assert any(text in problem for problem in found), found


# ---- the head ----------------------------------------------------------------------------------------


@pytest.fixture
def head() -> Iterator[HeadService]:
    loop = asyncio.new_event_loop()
    service = HeadService(loop)
    spec = {"name": "x", "namespace": "n", "class_name": "C", "resources": {}, "job": JOB}
    service._actors.create(b"a" * 16, spec, "owner")
    yield service
    loop.close()


def test_dead_nodes_are_asked_for_nothing() -> None:
    pulls = Pulls(b"own")
    neighbours = types.SimpleNamespace(dead=lambda node: "it fell silent" if node == b"dead" else None)
    transfers = types.SimpleNamespace(state=pulls)
    side = types.SimpleNamespace(neighbours=neighbours, objects=types.SimpleNamespace(transfers=transfers))
    pulls.node_up(b"dead")
    pulls.node_up(b"other")
    assert list(of_locations(side)) == [f"objects are asked of nodes that are dead: ['{b'dead'.hex()}']"]
    pulls.node_gone(b"dead")
    assert not list(of_locations(side))


def test_names_and_actors_at_the_head(head: HeadService) -> None:
    assert list(of_head(head)) == []
    (left,) = inspection.of_head(head)
    assert "1 actors that are not dead: C" in left
    del head._actors._names[("n", "x")]
    head._actors.create(b"b" * 16, head._actors.records[b"a" * 16].spec, "owner")
    assert "two living actors are named" in next(of_head(head))
    for actor in (b"a" * 16, b"b" * 16):
        head._actors.kill(actor, True, "over")
    assert list(inspection.of_head(head)) == list(of_head(head)) == []


# ---- what is left ------------------------------------------------------------------------------------


def _process(state: NodeState) -> Any:
    node = types.SimpleNamespace(state=state, actors=types.SimpleNamespace(specs={}), _owners={})
    return types.SimpleNamespace(node=node, cluster=None)


def test_what_a_node_has_left() -> None:
    state = busy_node()
    found = " | ".join(inspection.of_node(_process(state), set()))
    for text in (
        "leases: ",
        "workers that are not idle",
        "placement groups with bundles",
        "wait for a worker",
    ):
        assert text in found, found
    clean = NodeState(one(2), "ab" * 28)
    clean.worker_up(Worker(b"w", 1, "a", (), None), 0.0)
    assert list(inspection.of_node(_process(clean), set())) == []
    clean.available["CPU"] -= 1
    assert "19999 units of CPU are free, of 20000" in next(inspection.of_node(_process(clean), set()))


def test_what_a_store_has_left() -> None:
    service: Any = types.SimpleNamespace(state=busy_store(), disk=None)
    found = " | ".join(inspection.of_store(service))
    for text in ("objects: ", "pinned objects", "bytes on disk"):
        assert text in found, found
    empty: Any = types.SimpleNamespace(state=SharedStoreState(1 << 20), disk=None)
    assert list(inspection.of_store(empty)) == []
