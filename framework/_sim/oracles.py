"""The judgement over a random program: what it saw, what really ran, and what went wrong, held against what
is documented. Nothing is asked of anybody here; all of it is data."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from framework._sim.ledger import DONE, LEDGER, RUNNING, Call, Incarnation, Ledger
from framework._sim.permits import LINGER, UNSURE, Damage, permitted
from framework._sim.record import ActorFacts, Observation, Record
from framework._sim.world import Happening, World


@dataclasses.dataclass(frozen=True)
class Violation:
    """Something that may not be. `text` has all that is needed to understand it."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def judge(world: World, ledger: Ledger = LEDGER) -> list[Violation]:
    """All violations, after the program has ended (or its driver has)."""
    found = list(of_observations(world.seen, world.happened))
    if world.simulated:
        found += of_tasks(world.seen, ledger, world.happened)
        found += of_actors(world.seen, ledger, world.happened)
    return found


# ---- what the program saw ----------------------------------------------------------------------------


def of_observations(record: Record, happened: Sequence[Happening]) -> Iterator[Violation]:
    """Every wait ended, in the right value or a permitted error."""
    for op, kind, text in record.complaints:
        yield Violation(kind, f"operation {op}, {text}")
    for observation in record.observations:
        problem = _of_observation(observation, happened, record.finished)
        if problem is not None:
            kind, why = problem
            yield Violation(kind, f"{why}{observation!r}{_around(happened, observation)}")


def _of_observation(
    observation: Observation, happened: Sequence[Happening], finished: bool
) -> tuple[str, str] | None:
    expect = observation.expect
    if observation.outcome == "value":
        if expect.any_value or _same(observation.value, expect.value):
            return None
        return "wrong value", ""
    if observation.outcome == "error":
        allowed = permitted(expect, happened, observation.ended)
        if allowed.intersection(observation.error):
            return None
        return "error without leave", f"permitted were {sorted(allowed) or 'none'}; "
    if observation.outcome == "hung":
        return "no answer", ""
    if finished:
        return "never ended", ""
    return None  # (the driver was killed in the middle of it)


def _same(value: object, expected: object) -> bool:
    return type(value) is type(expected) and value == expected


def _around(happened: Sequence[Happening], observation: Observation) -> str:
    since = min([risk.since for risk in observation.expect.risks], default=observation.began)
    events = [
        f"{when:.3f} {kind} {dict(facts)}"
        for when, kind, facts in happened
        if since - LINGER <= when <= observation.ended
    ]
    return f"; what had happened: {events[-12:]}" if events else "; nothing had happened"


# ---- what ran: tasks ---------------------------------------------------------------------------------


def of_tasks(record: Record, ledger: Ledger, happened: Sequence[Happening]) -> Iterator[Violation]:
    """Retries are kept, nothing runs twice at a time, and what gave a value has run to its end."""
    for task, attempts in ledger.attempts.items():
        facts = record.tasks.get(task)
        if facts is None:
            yield Violation("unknown task", f"nobody asked for {attempts}")
            continue
        if facts.retries >= 0:
            times = max(1, len(ledger.attempts.get(facts.parent, ()))) if facts.parent else 1
            most = (1 + facts.retries) * times
            if len(attempts) > most:
                by = f" for each of the {times} attempts of task {facts.parent}" if facts.parent else ""
                text = f"at most {1 + facts.retries} attempts{by} were allowed: {attempts}"
                text += _at(happened, attempts[0].began, attempts[-1].began)
                yield Violation("too many attempts", text)
        if facts.parent and len(ledger.attempts.get(facts.parent, ())) > 1:
            continue  # (two attempts of its parent may each have one under way)
        for before, after in itertools.pairwise(attempts):
            if before.state != RUNNING and before.ended > after.began:
                # (A generator that has lost an item runs again for that, while it makes the rest.)
                again = facts.stored and Damage(happened, before.began, after.began).spilled > 0
                if not again and not _cut_off(happened, before.began, after.began):
                    yield Violation("a task ran twice at a time", f"{before!r} and {after!r}")
    for observation in record.observations:
        if observation.task and observation.ok and not observation.expect.any_value:
            attempts = ledger.attempts.get(observation.task, [])
            if not any(attempt.state == DONE for attempt in attempts):
                text = f"no attempt came to its end: {attempts}; {observation!r}"
                yield Violation("a value out of nothing", text)


def _cut_off(happened: Sequence[Happening], since: float, until: float) -> bool:
    """Whether somebody may have been declared dead who was not."""
    damage = Damage(happened, since, until)
    slow = any(kind == "slow" and when <= until for when, kind, _ in happened)
    return damage.resets > 0 or slow


def _at(happened: Sequence[Happening], since: float, until: float) -> str:
    events = [
        f"{when:.3f} {kind} {dict(facts)}"
        for when, kind, facts in happened
        if since - LINGER <= when <= until
    ]
    return f"; what had happened: {events[-12:]}"


# ---- what ran: actors --------------------------------------------------------------------------------


def of_actors(record: Record, ledger: Ledger, happened: Sequence[Happening]) -> Iterator[Violation]:
    """Order, at most once, one life at a time, one actor of a name."""
    names: dict[str, list[int]] = {}
    for actor, lives in ledger.lives.items():
        facts = record.actors.get(actor)
        if facts is None:
            yield Violation("unknown actor", f"nobody asked for {lives}")
            continue
        calls = ledger.calls.get(actor, [])
        yield from _lives(facts, lives, calls, happened)
        yield from _repeated(actor, facts, calls, happened)
        if facts.kind == "sync":
            yield from _one_by_one(actor, facts, calls)
        if facts.name:
            names.setdefault(facts.name, []).append(actor)
    for name, actors in names.items():
        yield from _of_name(name, actors, ledger, happened)


def _lives(
    facts: ActorFacts, lives: list[Incarnation], calls: list[Call], happened: Sequence[Happening]
) -> Iterator[Violation]:
    # What moves from a node that is drained moves at no cost.
    moved = sum(kind == "node_removed" for when, kind, _ in happened if when <= lives[-1].born)
    # Nor does it cost one when a node is lost, or declared dead while it lives, before the head has heard
    # that the actor was made there (its callers have not either): it was still being started.
    called = {call.life for call in calls}
    moved += sum(life.number not in called and _cut_off_node(happened, life) for life in lives)
    # The head counts restarts; what its disk has lost is not counted.
    moved += sum(
        kind == "disk_lost" and bool(what.get("head"))
        for when, kind, what in happened
        if when <= lives[-1].born
    )
    if facts.restarts >= 0 and len(lives) > 1 + facts.restarts + moved:
        text = f"at most {facts.restarts} restarts were allowed: {lives}"
        yield Violation("too many restarts", text + _at(happened, lives[0].born, lives[-1].born))
    for life, following in itertools.pairwise(lives):
        late = [call for call in calls if call.life == life.number and call.began > following.born]
        if late and not _cut_off(happened, life.born, late[-1].began):
            text = f"{life!r} and {following!r}: the first one still began {late[:5]}"
            yield Violation("two lives at a time", text + _at(happened, life.born, late[-1].began))


def _cut_off_node(happened: Sequence[Happening], life: Incarnation) -> bool:
    """Whether the node of this life was lost after its birth, or may have been declared dead around it."""
    for when, kind, facts in happened:
        if life.node not in (facts.get("node"), facts.get("other")):
            continue
        if kind == "crash" and facts.get("process") == "node" and when >= life.born:
            return True
        if kind in UNSURE and facts.get("process", "node") == "node":
            if facts.get("until", math.inf) + LINGER >= life.born:
                return True
    return False


def _repeated(
    actor: int, facts: ActorFacts, calls: list[Call], happened: Sequence[Happening]
) -> Iterator[Violation]:
    if facts.retries < 0:
        return
    times: dict[tuple[int, int], list[Call]] = {}
    for call in calls:
        times.setdefault((call.caller, call.number), []).append(call)
    for repeated in times.values():
        if len(repeated) > 1 + facts.retries:
            text = f"max_task_retries={facts.retries}, and it ran {len(repeated)} times: {repeated}"
            text += _at(happened, repeated[0].began, repeated[-1].began)
            yield Violation("a call ran too often", text)


def _one_by_one(actor: int, facts: ActorFacts, calls: list[Call]) -> Iterator[Violation]:
    latest: dict[tuple[int, int], Call] = {}
    begun: set[tuple[int, int, int]] = set()
    running: dict[int, Call] = {}
    for call in calls:
        # (Calls whose answers were lost with their connection are made again, in order, where
        # `max_task_retries` allows it: docs/actors.md. How often is for `_repeated` to judge.)
        before, this = latest.get((call.life, call.caller)), (call.life, call.caller, call.number)
        if before is not None and before.number >= call.number and this not in begun and not facts.unordered:
            yield Violation("order of calls", f"{before!r} came before {call!r}")
        begun.add(this)
        if before is None or before.number < call.number:
            latest[(call.life, call.caller)] = call
        other = running.get(call.life)
        if other is not None and (other.state == RUNNING or other.ended > call.began):
            yield Violation("two calls at a time", f"in an actor that takes one by one: {other!r}, {call!r}")
        running[call.life] = call


def _of_name(
    name: str, actors: Iterable[int], ledger: Ledger, happened: Sequence[Happening]
) -> Iterator[Violation]:
    """Of two actors of the same name, the one that was born first has ended before the other was born: it
    begins no calls any more."""
    lives = sorted((life for actor in actors for life in ledger.lives[actor]), key=lambda life: life.born)
    for life, following in itertools.pairwise(lives):
        if life.actor == following.actor:
            continue
        late = [
            call
            for call in ledger.calls.get(life.actor, [])
            if call.life == life.number and call.began > following.born
        ]
        if late and not _cut_off(happened, life.born, late[-1].began):
            yield Violation("two actors of one name", f"{name!r}: {life!r} and {following!r}: {late[:5]}")
