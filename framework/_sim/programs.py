"""Random programs over the public API: what is done, in which strands, and how a program is run.

A program is a list of operations. What each is, and everything that it chooses, follows from the seed and
its number alone: with another `count`, with operations that are left out (`skip`), or without some of the
`kinds`, all others are as they were.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from framework._sim import operations_actors as actors
from framework._sim import operations_cluster as cluster
from framework._sim import operations_objects as objects
from framework._sim import operations_tasks as tasks
from framework._sim.operation import Operation, Shelf
from framework._sim.record import Expect
from framework._sim.world import World

Body = Callable[[Operation], Coroutine[Any, Any, None]]

#: what there is, and how often it is done, relative to each other
KINDS: dict[str, tuple[Body, float]] = {
    "burst": (tasks.burst, 4),
    "slow": (tasks.slow, 2),
    "fail": (tasks.fail, 2),
    "several": (tasks.several, 2),
    "deadline": (tasks.deadline, 1),
    "get_timeout": (tasks.get_timeout, 1),
    "nested": (tasks.nested, 3),
    "chain": (tasks.chain, 3),
    "failed_argument": (tasks.failed_argument, 1),
    "crash": (tasks.crash, 1.5),
    "cancel_queued": (tasks.cancel_queued, 1),
    "cancel_running": (tasks.cancel_running, 1.5),
    "cancel_tree": (tasks.cancel_tree, 1),
    "cancel_force": (tasks.cancel_force, 1),
    "wait_some": (tasks.wait_some, 1.5),
    "as_completed": (tasks.as_completed, 1),
    "put": (objects.put, 3),
    "shelf": (objects.shelf, 2),
    "made_again": (objects.made_again, 2),
    "borrow": (objects.borrow, 3),
    "keep": (objects.keep, 2),
    "owned_by_actor": (objects.owned_by_actor, 1),
    "spill": (objects.spill, 0.5),
    "stream": (objects.stream, 2),
    "stream_part": (objects.stream_part, 1.5),
    "stream_slowly": (objects.stream_slowly, 1),
    "stream_shared": (objects.stream_shared, 1),
    "calls": (actors.calls, 4),
    "late_arguments": (actors.late_arguments, 1),
    "cancel_calls": (actors.cancel_calls, 1),
    "restart": (actors.restart, 2),
    "die_for_good": (actors.die_for_good, 1),
    "kill": (actors.kill, 1.5),
    "leave": (actors.leave, 1),
    "constructor": (actors.constructor, 0.5),
    "handles": (actors.handles, 1.5),
    "actor_stream": (actors.actor_stream, 1),
    "named_race": (actors.named_race, 1),
    "named_once": (actors.named_once, 1),
    "detached": (actors.detached, 1),
    "group": (cluster.group, 2),
    "group_infeasible": (cluster.group_infeasible, 0.5),
    "custom": (cluster.custom, 1),
    "strategies": (cluster.strategies, 1),
    "unschedulable": (cluster.unschedulable, 0.5),
    "node": (cluster.node, 1),
    "driver": (cluster.driver, 0.5),
    # Only where they are asked for (`--kinds`): what they are for needs `SimSocket.plain`.
    "singly": (tasks.singly, 0),
    "calls_singly": (actors.calls_singly, 0),
}

#: of all kinds, for `World.kinds`
WEIGHTS: dict[str, float] = {kind: weight for kind, (_, weight) in KINDS.items()}

STRANDS = 4


class Planned(NamedTuple):
    """One operation, before it is run."""

    number: int
    kind: str
    strand: int
    pause: float  #: before it, in seconds
    seed: str


def plan(rng: random.Random, count: int, kinds: Mapping[str, float] | None = None) -> list[Planned]:
    """The operations of a program. Draws from `rng` once."""
    weights = WEIGHTS if kinds is None else kinds
    unknown = sorted(set(weights) - set(KINDS))
    if unknown:
        raise ValueError(f"no such operations: {unknown}; there are {sorted(KINDS)}")
    base = rng.getrandbits(64)
    strands = random.Random(f"{base}/strands").randint(2, STRANDS)
    planned = []
    for index in range(count):
        own = random.Random(f"{base}/{index}")
        strand = own.randrange(strands)
        pause = own.choice([0.0, 0.0, own.uniform(0, 0.05), own.uniform(0, 2)])
        # Each kind has a clock of its own, and the first to strike is it: the clocks of kinds that are left
        # out change nothing for the others.
        clocks = {kind: own.expovariate(1.0) for kind in KINDS}
        struck = [(clocks[kind] / weight, kind) for kind, weight in weights.items() if weight > 0]
        planned.append(Planned(index, min(struck)[1], strand, pause, f"{base}/{index}/choices"))
    return planned


async def run_program(world: World) -> None:
    """Run a random program to its end, in this driver. What it saw is in `world.seen`. Never raises for what
    the cluster does."""
    planned = [step for step in plan(world.rng, world.count, world.kinds) if step.number not in world.skip]
    shelf = Shelf()
    strands: dict[int, list[Planned]] = {}
    for step in planned:
        strands.setdefault(step.strand, []).append(step)
    await asyncio.gather(*(_strand(world, steps, shelf) for steps in strands.values()))
    shelf.clear()
    world.seen.finished = True


async def _strand(world: World, steps: list[Planned], shelf: Shelf) -> None:
    for step in steps:
        if step.pause:
            await world.sleep(step.pause * world.pace)
        await _run(world, step, shelf)


async def _run(world: World, step: Planned, shelf: Shelf) -> None:
    record = world.seen
    record.kinds[step.number] = step.kind
    record.unfinished.add(step.number)
    op = Operation(step.number, step.kind, world, random.Random(step.seed), shelf)
    # (All of its waits have an end. This is for those that nobody has thought of.)
    expect = Expect(any_value=True, risks=[op.risk("control")])
    whole = record.open(step.number, step.kind, expect, world.now())
    try:
        await asyncio.wait_for(KINDS[step.kind][0](op), 4 * world.patience)
        whole.got(None, world.now())
    except TimeoutError as error:
        if type(error) is TimeoutError:
            whole.hung(world.now())
        else:
            whole.failed(error, world.now())
    except Exception as error:
        whole.failed(error, world.now())
        whole.text += _where(error)
    record.unfinished.discard(step.number)


def _where(error: BaseException) -> str:
    """The lines of the program that it came through."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    lines = ", ".join(f"{frame.filename.rsplit(chr(47), 1)[-1]}:{frame.lineno}" for frame in frames)
    return f" (through {lines})"
