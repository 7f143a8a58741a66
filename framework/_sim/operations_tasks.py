"""Operations with tasks: fast, slow, failing, nested, with several results, deadlines, crashes, cancels."""

from __future__ import annotations

import asyncio
from typing import Any

import framework as fw
from framework._sim import actions
from framework._sim.operation import CANCELLED, Operation
from framework._sim.record import Expect, Observation, TaskFacts
from framework._sim.values import Tree, item_value, mix, tree_tasks, tree_value
from framework.exceptions import GetTimeoutError


def _leaf(op: Operation, x: int, seconds: float, **options: Any) -> tuple[Any, Expect, int]:
    retries = op.retries()
    task = op.task(retries)
    function: Any = actions.leaf_async if op.chance(0.3) else actions.leaf
    risks = op.task_risks(retries)
    ref = function.options(max_retries=retries, **options).remote(task, x, seconds)
    return ref, op.right(mix(task, x), risks), task


async def burst(op: Operation) -> None:
    """Several tasks at once, awaited together or got by one `get`."""
    started = [_leaf(op, op.rng.randrange(1000), 0.0) for _ in range(op.rng.randint(1, 12))]
    if op.chance(0.3):
        risks = [risk for _, expect, _ in started for risk in expect.risks]
        whole = Expect([expect.value for _, expect, _ in started], risks=risks)
        refs = [ref for ref, _, _ in started]
        del started
        await _get_together(op, refs, whole)
        return
    blocking = op.chance(0.3)
    await op.alongside(
        *(op.see("task", ref, expect, task=task, blocking=blocking) for ref, expect, task in started)
    )


async def _get_together(op: Operation, refs: list[Any], expect: Expect) -> None:
    observation = op.record.open(op.index, f"{op.kind}: get of a list", expect, op.world.now())
    try:
        observation.got(await op.blocking(fw.get, refs, timeout=op.world.patience), op.world.now())
    except GetTimeoutError:
        observation.hung(op.world.now())
    except Exception as error:
        observation.failed(error, op.world.now())


async def singly(op: Operation) -> None:
    """Tasks one after the other, whose results are read by who waits for them: a loop, or a thread."""
    retries = op.retries()
    base: Any = actions.leaf_async if op.chance(0.3) else actions.leaf
    function = base.options(max_retries=retries)
    for x in range(op.rng.randint(8, 25)):
        task = op.task(retries)
        expect = op.right(mix(task, x), op.task_risks(retries))
        ref = function.remote(task, x, 0.0)
        await op.see("single task", ref, expect, task=task, blocking=op.chance(0.2))


async def slow(op: Operation) -> None:
    """Tasks that take their time, with parts of CPUs."""
    cpus = op.rng.choice([0, 0.25, 0.5, 1])
    started = [
        _leaf(op, place, op.seconds(0.01, 3.0), num_cpus=cpus) for place in range(op.rng.randint(1, 5))
    ]
    await op.pause(0, 1)
    await op.alongside(*(op.see("slow task", ref, expect, task=task) for ref, expect, task in started))


async def fail(op: Operation) -> None:
    """Tasks that raise: for good, or until an attempt that is within or beyond their retries."""
    retries = op.rng.choice([0, 1, 3])
    task = op.task(0)
    risks = op.task_risks(0)
    ref: Any = actions.refuse.options(max_retries=0).remote(task, op.seconds(0, 0.5))
    await op.see("raising task", ref, Expect(errors=["Refused"], risks=risks), task=task)

    counter: Any = actions.PLAIN.options(num_cpus=0).remote(op.actor("sync"))
    risks = [op.risk("call"), op.risk("task", retries)]
    good = op.rng.randint(1, 4)
    task = op.task(retries)
    repeated: Any = op.rng.choice([True, [actions.Refused], [KeyError]])
    function: Any = actions.refuse_until.options(max_retries=retries, retry_exceptions=repeated)
    ref = function.remote(task, counter, good)
    tries = 1 if repeated == [KeyError] else 1 + retries
    if good <= tries:
        expect = op.right(mix(task, good), risks)
    else:
        expect = Expect(errors=["Refused"], risks=risks)
    if op.world.faults_possible:  # what a crash has cost is missing in the end
        expect = Expect(mix(task, good), errors=["Refused"], risks=risks)
    await op.see(f"task that raises until attempt {good} of {tries}", ref, expect, task=task)


async def several(op: Operation) -> None:
    """Several results of one task, some dropped at once."""
    retries, count = op.retries(), op.rng.randint(2, 5)
    size = op.size() if op.chance(0.5) else 0
    x = op.rng.randrange(1000)
    stored = size > 100 * 1024
    task = op.task(retries, stored=stored)
    risks = op.task_risks(retries, stored)
    refs: Any = actions.several.options(num_returns=count, max_retries=retries).remote(task, x, count, size)
    waits = [
        (ref, op.right(item_value(mix(task, x), index, size), risks))
        for index, ref in enumerate(refs)
        if not op.chance(0.3)
    ]
    del refs
    await op.pause(0, 0.2)
    await op.see_all("one of several results", waits)


async def deadline(op: Operation) -> None:
    """The option `timeout`: too short, or long enough."""
    allowed = op.seconds(0.5, 1.0)
    too_long = op.chance(0.6)
    takes = allowed * 6 if too_long else 0.0
    task = op.task(0)
    risks = op.task_risks(0)
    function: Any = actions.leaf_async if op.chance(0.5) else actions.leaf
    ref = function.options(timeout=allowed, max_retries=0).remote(task, 1, takes)
    if too_long:
        op.record.tasks[task].cancelled = True
        expect = Expect(errors=["TaskTimeoutError"], risks=risks)
    else:  # (it may have waited for its worker for longer)
        expect = Expect(mix(task, 1), errors=["TaskTimeoutError"], risks=risks)
    observation = await op.see("task with a deadline", ref, expect, task=task)
    if observation.error[:1] == ("TaskTimeoutError",):
        op.record.tasks[task].cancelled = True
        op.world.note("worker_exit", why="a task was over its timeout")  # one that cannot be interrupted


async def get_timeout(op: Operation) -> None:
    """`get` gives up, the task goes on, and is asked again."""
    ref, expect, task = _leaf(op, 5, op.seconds(2.0, 4.0))
    began = op.world.now()
    allowed = op.seconds(0.2, 1.0)
    patient = Expect(expect.value, errors=["GetTimeoutError"], risks=expect.risks)
    observation = op.record.open(op.index, "get_timeout: get with a timeout", patient, began)

    try:
        observation.got(await op.blocking(fw.get, ref, timeout=allowed), op.world.now())
    except Exception as error:
        observation.failed(error, op.world.now())
    await op.see("the same task, later", ref, expect, task=task)


def _tree(op: Operation, depth: int, how: str, most: int) -> Tree:
    retries = op.rng.choice([0, 2, 3])
    children = [_tree(op, depth - 1, how, most) for _ in range(op.rng.randint(1, most))] if depth else []
    chosen = op.rng.choice(["get", "await", "one by one"]) if how == "mixed" else how
    return [op.new_id(), chosen, op.seconds(0, 0.3) if op.chance(0.3) else 0.0, retries, children]


async def nested(op: Operation) -> None:
    """Tasks that start tasks and wait for them, to some depth."""
    tree = _tree(op, op.rng.randint(1, 3), op.rng.choice(["get", "await", "one by one", "mixed"]), 3)
    tasks = tree_tasks(tree)
    for task, parent, retries in tasks:
        op.record.tasks[task] = TaskFacts(retries, parent)
    # A child that fails makes its parent fail, by an exception: the one with the fewest retries decides.
    risks = [op.risk("task", retries) for retries in sorted({retries for _, _, retries in tasks})]
    risks.append(op.risk("object", owner="worker"))
    ref = actions.start(tree, 1)
    await op.see("nested tasks", ref, op.right(tree_value(tree, 1), risks), task=tree[0])


async def chain(op: Operation) -> None:
    """References as arguments: a chain, and what joins its links; intermediate ones are dropped."""
    retries = op.rng.choice([1, 3])
    risks = op.task_risks(retries)
    task = op.task(retries)
    refs: list[Any] = [actions.leaf.options(max_retries=retries).remote(task, 3, op.seconds(0, 0.5))]
    found = [mix(task, 3)]
    for _ in range(op.rng.randint(1, 6)):
        chosen = sorted(op.rng.sample(range(len(refs)), op.rng.randint(1, len(refs))))
        task = op.task(retries)
        function: Any = actions.join.options(max_retries=retries)
        refs.append(function.remote(task, *(refs[place] for place in chosen)))
        found.append(mix(task, *(found[place] for place in chosen)))
    kept = op.rng.randrange(len(refs))
    waits = [(refs[-1], op.right(found[-1], risks))]
    if kept != len(refs) - 1:
        waits.append((refs[kept], op.right(found[kept], risks)))
    del refs
    await op.see_all("link of a chain", waits)


async def failed_argument(op: Operation) -> None:
    """What depends on a task that raises, raises the same, and is not run."""
    bad = op.task(0)
    risks = op.task_risks(0)
    ref: Any = actions.refuse.options(max_retries=0).remote(bad, op.seconds(0, 0.3))
    task = op.task(0)
    top: Any = actions.join.options(max_retries=0).remote(task, ref, 1)
    del ref
    observation = await op.see("task with a failed argument", top, Expect(errors=["Refused"], risks=risks))
    if observation.error[:1] == ("Refused",):
        op.record.tasks[task].cancelled = True


async def crash(op: Operation) -> None:
    """A task that ends its worker: each time, or until an attempt within or beyond its retries."""
    retries = op.rng.choice([0, 1, 2])
    good = op.rng.randint(2, 3)
    counter: Any = actions.PLAIN.options(num_cpus=0).remote(op.actor("sync"))
    task = op.task(retries)
    risks = [op.risk("call"), op.risk("task", retries)]
    ref: Any
    if op.chance(0.5):
        for _ in range(retries + 1):
            op.world.note("worker_exit", why="a task ends its worker")
        ref = actions.crash.options(max_retries=retries).remote(task)
        expect = Expect(errors=["WorkerCrashedError", "NodeDiedError"], risks=risks)
        what = "task that ends its worker"
    else:
        for _ in range(good - 1):
            op.world.note("worker_exit", why="a task ends its worker")
        ref = actions.crash_until.options(max_retries=retries).remote(task, counter, good)
        lost = op.world.faults_possible or good > 1 + retries
        value = mix(task, good)
        expect = Expect(value, errors=["WorkerCrashedError", "NodeDiedError"] * lost, risks=risks)
        what = f"task that ends its worker until attempt {good} of {1 + retries}"
    await op.see(what, ref, expect, task=task)


# ---- cancels -----------------------------------------------------------------------------------------


def _cancelled(op: Operation, task: int, value: Any, retries: int) -> Expect:
    op.record.tasks[task].cancelled = True
    return Expect(value, errors=CANCELLED, risks=op.task_risks(retries))


async def cancel_queued(op: Operation) -> None:
    """Tasks that wait for room, or for an argument, are dropped."""
    first, first_expect, first_task = _leaf(op, 1, op.seconds(1, 2))
    retries = op.retries()
    task = op.task(retries)
    ref: Any = actions.join.options(max_retries=retries).remote(task, first, 4)
    expect = _cancelled(op, task, mix(task, first_expect.value, 4), retries)
    await op.a_moment(0.5)
    fw.cancel(ref, recursive=op.chance(0.5))
    await op.see("cancelled task that waits", ref, expect, task=task)
    await op.see("what it waited for", first, first_expect, task=first_task)


async def cancel_running(op: Operation) -> None:
    """A task that runs, blocking or not, is interrupted."""
    retries = op.retries()
    task = op.task(retries)
    function: Any = op.rng.choice([actions.leaf, actions.leaf_async])
    ref = function.options(max_retries=retries).remote(task, 1, op.seconds(1, 20))
    expect = _cancelled(op, task, mix(task, 1), retries)
    await op.a_moment(2)
    fw.cancel(ref)
    observation = await op.see("cancelled task that runs", ref, expect, task=task)
    await _not_late(op, observation, 10.0)


async def _not_late(op: Operation, observation: Observation, seconds: float) -> None:
    if not op.world.faults_possible and op.world.simulated:
        took = observation.ended - observation.began
        if took > seconds:
            op.wrong("slow cancel", f"it took {took:.3f} s: {observation!r}")


async def cancel_tree(op: Operation) -> None:
    """A task and all that it has started."""
    tree = _tree(op, 2, op.rng.choice(["get", "await"]), 2)
    for branch in tree[4]:
        for twig in branch[4]:
            twig[2] = op.seconds(5, 20)
    for task, parent, retries in tree_tasks(tree):
        op.record.tasks[task] = TaskFacts(retries, parent)
        op.record.tasks[task].cancelled = True
    risks = [op.risk("task", 0), op.risk("object", owner="worker")]
    ref = actions.start(tree, 1)
    await op.a_moment(3)
    fw.cancel(ref, recursive=op.chance(0.7))
    expect = Expect(tree_value(tree, 1), errors=CANCELLED, risks=risks)
    await op.see("cancelled tree of tasks", ref, expect, task=tree[0])


async def cancel_force(op: Operation) -> None:
    """The worker is ended along with the task."""
    retries = op.retries()
    task = op.task(retries)
    op.world.note("worker_exit", why="cancel(force=True)")
    ref: Any = actions.leaf.options(max_retries=retries).remote(task, 1, op.seconds(1, 20))
    expect = _cancelled(op, task, mix(task, 1), retries)
    others = [_leaf(op, place, 0.0) for place in range(3)]
    await op.a_moment(2)
    fw.cancel(ref, force=True)
    await op.see("task cancelled by force", ref, expect, task=task)
    await op.alongside(*(op.see("bystander", ref, expect, task=task) for ref, expect, task in others))


# ---- waiting for several -----------------------------------------------------------------------------


async def wait_some(op: Operation) -> None:
    """`wait` for the first ones, then for all."""
    started = [_leaf(op, place, op.seconds(0, 2)) for place in range(op.rng.randint(2, 6))]
    refs = [ref for ref, _, _ in started]
    wanted = op.rng.randint(1, len(refs))
    patience = op.world.patience if op.chance(0.6) else op.seconds(0.1, 1.0)
    done, rest = await op.blocking(fw.wait, refs, num_returns=wanted, timeout=patience)
    if done + rest != refs and sorted(done + rest) != sorted(refs):
        op.wrong("wait", f"of {refs} it gave {done} and {rest}")
    if len(done) > wanted or (patience == op.world.patience and len(done) < wanted):
        op.wrong("wait", f"{len(done)} done, {wanted} were wanted")
    if not all(ref.done() for ref in done):
        op.wrong("wait", f"not all of {done} are done")
    del done, rest, refs
    await op.alongside(*(op.see("task in wait", ref, expect, task=task) for ref, expect, task in started))


async def as_completed(op: Operation) -> None:
    """`asyncio.as_completed` gives each once."""
    started = [_leaf(op, place, op.seconds(0, 2)) for place in range(op.rng.randint(2, 6))]
    risks = [risk for _, expect, _ in started for risk in expect.risks]
    expect = Expect(sorted(expect.value for _, expect, _ in started), risks=risks)
    observation = op.record.open(op.index, f"{op.kind}: all", expect, op.world.now())
    refs = [ref for ref, _, _ in started]
    del started
    try:
        async with asyncio.timeout(op.world.patience):
            found = [await future for future in asyncio.as_completed([ref.as_future() for ref in refs])]
        observation.got(sorted(found), op.world.now())
    except TimeoutError as error:
        if type(error) is TimeoutError:
            observation.hung(op.world.now())
        else:
            observation.failed(error, op.world.now())
    except Exception as error:
        observation.failed(error, op.world.now())
