"""Operations with the cluster: placement groups, resources, strategies, nodes that come and go, drivers."""

from __future__ import annotations

import asyncio
from typing import Any

import framework as fw
from framework._sim import actions
from framework._sim.ledger import LEDGER
from framework._sim.operation import Operation
from framework._sim.record import NOTHING, Expect
from framework._sim.values import block, block_sum, mix
from framework.exceptions import ActorDiedError
from framework.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from framework.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

REMOVED = ("PlacementGroupRemovedError",)


async def _remove(op: Operation, group: PlacementGroup) -> bool:
    """Whether it certainly is gone: on an event loop this only says that it is to go."""
    control = Expect(any_value=True, risks=[op.risk("control")])
    op.world.note("worker_exit", why="a placement group is removed, and with it the workers that it has")
    if op.chance(0.5):
        return (await op.within("remove a group", op.blocking(remove_placement_group, group), control))[0].ok
    remove_placement_group(group)
    return False


def _bundles(op: Operation) -> tuple[list[dict[str, float]], str]:
    """What fits into the world, sooner or later."""
    count = op.rng.randint(1, 2)
    cpus = op.rng.choice([0.25, 0.5, 1])
    strategy = op.rng.choice(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
    if strategy == "STRICT_SPREAD":
        count = 1  # (there may be only one node)
    return [{"CPU": cpus}] * count, strategy


async def group(op: Operation) -> None:
    """Make a group, run tasks and an actor in it, remove it."""
    bundles, strategy = _bundles(op)
    made = placement_group(bundles, strategy)
    risk = op.risk("group")
    ready = await op.see("group", made.ready(), Expect(any_value=True, risks=[risk]))
    waits = []
    for index in range(op.rng.randint(1, 4)):
        retries = op.retries()
        task, bundle = op.task(retries), index % len(bundles) if op.chance(0.5) else -1
        inside = PlacementGroupSchedulingStrategy(made, bundle)
        chosen: Any = actions.leaf.options(
            num_cpus=bundles[0]["CPU"], scheduling_strategy=inside, max_retries=retries
        )
        ref = chosen.remote(task, index, op.seconds(0, 0.5))
        waits.append((ref, op.right(mix(task, index), [risk, op.risk("task", retries)])))
        del ref
    if op.chance(0.5):
        actor = op.actor("sync")
        inside = PlacementGroupSchedulingStrategy(made)
        handle: Any = actions.PLAIN.options(num_cpus=0, scheduling_strategy=inside).remote(actor)
        right = op.right(mix(actor, 0, 0, 1), [risk, op.risk("call")])
        waits.append((handle.step.remote(0, 0, 1), right))
        del handle
    early = op.chance(0.3)
    if not early and ready.ok:
        await op.see_all("in a group", waits)
        waits.clear()
    certain = await _remove(op, made)
    gone = [(ref, Expect(e.value, errors=REMOVED, risks=e.risks)) for ref, e in waits]
    waits.clear()
    await op.see_all("in a group that is removed", gone)
    gone.clear()
    inside = PlacementGroupSchedulingStrategy(made)
    task = op.task(0)
    late: Any = actions.leaf.options(num_cpus=0, scheduling_strategy=inside, max_retries=0)
    value = NOTHING if certain else mix(task, 1)
    expect = Expect(value, errors=REMOVED, risks=[risk, op.risk("task")])
    await op.see("task in a group that was removed", late.remote(task, 1), expect, task=task)


async def group_infeasible(op: Operation) -> None:
    """A group for which there is no room waits until it is removed."""
    made = placement_group([{"CPU": 10_000}])
    ready = made.ready()
    await op.pause(0, 2)
    if ready.done() and not op.world.faults_possible:  # (else what came of it is judged below)
        op.wrong("groups", f"a group of 10000 CPUs is there, or has failed: {ready}")
    await _remove(op, made)
    await op.see("group that was removed", ready, Expect(errors=REMOVED, risks=[op.risk("group")]))


async def custom(op: Operation) -> None:
    """Tasks that share a resource of which there is 1: no more run at a time than it has room for."""
    name = op.world.resource
    if not name:
        return
    amount = op.rng.choice([0.3, 0.5, 1])
    waits, tasks = [], []
    for place in range(op.rng.randint(2, 6)):
        retries = op.retries()
        task = op.task(retries)
        tasks.append(task)
        function: Any = actions.leaf.options(num_cpus=0, resources={name: amount}, max_retries=retries)
        ref = function.remote(task, place, op.seconds(0, 0.5))
        waits.append((ref, op.right(mix(task, place), [op.risk("task", retries), op.risk("node")])))
        del ref
    await op.see_all("task with a resource", waits)
    most = _most_at_a_time(tasks)
    if most * amount > 1 and not op.world.faults_possible:
        op.wrong("resources", f"{most} tasks with {amount} of {name} ran at a time: {tasks}")


def _most_at_a_time(tasks: list[int]) -> int:
    moments = []
    for task in tasks:
        for attempt in LEDGER.attempts.get(task, []):
            # (An end comes before a beginning at the same time.)
            moments += [(attempt.began, 1), (attempt.ended, 0)]
    most = now = 0
    for _, begins in sorted(moments):
        now += 1 if begins else -1
        most = max(most, now)
    return most


async def _alive(op: Operation) -> list[str]:
    control = Expect(any_value=True, risks=[op.risk("control")])
    _, rows = await op.within("nodes", op.blocking(fw.nodes), control)
    return [row["NodeID"] for row in rows or [] if row["Alive"]]


async def strategies(op: Operation) -> None:
    """SPREAD, and affinity to a node, soft and hard."""
    alive = await _alive(op)
    if not alive:
        return
    waits = []
    for _ in range(op.rng.randint(1, 5)):
        how, node = op.rng.choice(["SPREAD", "soft", "hard"]), alive[op.rng.randrange(len(alive))]
        retries = op.rng.choice([0, 3])
        task = op.task(retries)
        strategy: Any = how if how == "SPREAD" else NodeAffinitySchedulingStrategy(node, how == "soft")
        function: Any = actions.where.options(scheduling_strategy=strategy, max_retries=retries, num_cpus=0.5)
        ref = function.remote(task, op.seconds(0, 0.3))
        risks = [op.risk("task", retries), op.risk("node")]
        waits.append((ref, op.right(node, risks) if how == "hard" else Expect(any_value=True, risks=risks)))
        del ref
    await op.see_all("task with a strategy", waits)


async def unschedulable(op: Operation) -> None:
    """A task for a node that does not exist."""
    nowhere = NodeAffinitySchedulingStrategy(f"{op.rng.getrandbits(224):056x}", soft=False)
    task = op.task(0)
    ref: Any = actions.where.options(scheduling_strategy=nowhere, max_retries=0).remote(task)
    risks = op.task_risks(0)
    await op.see("task for no node", ref, Expect(errors=["TaskUnschedulableError"], risks=risks), task=task)


async def node(op: Operation) -> None:
    """A node comes, works, has objects, and goes, in order or not."""
    if not op.world.can_add_nodes:
        return
    own = f"own-{op.index}"
    expect = Expect(any_value=True, risks=[op.risk("control")])
    joining = op.world.add_node(num_cpus=1, resources={own: 1})
    _, node_id = await op.within("add a node", joining, expect)
    if node_id is None:
        return
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    rather = NodeAffinitySchedulingStrategy(node_id, soft=True)
    task = op.task(3)
    # (There, or not at all: what asks for a resource that nobody has any more waits for ever.)
    first_there: Any = actions.where.options(resources={own: 1}, num_cpus=0, scheduling_strategy=there)
    ref = first_there.remote(task)
    first = await op.see("task on a new node", ref, op.right(node_id, [op.risk("task", 3), op.risk("node")]))
    del ref
    waits = []
    for place in range(op.rng.randint(1, 3)):
        # Stored there; it is made again elsewhere.
        size, maker = 120_000, op.task(3, stored=True)
        large: Any = actions.make.options(scheduling_strategy=rather, max_retries=3).remote(maker, size)
        value = block(maker, size)
        risks = op.task_risks(3, stored=True)
        if op.chance(0.5):
            reader = op.task(3)
            top: Any = actions.measure.options(scheduling_strategy=rather).remote(reader, large)
            waits.append((top, op.right(mix(reader, block_sum(value)), [*risks, op.risk("task", 3)])))
            del top
        waits.append((large, op.right(value, risks)))
        running = op.task(3)
        slow: Any = actions.leaf.options(scheduling_strategy=rather).remote(running, place, op.seconds(0, 3))
        waits.append((slow, op.right(mix(running, place), [op.risk("task", 3)])))
        del large, slow
    actor = op.actor("sync", -1, -1)
    handle: Any = actions.PLAIN.options(
        num_cpus=0, scheduling_strategy=rather, max_restarts=-1, max_task_retries=-1
    ).remote(actor)
    call_risk = op.risk("call", -1, restarts=-1)
    waits.append((handle.step.remote(0, 0, 1), op.right(mix(actor, 0, 0, 1), [call_risk])))
    await op.pause(0, 3)
    graceful = op.chance(0.5)
    await op.within("remove a node", op.world.remove_node(node_id, graceful), expect)
    waits.append((handle.step.remote(0, 1, 2), op.right(mix(actor, 0, 1, 2), [call_risk])))
    await op.see_all("from a node that has gone", waits)
    waits.clear()
    task = op.task(0)
    late: Any = actions.where.options(scheduling_strategy=there, max_retries=0).remote(task)
    if first.ok:
        gone = Expect(errors=["TaskUnschedulableError"], risks=[op.risk("task")])
        await op.see("task for a node that has gone", late, gone, task=task)


async def driver(op: Operation) -> None:
    """Another driver calls an actor of this one by its name, and makes an actor that ends with it."""
    name = f"shared-{op.index}-{op.rng.getrandbits(32):08x}"
    actor, theirs = op.actor("sync", name=name), op.actor("sync")
    task = op.task(3)
    risks = [op.risk("call"), op.risk("control"), op.risk("task", 3)]
    handle: Any = actions.PLAIN.options(name=name, lifetime="detached", num_cpus=0, namespace="shared")
    handle = handle.remote(actor)

    async def job() -> list[int]:
        try:
            found = await asyncio.to_thread(fw.get_actor, name, "shared")
        except ValueError as error:  # it has died, and its name is nobody's
            raise ActorDiedError(str(error)) from error
        one: Any = actions.PLAIN.options(num_cpus=0).remote(theirs)
        return [
            await found.step.remote(5, 0, 1),
            await one.step.remote(0, 0, 2),
            await actions.leaf.remote(task, 3),
        ]

    right_here = op.right(mix(actor, 0, 0, 1), risks)
    first = await op.see("call of a shared actor", handle.step.remote(0, 0, 1), right_here)
    if first.ok:
        right = [mix(actor, 5, 0, 1), mix(theirs, 0, 0, 2), mix(task, 3)]
        try:
            expect = Expect(any_value=True, errors=["NotImplementedError"], risks=risks)
            observation, found = await op.within("another driver", op.world.in_driver(job), expect)
            if observation.ok and found != right:
                op.wrong("wrong values in another driver", f"{found} instead of {right}")
        finally:
            del job
    await op.within("kill", op.blocking(fw.kill, handle), Expect(any_value=True, risks=risks))
