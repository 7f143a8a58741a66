"""ActorPool: order, failures, deaths, timeouts, one call per actor, in scripts and coroutines."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import framework as fw
from framework.exceptions import ActorDiedError
from framework.util import ActorPool
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = 20


@fw.remote(num_cpus=0)
class Hub:
    """Says when a call of a worker may end, and knows how many a worker has at a time."""

    def __init__(self) -> None:
        self.gates: dict[Any, asyncio.Event] = {}
        self.order: list[Any] = []

    async def wait(self, item: Any) -> None:
        self.order.append(item)
        await self.gates.setdefault(item, asyncio.Event()).wait()

    async def open(self, *items: Any) -> None:
        for item in items:
            self.gates.setdefault(item, asyncio.Event()).set()

    async def entered(self) -> list[Any]:
        return self.order


@fw.remote(num_cpus=0)
class Worker:
    """Async, so that a pool that sends it two calls at a time is caught."""

    def __init__(self, hub: Any = None) -> None:
        self.hub = hub
        self.busy = 0

    async def run(self, item: Any) -> Any:
        self.busy += 1
        assert self.busy == 1, "two calls at a time"
        try:
            if item == "die":
                os._exit(3)
            if item == "bad":
                raise KeyError(item)
            await asyncio.sleep(0)
            return item
        finally:
            self.busy -= 1

    async def gated(self, item: Any) -> Any:
        await self.hub.wait.remote(item)
        return await self.run(item)

    async def large(self, item: int) -> Any:
        return np.full(50_000, item)

    @fw.method(num_returns=2)
    async def pair(self, item: Any) -> tuple[Any, Any]:
        return item, -item


def run(actor: Any, item: Any) -> Any:
    return actor.run.remote(item)


def gated(actor: Any, item: Any) -> Any:
    return actor.gated.remote(item)


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


@pytest.fixture(scope="module")
def workers(session: object) -> list[Any]:
    """Four that no test ends."""
    found = [Worker.remote() for _ in range(4)]
    get([worker.run.remote(0) for worker in found])
    return found


@pytest.fixture
def pool(workers: list[Any]) -> ActorPool[Any]:
    return ActorPool(workers[:2])


@pytest.fixture
def hub(session: object) -> Any:
    return Hub.remote()


def open_gates(hub: Any, *items: Any) -> None:
    get(hub.open.remote(*items))


def entered(hub: Any) -> list[Any]:
    return list(get(hub.entered.remote()))


def dead(actor: Any) -> None:
    """End an actor and wait until everybody knows."""
    fw.kill(actor)
    with pytest.raises(ActorDiedError):
        get(actor.run.remote(0))


def outcomes(results: Iterator[Any]) -> list[Any]:
    """What every step gives, exceptions by the name of what they are."""
    seen: list[Any] = []
    while True:
        try:
            seen.append(next(results))
        except StopIteration:
            return seen
        except KeyError:
            seen.append("KeyError")
        except ActorDiedError:
            seen.append("died")


# ---- map ---------------------------------------------------------------------------------------------


def test_map_keeps_the_order(pool: ActorPool[Any]) -> None:
    assert list(pool.map(run, range(50))) == list(range(50))
    assert not pool.has_next()


def test_map_unordered_gives_each_result_once(pool: ActorPool[Any]) -> None:
    assert sorted(pool.map_unordered(run, range(50))) == list(range(50))


async def test_both_in_a_coroutine(pool: ActorPool[Any]) -> None:
    assert [x async for x in pool.map(run, range(20))] == list(range(20))
    assert sorted([x async for x in pool.map_unordered(run, range(20))]) == list(range(20))


def test_several_returns_come_as_a_list(pool: ActorPool[Any]) -> None:
    assert list(pool.map(lambda a, v: a.pair.remote(v), [1, 2, 3])) == [[1, -1], [2, -2], [3, -3]]


async def test_several_returns_in_a_coroutine(pool: ActorPool[Any]) -> None:
    assert [x async for x in pool.map(lambda a, v: a.pair.remote(v), [1, 2])] == [[1, -1], [2, -2]]


def test_endless_values_are_read_as_they_are_needed(pool: ActorPool[Any]) -> None:
    read = []

    def values() -> Iterator[int]:
        for n in itertools.count():
            read.append(n)
            yield n

    assert list(itertools.islice(pool.map(run, values()), 10)) == list(range(10))
    assert len(read) < 1100


def test_a_slow_first_item_does_not_hold_up_the_others(hub: Any) -> None:
    pool = ActorPool([Worker.remote(hub) for _ in range(2)])
    results = pool.map(gated, range(6))
    open_gates(hub, 1, 2, 3, 4, 5)
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.05)
    # (Asking is what hands on waiting items.)
    wait_until(lambda: not pool.has_free() and sorted(entered(hub)) == list(range(6)))
    open_gates(hub, 0)
    assert list(results) == list(range(6))


def test_what_values_raise_comes_after_the_results_before_it(pool: ActorPool[Any]) -> None:
    def values() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("broken")

    results = pool.map(run, values())
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(LookupError, match="broken"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_a_new_map_drops_what_was_submitted_before(hub: Any) -> None:
    pool = ActorPool([Worker.remote(hub)])
    for item in ("old 1", "old 2"):
        pool.submit(gated, item)
    wait_until(lambda: entered(hub) == ["old 1"])
    results = pool.map(run, range(3))
    open_gates(hub, "old 1")
    assert list(results) == [0, 1, 2]
    assert entered(hub) == ["old 1"]


def test_the_results_of_a_dropped_map_cannot_be_asked_for(pool: ActorPool[Any]) -> None:
    first = pool.map(run, range(3))
    assert next(first) == 0
    assert list(pool.map(run, "ab")) == ["a", "b"]
    with pytest.raises(RuntimeError, match="a later map"):
        next(first)


# ---- submit and get_next -----------------------------------------------------------------------------


def test_get_next_in_order(pool: ActorPool[Any]) -> None:
    for item in range(6):
        pool.submit(run, item)
    found = []
    while pool.has_next():
        found.append(pool.get_next(timeout=LIMIT))
    assert found == list(range(6))
    with pytest.raises(StopIteration):
        pool.get_next()


def test_get_next_unordered_takes_whatever_is_done(hub: Any) -> None:
    pool = ActorPool([Worker.remote(hub) for _ in range(2)])
    for item in range(4):
        pool.submit(gated, item)
    found = []
    for item in (1, 2, 0, 3):
        open_gates(hub, item)
        found.append(pool.get_next_unordered(timeout=LIMIT))
    assert found == [1, 2, 0, 3]
    assert not pool.has_next()


def test_ordered_and_unordered_can_be_mixed(pool: ActorPool[Any]) -> None:
    for item in range(4):
        pool.submit(run, item)
    first = pool.get_next_unordered()
    rest = [pool.get_next() for _ in range(3)]
    assert rest == sorted({0, 1, 2, 3} - {first})


async def test_in_coroutines(pool: ActorPool[Any]) -> None:
    for item in range(4):
        pool.submit(run, item)
    assert await pool.get_next_async() == 0
    rest = await asyncio.gather(*(pool.get_next_unordered_async(timeout=LIMIT) for _ in range(3)))
    assert sorted(rest) == [1, 2, 3]
    with pytest.raises(StopAsyncIteration):
        await pool.get_next_async()


def test_free_and_busy(hub: Any) -> None:
    actors = [Worker.remote(hub) for _ in range(2)]
    pool = ActorPool(actors)
    assert pool.has_free()
    pool.submit(run, 1)
    assert pool.has_free()
    pool.submit(gated, 2)
    assert not pool.has_free()
    assert pool.pop_idle() is None
    assert pool.get_next() == 1
    assert pool.pop_idle() == actors[-1]
    assert pool.pop_idle() is None
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(actors[0])
    pool.push(actors[-1])
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(actors[-1])
    open_gates(hub, 2)
    assert pool.get_next() == 2


def test_a_pushed_actor_takes_what_waits(workers: list[Any]) -> None:
    pool: ActorPool[Any] = ActorPool([])
    pool.submit(run, 1)
    pool.push(workers[0])
    assert pool.get_next(timeout=LIMIT) == 1


# ---- timeouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["get_next", "get_next_unordered"])
def test_a_result_that_is_late_can_be_asked_for_again(hub: Any, name: str) -> None:
    pool = ActorPool([Worker.remote(hub)])
    pool.submit(gated, 1)
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match="Timed out waiting for result$"):
            getattr(pool, name)(timeout=timeout)
    open_gates(hub, 1)
    assert getattr(pool, name)(timeout=LIMIT) == 1


@pytest.mark.parametrize("name", ["get_next", "get_next_unordered"])
def test_an_ignored_item_keeps_its_actor_until_it_ends(hub: Any, name: str) -> None:
    pool = ActorPool([Worker.remote(hub)])
    pool.submit(gated, "slow")
    pool.submit(gated, "next")
    wait_until(lambda: entered(hub) == ["slow"])
    with pytest.raises(TimeoutError, match="The item 0 has been ignored"):
        getattr(pool, name)(timeout=0.01, ignore_if_timedout=True)
    assert pool.has_next()
    assert not pool.has_free()
    open_gates(hub, "next")
    with pytest.raises(TimeoutError):
        getattr(pool, name)(timeout=0.05)
    assert entered(hub) == ["slow"]
    open_gates(hub, "slow")
    assert getattr(pool, name)(timeout=LIMIT) == "next"
    assert not pool.has_next()


async def test_timeouts_in_coroutines(hub: Any) -> None:
    pool = ActorPool([Worker.remote(hub)])
    pool.submit(gated, 1)
    with pytest.raises(TimeoutError):
        await pool.get_next_async(timeout=0.01)
    waiting = asyncio.ensure_future(pool.get_next_unordered_async())
    done, _ = await asyncio.wait([waiting], timeout=0.01)
    assert not done
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await hub.open.remote(1)
    assert await pool.get_next_async(timeout=LIMIT) == 1


async def test_cancelling_while_a_large_value_is_read_loses_nothing(pool: ActorPool[Any]) -> None:
    results = pool.map(lambda a, v: a.large.remote(v), range(40))
    found: list[int] = []
    for turn in itertools.count():
        step = asyncio.ensure_future(anext(results))
        for _ in range(turn % 8):
            await asyncio.sleep(0)
        if turn % 3 == 0:
            await asyncio.wait([step], timeout=0.002 * (turn % 20))
        step.cancel()
        await asyncio.wait([step])
        if not step.cancelled():
            if isinstance(step.exception(), StopAsyncIteration):
                break
            found.append(int(step.result()[0]))
    assert found == list(range(40))


# ---- failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["map", "map_unordered"])
def test_an_exception_loses_neither_the_actor_nor_other_items(pool: ActorPool[Any], name: str) -> None:
    seen = outcomes(getattr(pool, name)(run, [0, "bad", 2, "bad", "bad", 5]))
    assert sorted(map(str, seen)) == ["0", "2", "5", "KeyError", "KeyError", "KeyError"]
    if name == "map":
        assert seen == [0, "KeyError", 2, "KeyError", "KeyError", 5]
    assert [pool.pop_idle() is not None for _ in range(3)] == [True, True, False]


def test_a_function_that_raises_at_once_loses_no_actor(pool: ActorPool[Any]) -> None:
    def picky(actor: Any, value: int) -> Any:
        if value == 1:
            raise LookupError(value)
        return 5 if value == 2 else actor.run.remote(value)

    with pytest.raises(LookupError):
        pool.submit(picky, 1)
    with pytest.raises(TypeError, match=r"returns what \.remote\(\) does, got 5"):
        pool.submit(picky, 2)
    results = pool.map(picky, [0, 1, 2, 3])
    assert next(results) == 0
    with pytest.raises(LookupError):
        next(results)
    with pytest.raises(TypeError):
        next(results)
    assert next(results) == 3


def test_a_dead_actor_is_not_used_again(session: object) -> None:
    pool = ActorPool([Worker.remote() for _ in range(2)])
    assert outcomes(pool.map(run, [0, "die", 2, 3, 4, 5])) == [0, "died", 2, 3, 4, 5]
    assert [pool.pop_idle() is not None for _ in range(2)] == [True, False]


def test_an_actor_that_was_killed_while_idle_costs_one_item(session: object) -> None:
    actors = [Worker.remote() for _ in range(2)]
    pool = ActorPool(actors)
    dead(actors[0])
    seen = outcomes(pool.map(run, range(6)))
    assert seen.count("died") == 1
    assert [x for x in seen if x != "died"] == [x for x in range(6) if x != seen.index("died")]


def test_items_fail_when_no_actor_is_left_until_one_is_pushed(session: object) -> None:
    pool = ActorPool([Worker.remote()])
    results = pool.map(run, ["die", 1, 2, 3])
    with pytest.raises(ActorDiedError):
        next(results)
    with pytest.raises(ActorDiedError, match="item 1 was not started: all 1 actors"):
        next(results)
    pool.push(Worker.remote())
    assert list(results) == [2, 3]


async def test_a_death_in_a_coroutine(session: object) -> None:
    pool = ActorPool([Worker.remote() for _ in range(2)])
    results = pool.map_unordered(run, ["die", 1, 2])
    found = []
    for _ in range(3):
        try:
            found.append(await anext(results))
        except ActorDiedError:
            found.append("died")
    assert sorted(map(str, found)) == ["1", "2", "died"]


def test_the_death_of_another_actor_is_not_held_against_this_one(session: object) -> None:
    victim = Worker.remote()
    dead(victim)

    @fw.remote(num_cpus=0)
    class Asks:
        async def ask(self, other: Any) -> Any:
            return await other.run.remote(0)

        async def use(self, value: Any) -> Any:
            return value

    pool = ActorPool([Asks.remote()])
    for fn in (lambda a, v: a.ask.remote(v), lambda a, v: a.use.remote(v.run.remote(0))):
        pool.submit(fn, victim)
        with pytest.raises(ActorDiedError):
            pool.get_next(timeout=LIMIT)
    pool.submit(lambda a, v: a.use.remote(v), "alive")
    assert pool.get_next(timeout=LIMIT) == "alive"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.lists(st.one_of(st.integers(0, 99), st.just("bad")), max_size=20),
    size=st.integers(1, 4),
    ordered=st.booleans(),
)
def test_every_item_has_one_outcome(workers: list[Any], items: list[Any], size: int, ordered: bool) -> None:
    pool = ActorPool(workers[:size])
    seen = outcomes((pool.map if ordered else pool.map_unordered)(run, items))
    expected = ["KeyError" if item == "bad" else item for item in items]
    assert seen == expected if ordered else sorted(map(str, seen)) == sorted(map(str, expected))
    assert [pool.pop_idle() is not None for _ in range(size + 1)] == [True] * size + [False]
