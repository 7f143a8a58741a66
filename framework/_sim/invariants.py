"""What always holds between two steps, looked up in the tables of the services themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from framework._base import resources as res
from framework._base.resources import UNIT
from framework._serial import values
from framework._state.allocator import aligned
from framework._state.blocks import IN_MEMORY, RESTORING, SPILLING
from framework._state.groups import CREATED
from framework._state.node import ACTOR, IDLE, LEASED
from framework._state.objects import READY


def invariants(heads: Sequence[Any], nodes: Sequence[Any], runtimes: Sequence[Any]) -> list[str]:
    """What does not hold, one text each. `heads` are `HeadProcess`es, `nodes` `NodeProcess`es, `runtimes`
    `Runtime`s: all that live. To be called when none of them is in the middle of a handler."""
    found: list[str] = []
    for head in heads:
        found += (f"head: {text}" for text in of_head(head.service))
    for node in nodes:
        name = _short(node.node.node_id)
        found += (f"node {name}: {text}" for text in of_resources(node.node.state))
        found += (f"node {name}: {text}" for text in of_workers(node.node.state))
        found += (f"store of node {name}: {text}" for text in of_store(node.store.state))
        if node.cluster is not None:
            found += (f"node {name}: {text}" for text in of_locations(node.cluster))
    for runtime in runtimes:
        found += (f"process {_short(runtime.worker_id)}: {text}" for text in of_runtime(runtime))
    found += of_reachable(nodes, runtimes)
    return found


def _short(ident: bytes) -> str:
    return ident.hex()[:8]


# ---- resources ---------------------------------------------------------------------------------------


def of_resources(state: Any) -> Iterator[str]:
    """Of a `NodeState`: what is free, what was given out and what is reserved add up to what there is."""
    bundles = list(_bundles(state.bundles))
    given: dict[str, int] = {}
    lent: dict[str, int] = {}
    for lease in state.leases.values():
        res.add(given, lease.units)
        res.add(lent, lease.lent)
    reserved: dict[str, int] = {}
    for bundle in bundles:
        res.add(reserved, bundle.units)
    for name in sorted({*state.total, *state.available, *given, *reserved}):
        total = state.total.get(name, 0)
        used = given.get(name, 0) - lent.get(name, 0) + reserved.get(name, 0)
        available = state.available.get(name, 0)
        if available + used != total:
            yield (
                f"of {name} there are {total} units: {available} are free, {given.get(name, 0)} given out, "
                f"{lent.get(name, 0)} of these lent, {reserved.get(name, 0)} reserved for bundles: that is "
                f"{available + used - total:+d}"
            )
        # CPUs may be lent while their holder wants them back, and a bundle may go while it is used.
        gone = res.split_group(name) is not None and name not in state.total
        if available < 0 and not gone and not res.lendable({name: 1}):
            yield f"more of {name} is given out than there is: {given.get(name, 0)} units of {total}"
    if _sum(state.total, "CPU") < 0:
        yield f"there are {state.total.get('CPU')} units of CPU"
    yield from _of_gpus(state, bundles)


def _sum(units: dict[str, int], name: str) -> int:
    return units.get(name, 0)


def _bundles(bundles: Any) -> Iterator[Any]:
    """Those that are held, and those that are given back and still used."""
    for held in bundles.groups.values():
        yield from held.values()
    for leaving, _ in bundles._leaving:
        yield from leaving


def _of_gpus(state: Any, bundles: Iterable[Any]) -> Iterator[str]:
    pools: dict[int, tuple[Any, str]] = {id(state.gpus): (state.gpus, "the node's GPUs")}
    used: dict[int, int] = {id(state.gpus): 0}
    for bundle in bundles:
        used[id(state.gpus)] += sum(units for _, units in bundle.shares)
        if bundle.devices is not None:
            pools[id(bundle.devices)] = bundle.devices, f"the GPUs of bundle {bundle.index}"
            used[id(bundle.devices)] = 0
    for lease in state.leases.values():
        pool = state.bundles._devices.get(lease.lease_id, state.gpus)
        used[id(pool)] = used.get(id(pool), 0) + sum(units for _, units in lease.gpu_shares)
    for key, (pool, name) in pools.items():
        if any(free < 0 or free > most for free, most in zip(pool._free, pool._most, strict=True)):
            yield f"shares of {name}: free {pool._free} of {pool._most}"
        if pool.available() + used[key] != sum(pool._most):
            yield f"{name}: {pool.available()} units are free and {used[key]} given out, of {sum(pool._most)}"
    if len(state.gpus._most) * UNIT != sum(state.gpus._most):
        yield f"the node's GPUs are {state.gpus._most}"


def of_workers(state: Any) -> Iterator[str]:
    """Of a `NodeState`: a worker is for one lease, and a lease for one worker."""
    for worker in state.workers.values():
        allocation = worker.allocation
        who = f"worker {_short(worker.worker_id)} ({worker.state})"
        if allocation is None:
            if worker.state in (LEASED, ACTOR):
                yield f"{who} has no lease"
            continue
        if worker.state not in (LEASED, ACTOR):
            yield f"{who} has lease {allocation.lease_id}"
        if allocation.worker is not worker:
            yield f"{who} has lease {allocation.lease_id}, which has another worker"
        if state.leases.get(allocation.lease_id) is not allocation:
            yield f"{who} has lease {allocation.lease_id}, which is over"
    for lease in state.leases.values():
        if lease.worker is None:
            continue
        if lease.worker.allocation is not lease:
            yield f"lease {lease.lease_id} has worker {_short(lease.worker.worker_id)}, which has another"
        if state.workers.get(lease.worker.worker_id) is not lease.worker:
            yield f"lease {lease.lease_id} has worker {_short(lease.worker.worker_id)}, which has ended"
        if lease.lent and not lease.worker.blocked:
            yield f"lease {lease.lease_id} lends {lease.lent}, and its worker does not wait"
    for env, count in state.starting.items():
        if count < 0:
            yield f"{count} workers are starting for {env}"
    idle = [w for w in state.workers.values() if w.state == IDLE and not w.ending and not w.asked_to_end]
    for env, queue in state._awaiting.items():
        waiting = sum(lease.lease_id in state.leases for lease in queue)
        if waiting > state.starting.get(env, 0) and waiting:
            fitting = sum(worker.env == env for worker in idle)
            yield (
                f"{waiting} leases wait for a worker with {dict(env)}, of which "
                f"{state.starting.get(env, 0)} are starting and {fitting} idle"
            )


# ---- the store ---------------------------------------------------------------------------------------


def of_store(state: Any) -> Iterator[str]:
    """Of a `StoreState`: blocks do not overlap, pins add up, what is in use stays."""
    blocks = [*state.blocks.values(), *state._zombies]
    yield from _of_space(state, blocks)
    readers: dict[Any, int] = {}
    spilling = spilled = 0
    for block in blocks:
        what = f"block {_short(block.object_id)} at {block.offset} ({block.state})"
        for holder, count in block.pins.items():
            if count <= 0:
                yield f"{what} has {count} pins of {holder}"
            if block.sealed:
                readers[holder] = readers.get(holder, 0) + count
        if block.state in (IN_MEMORY, SPILLING, RESTORING) and block.offset < 0:
            waits = any(request.block is block for request in state._queue)
            if not waits:
                yield f"{what} has no place"
        if block.deleting and not block.pins and block.state not in (SPILLING, RESTORING):
            if not any(request.block is block for request in state._queue):
                yield f"{what} was freed, nobody reads it, and it is there"
        spilling += aligned(block.size) if block.state == SPILLING else 0
        spilled += block.size if block.path is not None else 0
    if readers != state._readers:
        yield f"pins of sealed blocks are {readers}, and were counted as {state._readers}"
    if spilling != state._spilling:
        yield f"{spilling} bytes are on their way to disk, and were counted as {state._spilling}"
    if spilled != state.spilled_bytes:
        yield f"{spilled} bytes are on disk, and were counted as {state.spilled_bytes}"
    for object_id in [*state._idle, *state._idle_copies]:
        block = state.blocks.get(object_id)
        if block is None or block.pins or not block.sealed or block.state != IN_MEMORY:
            yield f"object {_short(object_id)} counts as unused, and is {block!r}"


def _of_space(state: Any, blocks: Iterable[Any]) -> Iterator[str]:
    allocator = state.allocator
    taken = sorted(allocator.blocks().items())
    free = sorted(allocator.free_blocks())
    end, last = 0, ""
    for offset, size, what in sorted(
        [(offset, size, "used") for offset, size in taken] + [(offset, size, "free") for offset, size in free]
    ):
        if offset < end:
            yield f"the {what} block at {offset} overlaps the {last} one before it, which ends at {end}"
        end, last = offset + size, what
    if end > allocator.capacity:
        yield f"blocks reach up to {end}, beyond the capacity of {allocator.capacity}"
    if sum(size for _, size in taken) != allocator.used:
        yield f"{sum(size for _, size in taken)} bytes are in use, and were counted as {allocator.used}"
    sizes = dict(taken)
    for offset, block in state._placed.items():
        if offset != block.offset:
            yield f"block {_short(block.object_id)} lies at {block.offset}, and is listed at {offset}"
        if sizes.get(offset) != aligned(block.size):
            yield f"block {_short(block.object_id)} of {block.size} bytes has {sizes.get(offset)} at {offset}"
    for block in blocks:
        if block.offset >= 0 and state._placed.get(block.offset) is not block:
            yield f"two blocks lie at {block.offset}"
    known = {*state._placed, *state._regions}
    if both := set(state._placed) & set(state._regions):
        yield f"at {sorted(both)} there are blocks and regions"
    if nobody := set(sizes) - known:
        yield f"the space at {sorted(nobody)[:5]} is nobody's"
    if unreal := set(state._regions) - set(sizes):
        yield f"the regions at {sorted(unreal)[:5]} have no space"


# ---- other nodes -------------------------------------------------------------------------------------


def of_locations(side: Any) -> Iterator[str]:
    """Of what makes a `NodeProcess` part of a cluster: nothing is sought on nodes known to be dead."""
    nodes = sorted(side.objects.transfers.state.alive)
    if gone := [_short(node) for node in nodes if side.neighbours.dead(node) is not None]:
        yield f"objects are asked of nodes that are dead: {gone}"


# ---- owners and the head -----------------------------------------------------------------------------


def of_runtime(runtime: Any) -> Iterator[str]:
    """Of a `Runtime`: counts are not below zero, leases are known to their keys."""
    for entry in list(runtime.objects.table.entries.values()):
        if entry.local < 0:
            yield f"{entry!r} has less than no references"
    for lease in list(runtime.leasing._leases.values()):
        if lease.key.leases.get(lease.lease_id) is not lease and not lease.dead:
            yield f"lease {lease.lease_id} is not among those of its key"
        for task in list(lease.inflight.values()):
            if task.lease is not lease and task.lease is not None:
                yield f"task {task.unique} is on its way to two workers"


def of_reachable(nodes: Sequence[Any], runtimes: Sequence[Any]) -> Iterator[str]:
    """Nothing that a living owner needs was freed in the store that has it; those on a node that was declared
    dead are over, even if they have not heard of it."""
    stores = {node.node.node_id: node.store.state for node in nodes}
    sides = {node.node.node_id: node.cluster for node in nodes if node.cluster is not None}
    for runtime in runtimes:
        if runtime.dead is not None or runtime.closing:
            continue
        for entry in list(runtime.objects.table.entries.values()):
            if entry.owner is not None or entry.state != READY or entry.freed:
                continue
            wire = entry.value
            if not values.is_stored(wire) or not (entry.local > 0 or entry.borrowers):
                continue
            store = stores.get(wire[5])
            if store is None or entry.id != wire[1] or entry.id in runtime.store._made_again:
                continue
            side = sides.get(wire[5])
            if side is not None and side.neighbours.dead(runtime.store.node_id) is not None:
                continue
            block = store.blocks.get(entry.id)
            if (block is not None and block.deleting) or entry.id in store._freed_early:
                yield f"{entry!r} was freed in the store of node {_short(wire[5])}, and can be reached"


def of_head(service: Any) -> Iterator[str]:
    """Of a `HeadService`: one living actor of a name, and whole groups."""
    names: dict[Any, bytes] = {}
    for record in service._actors.living():
        key = record.name_key
        if key is None:
            continue
        if key in names:
            yield f"two living actors are named {key}: {_short(names[key])} and {_short(record.actor_id)}"
        names[key] = record.actor_id
    if service.groups is not None:
        for group in service.groups.state.groups.values():
            if group.state == CREATED and not all(group.nodes):
                yield f"group {_short(group.group_id)} is there, and not all of its bundles: {group.nodes}"
