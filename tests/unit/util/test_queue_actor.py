"""The actor behind a Queue, as a plain object on an event loop: order, bounds, waiting, giving up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.exceptions import ActorDiedError
from framework.util._queue_actor import QueueActor


async def started(coroutine: Any) -> asyncio.Task[Any]:
    """A task that has run as far as it can."""
    task = asyncio.ensure_future(coroutine)
    await settle()
    return task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def drain(actor: QueueActor) -> list[Any]:
    items = []
    while (taken := await actor.get_now()) is not None:
        items.append(taken[1])
    return items


async def test_first_in_first_out() -> None:
    actor = QueueActor()
    for item in ("a", None, "b"):
        assert await actor.put_now(item)
    assert await actor.qsize() == 3
    assert await drain(actor) == ["a", None, "b"]
    assert await actor.get_now() is None


@pytest.mark.parametrize("maxsize", [0, -1])
async def test_no_bound(maxsize: int) -> None:
    actor = QueueActor(maxsize)
    assert all([await actor.put_now(n) for n in range(100)])


async def test_getters_are_served_in_the_order_of_their_arrival() -> None:
    actor = QueueActor()
    getters = [await started(actor.get(str(n))) for n in range(3)]
    for item in "abc":
        assert await actor.put("p", item)
    assert [taken[1] for taken in await asyncio.gather(*getters)] == ["a", "b", "c"]


async def test_putters_are_served_in_the_order_of_their_arrival_and_before_later_ones() -> None:
    actor = QueueActor(1)
    assert await actor.put_now(0)
    putters = [await started(actor.put(str(n), n)) for n in (1, 2, 3)]
    assert (await actor.get("g")) == (0, 0)
    assert not await actor.put_now(9)
    assert [(await actor.get("g")) for _ in range(3)] == [(1, 1), (2, 2), (3, 3)]
    assert await asyncio.gather(*putters) == [True, True, True]


async def test_a_getter_that_ran_out_of_time_takes_nothing() -> None:
    actor = QueueActor()
    assert await actor.get("g", 0.001) is None
    assert await actor.put_now("x")
    assert await drain(actor) == ["x"]


async def test_a_putter_that_ran_out_of_time_puts_nothing() -> None:
    actor = QueueActor(1)
    assert await actor.put_now(1)
    assert not await actor.put("p", 2, 0.001)
    assert await drain(actor) == [1]


async def test_no_time_at_all() -> None:
    actor = QueueActor(1)
    assert await actor.get("g", 0) is None
    assert await actor.put("p", 1, 0)
    assert not await actor.put("p", 2, 0)
    assert (await actor.get("g", 0)) == (0, 1)


async def test_abandoned_calls_end_and_do_nothing() -> None:
    actor = QueueActor(1)
    getter = await started(actor.get("g"))
    await actor.abandon("g")
    assert await getter is None
    assert await actor.put_now(1)
    putter = await started(actor.put("p", 2))
    await actor.abandon("p")
    assert not await putter
    await actor.abandon("nobody")
    assert await drain(actor) == [1]


async def test_a_getter_cancelled_before_the_item_comes() -> None:
    actor = QueueActor()
    first, second = await started(actor.get("1")), await started(actor.get("2"))
    first.cancel()  # it does not know yet when the item comes
    assert await actor.put_now("x")
    assert (await second)[1] == "x"


async def test_a_getter_cancelled_after_the_item_has_come_puts_it_back() -> None:
    actor = QueueActor()
    getter = await started(actor.get("1"))
    assert await actor.put_now("x")
    assert await actor.put_now("y")
    getter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getter
    assert await drain(actor) == ["x", "y"]


async def test_a_putter_cancelled_before_there_is_room() -> None:
    actor = QueueActor(1)
    assert await actor.put_now(1)
    first, second = await started(actor.put("1", 2)), await started(actor.put("2", 3))
    first.cancel()
    assert (await actor.get_now()) == (0, 1)
    assert await second
    assert await drain(actor) == [3]


async def test_items_that_come_back_take_their_old_places() -> None:
    actor = QueueActor(4)
    assert await actor.put_batch([0, 1, 2, 3]) is None
    taken = await actor.get_batch(3)
    assert isinstance(taken, list)
    await actor.put_back([taken[2]])
    await actor.put_back([taken[0]])
    await actor.put_back([taken[1]])
    assert await drain(actor) == [0, 1, 2, 3]


async def test_an_item_that_comes_back_goes_to_whoever_waits() -> None:
    actor = QueueActor()
    await actor.put_now("x")
    taken = await actor.get_now()
    assert taken is not None
    getter = await started(actor.get("g"))
    await actor.put_back([taken])
    assert await getter == taken


async def test_batches_are_all_or_nothing() -> None:
    actor = QueueActor(3)
    assert await actor.put_batch([1, 2]) is None
    assert await actor.put_batch([3, 4]) == 2
    assert await actor.get_batch(3) == 2
    assert await actor.put_batch([3]) is None
    assert await actor.get_batch(3) == [(0, 1), (1, 2), (2, 3)]
    assert await actor.get_batch(0) == []


async def test_closing_fails_whoever_waits() -> None:
    actor = QueueActor(1)
    getter = await started(actor.get("g"))
    await actor.close()
    with pytest.raises(ActorDiedError, match="shut down"):
        await getter
    await actor.put_now(1)
    putter = await started(actor.put("p", 2))
    await actor.close()
    with pytest.raises(ActorDiedError, match="shut down"):
        await putter


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("put", "put_now", "get", "get_now", "cancel", "abandon", "back", "settle")),
        st.integers(0, 5),
    ),
    max_size=40,
)


class Program:
    """Random steps of many producers and consumers; in the end every item that was put is there once."""

    def __init__(self, maxsize: int) -> None:
        self.actor = QueueActor(maxsize)
        self.made = 0
        self.puts: list[tuple[int, str, asyncio.Task[Any]]] = []
        self.gets: list[tuple[str, asyncio.Task[Any]]] = []
        self.held: list[tuple[int, Any]] = []  #: taken by a consumer that may send them back
        self.certain: list[int] = []

    async def step(self, name: str, which: int) -> None:
        actor = self.actor
        if name in ("put", "put_now"):
            self.made += 1
        if name == "put":
            token = f"p{self.made}"
            self.puts.append((self.made, token, await started(actor.put(token, self.made))))
        elif name == "put_now":
            if await actor.put_now(self.made):
                self.certain.append(self.made)
        elif name == "get":
            token = f"g{len(self.gets)}"
            self.gets.append((token, await started(actor.get(token))))
        elif name == "get_now":
            taken = await actor.get_now()
            if taken is not None:
                self.held.append(taken)
        elif name == "back" and which < len(self.held):
            await actor.put_back([self.held.pop(which)])
        elif name == "settle":
            await settle()
        else:
            waiting = [*[(p[1], p[2]) for p in self.puts], *self.gets]
            if which < len(waiting):
                token, task = waiting[-1 - which]
                if name == "cancel":
                    task.cancel()
                else:
                    await actor.abandon(token)

    async def finish(self) -> None:
        await settle()
        for token in [*[put[1] for put in self.puts], *[get[0] for get in self.gets]]:
            await self.actor.abandon(token)
        await asyncio.gather(*[p[2] for p in self.puts], *[g[1] for g in self.gets], return_exceptions=True)
        taken = [task.result() for _, task in self.gets if not task.cancelled()]
        left = await drain(self.actor)
        there = [item[1] for item in taken if item is not None] + [item[1] for item in self.held] + left
        assert len(set(there)) == len(there), "an item is there twice"
        for item, _, task in self.puts:
            if not task.cancelled():  # (a cancelled one may have been put)
                assert (item in there) == task.result()
        assert {*self.certain} <= {*there}, "an item is lost"


@settings(max_examples=60, deadline=None)
@given(maxsize=st.integers(0, 3), steps=STEPS)
def test_no_item_is_lost_or_doubled(maxsize: int, steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        program = Program(maxsize)
        for name, which in steps:
            await program.step(name, which)
        await program.finish()

    asyncio.run(run())


@settings(max_examples=40, deadline=None)
@given(maxsize=st.integers(0, 3), producing=st.lists(st.booleans(), max_size=30))
def test_order_holds_with_waiting_on_both_sides(maxsize: int, producing: list[bool]) -> None:
    async def run() -> None:
        actor = QueueActor(maxsize)
        puts: list[asyncio.Task[Any]] = []
        gets: list[asyncio.Task[Any]] = []
        for number, is_put in enumerate(producing):
            into = puts if is_put else gets
            into.append(
                await started(actor.put(str(number), len(puts)) if is_put else actor.get(str(number)))
            )
        done = min(len(puts), len(gets))
        assert [(await get)[1] for get in gets[:done]] == list(range(done))
        assert all([await put for put in puts[:done]])
        for task in (*puts, *gets):
            task.cancel()

    asyncio.run(run())
