"""Operations with objects: put, passed on, borrowed, nested in others, kept by actors, spilled, dropped; and
streams of them."""

from __future__ import annotations

import asyncio
from typing import Any

import framework as fw
from framework._sim import actions
from framework._sim.ledger import LEDGER
from framework._sim.operation import CANCELLED, SMALL, Operation
from framework._sim.record import Expect, Risk, digest
from framework._sim.values import block, block_sum, item_value, mix

INLINE = 100 * 1024
FULL = ("ObjectStoreFullError",)


async def _put(op: Operation, size: int) -> tuple[Any, Any, Risk]:
    """A block that this driver puts: (reference, its value, its risk). In a coroutine, or in a thread."""
    data = block(op.rng.getrandbits(20), size)
    risk = op.risk("object", stored=size > INLINE)
    if op.chance(0.5):
        return fw.put(data), data, risk
    _, ref = await op.within("put", op.blocking(fw.put, data), Expect(any_value=True, risks=[risk]))
    return ref if ref is not None else fw.put(1), data if ref is not None else 1, risk


async def put(op: Operation) -> None:
    """A value, read by tasks as an argument or in a list, and here; the reference goes at a random moment."""
    ref, data, risk = await _put(op, op.size(0.6))
    if not hasattr(data, "nbytes"):
        return
    waits = []
    for _ in range(op.rng.randint(0, 4)):
        retries = op.retries()
        task = op.task(retries)
        risks = [risk, op.risk("task", retries)]
        if op.chance(0.5):
            found = actions.measure.options(max_retries=retries).remote(task, ref)
        else:
            seconds = op.seconds(0, 0.5)
            found = actions.measure_in.options(max_retries=retries).remote(task, [ref], seconds)
        waits.append((found, op.right(mix(task, block_sum(data)), risks)))
    if op.chance(0.5):
        waits.append((ref, op.right(data, [risk])))
    if op.chance(0.3):
        op.shelf.leave(op.index, ref, op.right(data, [risk]))
    del ref
    await op.see_all("what was put", waits)


async def shelf(op: Operation) -> None:
    """What another operation has left: read here, or by a task that is handed it."""
    found = None
    if op.index:
        place = op.rng.randrange(op.index)
        found = op.shelf.take(place) if op.chance(0.3) else op.shelf.look(place)
    else:
        op.rng.random()
    if found is None:
        data = block(op.index, op.rng.choice(SMALL))
        found = fw.put(data), op.right(data, [op.risk("object")])
        op.shelf.leave(op.index, *found)
    ref, expect = found
    retries = op.retries()
    task = op.task(retries)
    back: Any = actions.hand_back.options(max_retries=retries).remote(task, [ref])
    risks = [*expect.risks, op.risk("task", retries)]
    await op.see("what lay on the shelf", ref, expect)
    del ref
    _, refs = await op.fetch("it, handed back", back, Expect(any_value=True, risks=risks))
    del back
    for again in refs or []:
        await op.see("it, after that", again, Expect(expect.value, risks=risks))


async def made_again(op: Operation) -> None:
    """Results of tasks that lie in the store: passed on, and read late."""
    retries = op.rng.choice([1, 3, -1])
    task = op.task(retries, stored=True)
    size = op.rng.choice([110_000, 300_000])
    risks = op.task_risks(retries, stored=True)
    ref: Any = actions.make.options(max_retries=retries, scheduling_strategy="SPREAD").remote(task, size)
    reader = op.task(retries)
    top: Any = actions.measure.options(max_retries=retries, scheduling_strategy="SPREAD").remote(reader, ref)
    value = block(task, size)
    risks.append(op.risk("task", retries))
    await op.pause(0, 3)
    await op.see("reader of a result", top, op.right(mix(reader, block_sum(value)), risks), task=reader)
    if op.chance(0.3):
        op.shelf.leave(op.index, ref, op.right(value, risks))
    await op.see("stored result", ref, op.right(value, risks), task=task, blocking=op.chance(0.3))


async def borrow(op: Operation) -> None:
    """References that a worker owns, through several hands."""
    sizes = [op.size(0.4) for _ in range(op.rng.randint(1, 3))]
    deep = op.chance(0.4)
    retries = op.rng.choice([0, 3])
    task = op.task(retries)
    risks = [*op.task_risks(retries), op.risk("object", owner="worker", stored=max(sizes) > INLINE)]
    blocks = [block(mix(task, index), size) for index, size in enumerate(sizes)]
    ref: Any = actions.make_refs.options(max_retries=retries).remote(task, sizes, deep)
    anything = Expect(any_value=True, risks=risks)
    _, refs = await op.fetch("references that a task made", ref, anything)
    del ref
    if deep and refs:
        _, refs = await op.fetch("references in an object", refs[0], anything)
    if not refs:
        return
    if op.chance(0.5):
        again = op.task(retries)
        back: Any = actions.hand_back.options(max_retries=retries).remote(again, refs)
        del refs
        _, refs = await op.fetch("references handed back", back, anything)
        del back
        blocks.reverse()
        if not refs:
            return
    waits = []
    for place, (one, data) in enumerate(zip(refs, blocks, strict=True)):
        if op.chance(0.6):
            waits.append((one, op.right(data, risks)))
        elif op.chance(0.5):
            reader = op.task(retries)
            found = actions.measure_in.options(max_retries=retries).remote(reader, [refs[place]])
            waits.append((found, op.right(mix(reader, block_sum(data)), [*risks, op.risk("task", retries)])))
        one = None
    del refs, one
    await op.pause(0, 0.3)
    await op.see_all("borrowed", waits)


async def keep(op: Operation) -> None:
    """An actor keeps references beyond the call that brought them, after the driver has dropped its own."""
    actor: Any = actions.PLAIN.options(num_cpus=0).remote(op.actor("sync"))
    found = [await _put(op, op.size(0.4)) for _ in range(op.rng.randint(1, 3))]
    found = [(ref, data, risk) for ref, data, risk in found if hasattr(data, "nbytes")]
    risks = [op.risk("call"), *(risk for _, _, risk in found)]
    sums = [block_sum(data) for _, data, _ in found]
    kept = actor.keep.remote("a", [ref for ref, _, _ in found])
    blocks = [data for _, data, _ in found]
    del found
    is_kept = None
    if op.chance(0.5):
        is_kept = await op.see("call that keeps", kept, op.right(len(sums), risks))
    await op.pause(0, 1)
    later = [op.right(mix(*sums), risks), op.right(len(sums), risks)]
    await op.see("what an actor keeps", actor.read.remote("a"), later[0])
    if is_kept is None:
        is_kept = await op.see("call that keeps", kept, op.right(len(sums), risks))
    if not is_kept.ok:  # (for a reason that was permitted, or else that is the finding)
        for expect in later:
            expect.errors |= {"KeyError"}
    if op.chance(0.5):
        given = Expect(any_value=True, risks=risks, errors=later[0].errors)
        _, refs = await op.fetch("references that an actor gives", actor.give.remote("a"), given)
        waits = [(ref, op.right(data, risks)) for ref, data in zip(refs or [], blocks, strict=False)]
        del refs
        await op.see_all("given by an actor", waits)
        waits.clear()
    if op.chance(0.7):
        await op.see("call that drops", actor.drop.remote("a"), later[1])


async def owned_by_actor(op: Operation) -> None:
    """What an actor has put can be read as long as it lives, and not after that."""
    actor: Any = actions.PLAIN.options(num_cpus=0).remote(op.actor("sync"))
    sizes = [op.size(0.4) for _ in range(op.rng.randint(1, 3))]
    risks = [op.risk("call"), op.risk("object", owner="actor", stored=max(sizes) > INLINE)]
    given = Expect(any_value=True, risks=risks)
    _, refs = await op.fetch("references of an actor", actor.make.remote("a", op.index, sizes), given)
    if not refs:
        return
    blocks = [block(mix(op.index, index), size) for index, size in enumerate(sizes)]
    await op.see("an actor's object", refs[0], op.right(blocks[0], risks))
    gone = op.chance(0.5)
    if gone:
        risk = Expect(any_value=True, risks=[op.risk("control")])
        await op.within("kill", op.blocking(fw.kill, actor), risk)
    errors = ("OwnerDiedError",) if gone else ()
    waits = [(ref, op.right(data, risks, errors)) for ref, data in zip(refs, blocks, strict=True)]
    del refs
    await op.see_all("object of an actor that may be gone", waits)


async def spill(op: Operation) -> None:
    """More than the store holds, read in another order."""
    capacity = op.world.store_bytes
    if not capacity:
        return
    size = max(110_000, capacity // 10)
    order = list(range(14))
    op.rng.shuffle(order)
    risks = [op.risk("object", stored=True)]
    refs, sums = [], []
    for place in range(14):
        data = block(mix(op.index, place), size)
        allowed = Expect(any_value=True, risks=risks)
        _, ref = await op.within("put into a full store", op.blocking(fw.put, data), allowed)
        refs.append(ref)
        sums.append(digest(data))
        del ref, data
    for place in order:
        if refs[place] is not None:
            await op.see("spilled", refs[place], Expect(sums[place], risks=risks), blocking=True)
            if place % 2:
                refs[place] = None


# ---- streams -----------------------------------------------------------------------------------------


def _start_stream(op: Operation, seconds: float, fail_at: int, **options: Any) -> tuple[Any, int, int, int]:
    """(the generator, its task, number of items, their size)"""
    retries = op.rng.choice([0, 3])
    count, size = op.rng.randint(1, 12), op.rng.choice([0, 0, 5_000, 120_000])
    task = op.task(retries, stored=size > INLINE)
    function: Any = op.rng.choice([actions.stream, actions.stream_async])
    generator = function.options(max_retries=retries, **options).remote(task, count, size, seconds, fail_at)
    return generator, task, count, size


def _stream_risks(op: Operation, task: int) -> list[Risk]:
    """Of its items: they are made again as often as the task is."""
    return [op.risk("task", 0), op.risk("object", op.record.tasks[task].retries, stored=True)]


async def _next(op: Operation, generator: Any, expect: Expect) -> Any:
    """The next reference; None when there is none (or none came)."""
    return (await op.within("next item", _advance(generator), expect))[1]


async def _advance(generator: Any) -> Any:
    return await anext(generator, None)


async def stream(op: Operation) -> None:
    """A whole stream, of good items and perhaps an exception; items are read at once, or in the end."""
    fail_at = op.rng.choice([-1, -1, 0, 2, 5])
    generator, task, count, size = _start_stream(op, op.seconds(0, 0.2), fail_at)
    risks = _stream_risks(op, task)
    expect = Expect(any_value=True, risks=risks)
    later = []
    seen = 0
    good = count if not 0 <= fail_at < count else fail_at
    broken = False
    while (ref := await _next(op, generator, expect)) is not None:
        if seen < good:
            item = op.right(item_value(task, seen, size), risks)
        else:
            item = Expect(errors=["Refused"], risks=risks)
        seen += 1
        if op.chance(0.5):
            observation = await op.see(f"item {seen - 1}", ref, item)
            broken = broken or (observation.outcome == "error" and "Refused" not in observation.error)
        else:
            later.append((ref, item))
        del ref
        if seen > count + 2:
            break
    whole = good + (good < count)
    found = await op.see_all("item, late", later)
    broken = broken or any(o.outcome == "error" and "Refused" not in o.error for o in found)
    if seen != whole and not broken and not op.world.faults_possible:
        op.wrong("stream", f"task {task}: {seen} items came of {whole}")


async def stream_part(op: Operation) -> None:
    """A stream that is left in its middle: closed, dropped, or cancelled."""
    generator, task, count, size = _start_stream(op, op.seconds(0, 1.0), -1)
    risks = _stream_risks(op, task)
    op.record.tasks[task].cancelled = True
    taken = op.rng.randint(0, count)
    how = op.rng.choice(["close", "drop", "cancel"])
    kept = []
    for index in range(taken):
        ref = await _next(op, generator, Expect(any_value=True, risks=risks))
        if ref is None:
            break
        kept.append((ref, op.right(item_value(task, index, size), risks)))
        del ref
    await op.pause(0, 0.5)
    if how == "close":
        generator.close()
        if await _next(op, generator, Expect(any_value=True)) is not None:
            op.wrong("stream", "an item came after close()")
    elif how == "cancel":
        fw.cancel(generator)
        for _ in range(count + 2):
            # What had arrived is still given, then the error, then nothing.
            ref = await _next(op, generator, Expect(any_value=True, errors=CANCELLED, risks=risks))
            if ref is None:
                break
            await op.see("item after a cancel", ref, Expect(any_value=True, errors=CANCELLED, risks=risks))
            del ref
    del generator
    await op.see_all("item of a stream that is left", kept)


async def stream_slowly(op: Operation) -> None:
    """The producer does not run further ahead than its window."""
    window = op.rng.randint(1, 4)
    generator, task, count, size = _start_stream(op, 0.0, -1, generator_window=window)
    risks = _stream_risks(op, task)
    for taken in range(count):
        await op.pause(0, 0.3)
        items = LEDGER.items.get(task, [])
        ahead = max((item.index + 1 for item in items), default=0) - taken
        # (One more than it may send: that it waits with.)
        if ahead > window + 1 and not op.world.faults_possible:
            op.wrong("backpressure", f"task {task} was {ahead} items ahead, with a window of {window}")
        ref = await _next(op, generator, Expect(any_value=True, risks=risks))
        if ref is None:
            break
        await op.see(f"item {taken}", ref, op.right(item_value(task, taken, size), risks))
        del ref


async def stream_shared(op: Operation) -> None:
    """A generator in the hands of tasks: each item goes to one of them."""
    generator, task, count, size = _start_stream(op, op.seconds(0, 0.1), -1)
    risks = _stream_risks(op, task)
    consumers = []
    for _ in range(op.rng.randint(1, 3)):
        consumer = op.task(0)
        consumers.append(actions.consume.options(max_retries=0, num_cpus=0).remote(consumer, generator, -1))
    if op.chance(0.5):
        del generator
    expect = Expect(any_value=True, risks=risks)
    found = await asyncio.gather(*(op.fetch("consumer of a stream", ref, expect) for ref in consumers))
    del consumers
    if all(observation.ok for observation, _ in found):
        items = sorted(repr(digest(item)) for _, values in found for item in values)
        right = sorted(repr(digest(item_value(task, index, size))) for index in range(count))
        if items != right:
            op.wrong("shared stream", f"task {task}: the consumers have {items} instead of {right}")
