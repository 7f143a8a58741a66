"""Operations with actors: their kinds, calls and orders, restarts, ends, handles, and names."""

from __future__ import annotations

import asyncio
from typing import Any

import framework as fw
from framework._sim import actions
from framework._sim.operation import CANCELLED, Operation
from framework._sim.record import NOTHING, Expect, Risk
from framework._sim.values import item_value, mix

DIED = ("ActorDiedError",)
UNAVAILABLE = ("ActorUnavailableError",)


class Subject:
    """An actor under test."""

    def __init__(self, op: Operation, kind: str, restarts: int = 0, retries: int = 0, **options: Any) -> None:
        self.op = op
        self.kind = kind
        self.restarts = restarts
        self.retries = retries
        self.deaths = 0  #: that the program itself means it to die
        self.actor = op.actor(kind, restarts, retries, options.get("name", ""))
        if kind == "threads":
            options["max_concurrency"] = op.rng.randint(2, 4)
        options.setdefault("num_cpus", op.rng.choice([0, 0, 0.1, 0.2]))
        if op.chance(0.5):  # (else nearly all are on the node of their caller)
            options.setdefault("scheduling_strategy", "SPREAD")
        actor_class = actions.ASYNC if kind == "async" else actions.PLAIN
        self.since = op.world.now()
        made = actor_class.options(max_restarts=restarts, max_task_retries=retries, **options)
        self.handle = made.remote(self.actor, op.seconds(0, 0.5) if op.chance(0.2) else 0.0)
        self._numbers: dict[int, int] = {}

    def risk(self) -> Risk:
        # (Since it was made: a call may meet the end of an earlier life.)
        retries, restarts = (
            most if most < 0 else max(0, most - self.deaths) for most in (self.retries, self.restarts)
        )
        return Risk("call", self.since, retries=retries, restarts=restarts)

    def call(self, caller: int, x: int, seconds: float = 0.0, what: str = "") -> tuple[Any, Expect]:
        """The next call of this caller."""
        number = self._numbers[caller] = self._numbers.get(caller, -1) + 1
        ref = self.handle.step.remote(caller, number, x, seconds, what)
        if what == "raise":
            return ref, Expect(errors=["Refused"], risks=[self.risk()])
        return ref, self.op.right(mix(self.actor, caller, number, x), [self.risk()])

    def made(self, caller: int) -> int:
        """How many calls it has made."""
        return self._numbers.get(caller, -1) + 1


def _kind(op: Operation) -> str:
    return op.rng.choice(["sync", "sync", "async", "threads"])


async def calls(op: Operation) -> None:
    """Several callers, some of whose calls raise or take their time; all are answered, in order."""
    subject = Subject(op, _kind(op), op.rng.choice([0, 0, 1, -1]), op.rng.choice([0, 0, 2, -1]))
    callers = list(range(op.rng.randint(1, 3)))
    total = 0
    waits: list[tuple[Any, Expect]] = []
    for _ in range(op.rng.randint(1, 5)):
        caller = op.rng.choice(callers)
        for _ in range(op.rng.randint(1, 5)):
            what = "raise" if op.chance(0.1) else ""
            waits.append(subject.call(caller, total, op.seconds(0, 0.3) if op.chance(0.3) else 0.0, what))
            total += what == ""
        if op.chance(0.3):
            await op.see("call", *waits.pop(op.rng.randrange(len(waits))))
    observations = await op.see_all("call", waits)
    waits.clear()
    expect = Expect(any_value=True, risks=[subject.risk()])
    _, tally = await op.fetch("tally", subject.handle.tally.remote(), expect)
    if tally is not None and not op.world.faults_possible and all(o.ok or o.error for o in observations):
        _check_tally(op, subject, callers, tally, total)


def _check_tally(
    op: Operation, subject: Subject, callers: list[int], tally: list[list[int]], total: int
) -> None:
    if len(tally) != total:
        op.wrong("calls lost or doubled", f"{total} calls were answered, {len(tally)} were made: {tally}")
    for caller in callers:
        numbers = [number for by, number in tally if by == caller]
        if subject.kind == "sync" and numbers != sorted(numbers):
            op.wrong("order of calls", f"those of caller {caller} were made in this order: {numbers}")
        if len(set(numbers)) != len(numbers):
            op.wrong("calls doubled", f"those of caller {caller}: {numbers}")


async def calls_singly(op: Operation) -> None:
    """Calls one after the other, whose answers are read by who waits for them: a loop, or a thread, while
    others come in between."""
    subject = Subject(op, _kind(op), op.rng.choice([0, 0, 1, -1]), op.rng.choice([0, 0, 2, -1]))
    for x in range(op.rng.randint(8, 25)):
        what = "raise" if op.chance(0.05) else ""
        seconds = op.seconds(0, 0.3) if op.chance(0.1) else 0.0
        waits = [subject.call(0, x, seconds, what)]
        if op.chance(0.1):
            waits += [subject.call(0, x) for _ in range(op.rng.randint(1, 3))]
            await op.see_all("calls in between", waits)
        else:
            await op.see("single call", *waits[0], blocking=op.chance(0.2))


async def late_arguments(op: Operation) -> None:
    """Calls whose arguments are still to come: a sync actor keeps the order all the same."""
    subject = Subject(op, _kind(op))
    waits = []
    for place in range(op.rng.randint(2, 6)):
        if op.chance(0.4):
            task = op.task(3)
            late = actions.leaf.remote(task, place, op.seconds(0.1, 1.0))
            number = subject._numbers[0] = subject.made(0)
            ref = subject.handle.step.remote(0, number, late)
            value = mix(subject.actor, 0, number, mix(task, place))
            waits.append((ref, op.right(value, [subject.risk(), op.risk("task", 3)])))
            del late
        else:
            waits.append(subject.call(0, place))
    await op.see_all("call with a late argument", waits)


async def cancel_calls(op: Operation) -> None:
    """Calls are cancelled, queued or running; the actor lives on, and all others are answered."""
    subject = Subject(op, _kind(op))
    waits = []
    for place in range(op.rng.randint(2, 6)):
        ref, expect = subject.call(0, place, op.seconds(0, 3))
        if op.chance(0.5):
            expect = Expect(expect.value, errors=CANCELLED, risks=expect.risks)
            if op.chance(0.5):
                await op.pause(0, 2)
            fw.cancel(ref)
        waits.append((ref, expect))
    waits.append(subject.call(0, 99))
    await op.see_all("call, perhaps cancelled", waits)


async def restart(op: Operation) -> None:
    """The actor's process ends in the middle of a call, once; it is started again."""
    kind = _kind(op)
    restarts, retries = op.rng.choice([1, 2, -1]), op.rng.choice([0, 1, -1])
    subject = Subject(op, kind, restarts, retries)
    subject.deaths = 1
    waits = [subject.call(0, place) for place in range(op.rng.randint(0, 3))]
    deadly, expect = subject.call(0, 77, 0.0, "die once")
    waits.append((deadly, expect))
    waits += [subject.call(0, place) for place in range(op.rng.randint(0, 3))]
    if retries == 0:
        # Of what was under way nobody knows whether it has run.
        waits = [(ref, Expect(e.value, errors=UNAVAILABLE, risks=e.risks)) for ref, e in waits]
    place = next(index for index, (ref, _) in enumerate(waits) if ref is deadly)
    if retries == 0:
        waits[place] = deadly, Expect(errors=UNAVAILABLE, risks=expect.risks)
        if op.world.faults_possible:  # it may have been in its second life by then
            waits[place] = deadly, Expect(expect.value, errors=UNAVAILABLE, risks=expect.risks)
    del deadly
    await op.see_all("call around a death", waits)
    waits.clear()
    await op.see("call after a death", *subject.call(1, 5))


async def die_for_good(op: Operation) -> None:
    """It dies in one and the same call as often as that is made, until no restart is left."""
    restarts = op.rng.choice([0, 1, 2])
    retries = op.rng.choice([0, -1])
    subject = Subject(op, _kind(op), restarts, retries)
    errors = (*DIED, *UNAVAILABLE)
    deaths = 1 + restarts if retries else 1
    ref, expect = subject.call(0, 1, 0.0, "die")
    await op.see("deadly call", ref, Expect(errors=errors, risks=expect.risks))
    ref, expect = subject.call(0, 2)
    if deaths > restarts:
        await op.see("call of the dead", ref, Expect(errors=DIED, risks=expect.risks))
    else:
        await op.see("call of the living", ref, expect)


async def kill(op: Operation) -> None:
    """`kill`, with calls before and behind it."""
    no_restart = op.chance(0.6)
    restarts = op.rng.choice([0, 1, -1])
    subject = Subject(op, _kind(op), restarts, op.rng.choice([0, 1]))
    before = [subject.call(0, place, op.seconds(0, 1)) for place in range(op.rng.randint(0, 4))]
    if op.chance(0.5):
        await op.pause(0, 1)
    errors = (*DIED, *UNAVAILABLE)
    waits = [(ref, Expect(expect.value, errors=errors, risks=expect.risks)) for ref, expect in before]
    before.clear()
    control = Expect(any_value=True, risks=[op.risk("control")])
    killed, _ = await op.within("kill", op.blocking(fw.kill, subject.handle, no_restart=no_restart), control)
    subject.deaths += not no_restart  # that counts as one
    after = [subject.call(1, place) for place in range(2)]
    if killed.ok and no_restart:
        waits += [(ref, Expect(errors=DIED, risks=expect.risks)) for ref, expect in after]
    else:  # (its process may still have answered)
        later = UNAVAILABLE if restarts else (*DIED, *UNAVAILABLE)
        waits += [(ref, Expect(e.value, errors=later, risks=e.risks)) for ref, e in after]
    after.clear()
    await op.see_all("call around a kill", waits)


async def leave(op: Operation) -> None:
    """It ends itself, by `exit_actor` or when it is asked to terminate."""
    subject = Subject(op, op.rng.choice(["sync", "sync", "async"]), op.rng.choice([0, 1]))
    ref, expect = subject.call(0, 1)
    # (An async one may be at it when the next call ends the actor.)
    waits = [(ref, Expect(expect.value, errors=DIED * (subject.kind == "async"), risks=expect.risks))]
    if op.chance(0.5):
        ref, expect = subject.call(0, 2, 0.0, "leave")
        waits.append((ref, Expect(errors=DIED, risks=expect.risks)))
    else:
        ref = subject.handle.__ray_terminate__.remote()
        waits.append((ref, Expect(any_value=True, errors=DIED, risks=[subject.risk()])))
    *_, end = await op.see_all("call that ends an actor", waits)
    waits.clear()
    ref, expect = subject.call(0, 3)
    # (If it was lost with its node, before it could end itself, it is started again.)
    value = NOTHING if end.ok or DIED[0] in end.error else expect.value
    await op.see("call after an end", ref, Expect(value, errors=DIED, risks=expect.risks))


async def constructor(op: Operation) -> None:
    """An actor whose constructor raises."""
    since = op.world.now()
    actor = op.actor("sync")
    actor_class: Any = actions.PLAIN
    handle = actor_class.options(num_cpus=0).remote(actor, 0.0, True)
    expect = Expect(errors=DIED, risks=[Risk("call", since)])
    waits = [(handle.step.remote(0, number, 1), expect) for number in (0, 1)]
    del handle
    await op.see_all("call of what could not be made", waits)


async def handles(op: Operation) -> None:
    """Handles in the hands of tasks; the actor lives as long as any of them."""
    subject = Subject(op, _kind(op))
    waits = []
    for place in range(op.rng.randint(1, 3)):
        count, task = op.rng.randint(1, 5), op.task(0)
        caller = 10 + place
        value = [mix(subject.actor, caller, number, 7) for number in range(count)]
        ref: Any = actions.call_through.options(max_retries=0).remote(task, subject.handle, caller, count, 7)
        waits.append((ref, op.right(value, [op.risk("task"), subject.risk()])))
        del ref
    other = Subject(op, _kind(op))
    x, relayed = op.rng.randrange(100), mix(other.actor, 3)
    there = mix(subject.actor, relayed, 0, x)
    ref = other.handle.relay.remote(3, 0, x, subject.handle)
    waits.append((ref, op.right(mix(mix(other.actor, 3, 0, x), there), [subject.risk(), other.risk()])))
    del ref
    if op.chance(0.6):
        subject.handle = other.handle = None
    await op.see_all("call through another's handle", waits)


async def actor_stream(op: Operation) -> None:
    """A method that is a generator."""
    subject = Subject(op, _kind(op))
    items, size = op.rng.randint(1, 8), op.rng.choice([0, 5_000, 120_000])
    generator = subject.handle.count.remote(0, 0, subject.actor, items, size)
    risks = [subject.risk(), op.risk("object", stored=size > 100 * 1024)]
    seen = 0
    while True:
        expect = Expect(any_value=True, risks=risks)
        _, ref = await op.within("next item", _advance(generator), expect)
        if ref is None:
            break
        await op.see(f"item {seen}", ref, op.right(item_value(subject.actor, seen, size), risks))
        del ref
        seen += 1
        if seen > items + 1:
            break
    if seen != items and not op.world.faults_possible:
        op.wrong("stream", f"{seen} items came of {items}")


async def _advance(generator: Any) -> Any:
    return await anext(generator, None)


# ---- names -------------------------------------------------------------------------------------------


def _name(op: Operation) -> str:
    return f"actor-{op.index}-{op.rng.getrandbits(32):08x}"


async def named_race(op: Operation) -> None:
    """Several want to make an actor of one name, or to use whichever is there: all have the same one."""
    name = _name(op)
    actor = op.actor("sync", name=name)
    actor_class: Any = actions.PLAIN.options(name=name, get_if_exists=True, num_cpus=0)
    count = op.rng.randint(2, 4)
    in_threads = op.chance(0.5)
    risk = op.risk("call")

    async def get_one() -> Any:
        await op.pause(0, 0.05)
        return await op.blocking(actor_class.remote, actor) if in_threads else actor_class.remote(actor)

    expect = Expect(any_value=True, risks=[risk, op.risk("control")])
    found = await asyncio.gather(*(op.within("make or find", get_one(), expect) for _ in range(count)))
    got = [handle for _, handle in found if handle is not None]
    del found
    waits = [
        (handle.step.remote(caller, 0, 1), op.right(mix(actor, caller, 0, 1), [risk]))
        for caller, handle in enumerate(got)
    ]
    task = op.task(0)
    ref: Any = actions.find_and_call.options(max_retries=0).remote(task, name, 50, 1)
    await op.see_all("call of a shared actor", waits)
    waits.clear()
    # (The task may have looked before the first of them was known to the head.)
    value = Expect(mix(actor, 50, 0, 1), errors=["ValueError"], risks=[risk, op.risk("task")])
    await op.see("task that finds an actor by name", ref, value, task=task)
    if got and not op.world.faults_possible:
        anything = Expect(any_value=True, risks=[risk])
        tally = await op.see("tally of a shared actor", got[0].tally.remote(), anything)
        if tally.ok and len(tally.value) < len(got):
            op.wrong("two actors of one name", f"{name}: {len(got)} calls, one has had {tally.value}")


async def named_once(op: Operation) -> None:
    """Two actors of one name: one of them is refused. Killed, it makes room for another."""
    name = _name(op)
    first, second = op.actor("sync", name=name), op.actor("sync", name=name)
    actor_class: Any = actions.PLAIN.options(name=name, num_cpus=0)
    one, two = actor_class.remote(first), actor_class.remote(second)
    risks = [op.risk("call"), op.risk("control")]
    waits = [
        (handle.step.remote(0, 0, 1), op.right(mix(actor, 0, 0, 1), risks, ["ActorAlreadyExistsError"]))
        for handle, actor in ((one, first), (two, second))
    ]
    found = await op.see_all("call of one of two actors of the same name", waits)
    waits.clear()
    if sum(observation.ok for observation in found) == 2 or (
        sum("ActorAlreadyExistsError" in observation.error for observation in found) == 2
    ):
        op.wrong("names", f"of two actors named {name!r} not exactly one was made: {found}")
    if not (found[0].ok or found[1].ok):
        return
    living = one if found[0].ok else two
    del one, two
    control = Expect(any_value=True, risks=[op.risk("control")])
    killed, _ = await op.within("kill", op.blocking(fw.kill, living), control)
    if not killed.ok:
        return
    third = op.actor("sync", name=name)
    made = Expect(any_value=True, risks=[op.risk("control")])
    _, handle = await op.within("make again", op.blocking(actor_class.remote, third), made)
    if handle is not None:
        right = op.right(mix(third, 0, 0, 2), [op.risk("call")])
        await op.see("call of the next of that name", handle.step.remote(0, 0, 2), right)


async def detached(op: Operation) -> None:
    """A detached actor outlives its handles, is found by name, and ends when it is killed."""
    name = _name(op)
    subject = Subject(op, _kind(op), op.rng.choice([0, 1]), 0, name=name, lifetime="detached")
    await op.see("call of a detached actor", *subject.call(0, 1))
    subject.handle = None
    await op.pause(0, 2)
    lost = ["ValueError"] if op.world.faults_possible else []
    control = Expect(any_value=True, errors=lost, risks=[op.risk("control"), subject.risk()])
    _, handle = await op.within("get_actor", op.blocking(fw.get_actor, name), control)
    if handle is None:
        return
    subject.handle = handle
    del handle
    await op.see("call of a detached actor that was found", *subject.call(1, 1))
    await op.within("kill", op.blocking(fw.kill, subject.handle), control)
    ref, expect = subject.call(1, 2)
    await op.see("call of a killed detached actor", ref, Expect(errors=DIED, risks=expect.risks))
