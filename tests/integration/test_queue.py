"""Queue: order, bounds, batches, waiting, giving up, passing on, ends, in scripts and coroutines."""

from __future__ import annotations

import asyncio
import functools
import os
import pickle
import queue as standard
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import framework as fw
from framework.exceptions import ActorDiedError, TaskCancelledError
from framework.util.queue import Empty, Full, Queue
from support.drivers import alive
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = 20.0


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


def waiting(queue: Queue[Any]) -> tuple[int, int]:
    """How many calls wait in it: (for an item, for room)."""
    assert queue.actor is not None
    counts: tuple[int, int] = get(
        queue.actor.__ray_call__.remote(lambda actor: (len(actor._getters), len(actor._putters)))
    )
    return counts


async def are_waiting(queue: Queue[Any], getters: int, putters: int) -> None:
    async with asyncio.timeout(LIMIT):
        while await asyncio.to_thread(waiting, queue) != (getters, putters):
            await asyncio.sleep(0.002)


@pytest.fixture
def queue(session: object) -> Iterator[Queue[Any]]:
    found: Queue[Any] = Queue()
    yield found
    found.shutdown(force=True)


@pytest.fixture
def small(session: object) -> Iterator[Queue[Any]]:
    """Of one item."""
    found: Queue[Any] = Queue(1)
    yield found
    found.shutdown(force=True)


@fw.remote(num_cpus=0)
def take(queue: Queue[Any], count: int = 1) -> list[Any]:
    return [queue.get(timeout=LIMIT) for _ in range(count)]


@fw.remote(num_cpus=0)
def take_forever(queue: Queue[Any]) -> Any:
    return queue.get()


@fw.remote(num_cpus=0)
def fill(queue: Queue[Any], items: list[Any]) -> None:
    for item in items:
        queue.put(item, timeout=LIMIT)


# ---- one caller --------------------------------------------------------------------------------------


def test_first_in_first_out(queue: Queue[Any]) -> None:
    items = [1, "two", None, b"three", {"four": [5]}, (6,), ValueError("seven"), False]
    for item in items:
        queue.put(item)
    assert len(queue) == queue.qsize() == queue.size() == len(items)
    assert not queue.empty() and not queue.full()
    found = [queue.get() for _ in items]
    assert found[:6] == items[:6] and found[7] is False
    assert isinstance(found[6], ValueError) and found[6].args == ("seven",)
    assert queue.empty() and len(queue) == 0


def test_an_empty_queue_is_true(queue: Queue[Any]) -> None:
    assert queue


def test_large_items(queue: Queue[Any]) -> None:
    array = np.arange(200_000)
    queue.put(array)
    queue.put_nowait_batch([array, "small"])
    assert (queue.get() == array).all()
    assert (queue.get_nowait_batch(2)[0] == array).all()


def test_a_reference_is_replaced_by_its_value_inside_of_others_it_stays(queue: Queue[Any]) -> None:
    queue.put(fw.put("value"))
    queue.put([fw.put("value")])
    assert queue.get() == "value"
    assert get(queue.get()) == ["value"]


def test_nothing_there(queue: Queue[Any]) -> None:
    with pytest.raises(Empty):
        queue.get_nowait()
    with pytest.raises(Empty):
        queue.get(block=False)
    for timeout in (0, 0.01):
        with pytest.raises(Empty):
            queue.get(timeout=timeout)
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    queue.put("late")
    assert queue.get() == "late"


def test_no_room(small: Queue[Any]) -> None:
    small.put(1)
    assert small.full()
    with pytest.raises(Full):
        small.put_nowait(2)
    with pytest.raises(Full):
        small.put(2, block=False)
    for timeout in (0, 0.01):
        with pytest.raises(Full):
            small.put(2, timeout=timeout)
    with pytest.raises(standard.Full):
        small.put_nowait(2)
    assert small.get() == 1
    with pytest.raises(Empty):
        small.get_nowait()


async def test_the_same_in_a_coroutine(small: Queue[Any]) -> None:
    with pytest.raises(Empty):
        await small.get_async(block=False)
    with pytest.raises(Empty):
        await small.get_async(timeout=0.01)
    await small.put_async(1)
    with pytest.raises(Full):
        await small.put_async(2, block=False)
    with pytest.raises(Full):
        await small.put_async(2, timeout=0.01)
    assert await small.get_async() == 1


def test_batches(session: object) -> None:
    queue: Queue[int] = Queue(3)
    queue.put_nowait_batch(n for n in (1, 2))
    with pytest.raises(Full, match=r"Cannot add 2 items to queue of size 2 and maxsize 3\."):
        queue.put_nowait_batch([3, 4])
    with pytest.raises(Empty, match=r"Cannot get 3 items from queue of size 2\."):
        queue.get_nowait_batch(3)
    assert queue.get_nowait_batch(0) == []
    assert queue.get_nowait_batch(2) == [1, 2]


def test_wrong_arguments(queue: Queue[Any]) -> None:
    for timeout in (-1, float("nan")):
        with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
            queue.get(timeout=timeout)
        with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
            queue.put(1, timeout=timeout)
    with pytest.raises(TypeError, match="'items' must be an Iterable"):
        queue.put_nowait_batch(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'num_items' must be an int"):
        queue.get_nowait_batch("3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'num_items' must be nonnegative"):
        queue.get_nowait_batch(-1)
    with pytest.raises(TypeError, match="maxsize is an int"):
        Queue("3")  # type: ignore[arg-type]


# ---- many callers ------------------------------------------------------------------------------------


async def test_blocked_getters_hold_up_nobody(session: object) -> None:
    """With an actor that would otherwise run one call at a time."""
    queue: Queue[int] = Queue(actor_options={"max_concurrency": 1})
    getters = [asyncio.ensure_future(queue.get_async()) for _ in range(10)]
    await are_waiting(queue, 10, 0)
    with pytest.raises(Empty):
        await queue.get_async(block=False)
    for item in range(10):
        await queue.put_async(item)
    assert await asyncio.gather(*getters) == list(range(10))  # in the order of their arrival


async def test_blocked_putters_hold_up_nobody(small: Queue[int]) -> None:
    await small.put_async(-1)
    putters = [asyncio.ensure_future(small.put_async(item)) for item in range(10)]
    await are_waiting(small, 0, 10)
    with pytest.raises(Full):
        await small.put_async(99, block=False)
    assert [await small.get_async() for _ in range(11)] == list(range(-1, 10))
    await asyncio.gather(*putters)


def test_ten_getters_and_ten_putters_in_threads(small: Queue[Any]) -> None:
    with ThreadPoolExecutor(20) as threads:
        getters = [threads.submit(small.get, timeout=LIMIT) for _ in range(10)]
        wait_until(lambda: waiting(small) == (10, 0))
        putters = [threads.submit(small.put, item, timeout=LIMIT) for item in range(10)]
        assert sorted(getter.result(LIMIT) for getter in getters) == list(range(10))
        for putter in putters:
            putter.result(LIMIT)
    assert small.empty()


async def test_more_waiting_calls_than_an_async_actor_runs_at_a_time(queue: Queue[int]) -> None:
    getters = [asyncio.ensure_future(queue.get_async()) for _ in range(1500)]
    await are_waiting(queue, 1500, 0)
    await asyncio.gather(*(queue.put_async(item) for item in range(1500)))
    assert sorted(await asyncio.gather(*getters)) == list(range(1500))


def test_in_tasks_and_actors(small: Queue[Any]) -> None:
    @fw.remote(num_cpus=0)
    class Producer:
        def __init__(self, queue: Queue[int]) -> None:
            self.queue = queue

        async def produce(self, items: list[int]) -> None:
            for item in items:
                await self.queue.put_async(item)

    producers = [Producer.remote(small) for _ in range(2)]
    done = [producer.produce.remote([n * 100 + i for i in range(20)]) for n, producer in enumerate(producers)]
    done.append(fill.remote(small, [200 + i for i in range(20)]))
    consumers = [take.remote(small, 20) for _ in range(3)]
    found = get(consumers)
    get(done)
    assert sorted(sum(found, [])) == [n * 100 + i for n in range(3) for i in range(20)]
    for items in found:  # each consumer sees each producer's items in their order
        for n in range(3):
            mine = [item for item in items if item // 100 == n]
            assert mine == sorted(mine)


def test_the_last_handle_keeps_it(session: object) -> None:
    @fw.remote(num_cpus=0)
    def make() -> Queue[int]:
        queue: Queue[int] = Queue(7)
        queue.put(1)
        return queue

    queue = get(make.remote())
    assert (queue.maxsize, queue.get(timeout=LIMIT)) == (7, 1)
    copy = pickle.loads(pickle.dumps(queue))
    del queue
    copy.put(2)
    assert copy.get() == 2
    assert repr(copy).startswith("Queue(maxsize=7, actor=Actor(QueueActor")


def test_by_name(session: object) -> None:
    options = {"name": "jobs", "get_if_exists": True}
    one: Queue[int] = Queue(2, actor_options=options)
    one.put(1)
    other: Queue[int] = Queue(2, actor_options=options)
    assert other.get(timeout=LIMIT) == 1


# ---- giving up ---------------------------------------------------------------------------------------


async def test_a_cancelled_getter_takes_nothing(queue: Queue[Any]) -> None:
    getters = [asyncio.ensure_future(queue.get_async()) for _ in range(3)]
    await are_waiting(queue, 3, 0)
    getters[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await getters[1]
    for item in "abc":
        await queue.put_async(item)
    assert (await getters[0], await getters[2], await queue.get_async()) == ("a", "b", "c")


async def test_a_cancelled_putter_puts_nothing_later(small: Queue[Any]) -> None:
    await small.put_async(0)
    putters = [asyncio.ensure_future(small.put_async(n)) for n in (1, 2, 3)]
    await are_waiting(small, 0, 3)
    putters[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await putters[1]
    assert [await small.get_async() for _ in range(3)] == [0, 1, 3]
    await asyncio.gather(putters[0], putters[2])
    with pytest.raises(Empty):
        await small.get_async(block=False)


async def test_getters_cancelled_at_any_moment_lose_nothing(queue: Queue[int]) -> None:
    """Some are cancelled when their item is on its way: it goes back to its place."""
    total, found = 300, []
    await asyncio.gather(*(queue.put_async(n) for n in range(total)))
    for turn in range(150):
        getter = asyncio.ensure_future(queue.get_async())
        for _ in range(turn % 15):
            await asyncio.sleep(0)
        if turn % 10 == 9:
            await asyncio.wait([getter], timeout=0.0005 * (turn % 7))
        if not getter.cancel():
            found.append(getter.result())
        await asyncio.wait([getter])
    while len(found) < total:
        found.append(await queue.get_async(timeout=LIMIT))
    assert sorted(found) == list(range(total))
    with pytest.raises(Empty):
        await queue.get_async(timeout=0.05)


async def test_wait_for_loses_nothing(queue: Queue[int]) -> None:
    total, found = 60, []
    produced = asyncio.ensure_future(_produce(queue, total))
    async with asyncio.timeout(LIMIT):
        while len(found) < total:
            try:
                found.append(await asyncio.wait_for(queue.get_async(), 0.002))
            except TimeoutError:
                continue
    await produced
    assert sorted(found) == list(range(total))


async def _produce(queue: Queue[int], total: int) -> None:
    for item in range(total):
        await queue.put_async(item)
        if item % 5 == 0:
            await asyncio.sleep(0.003)


def test_a_cancelled_task_gives_its_item_back(queue: Queue[Any]) -> None:
    consumer = take_forever.remote(queue)
    wait_until(lambda: waiting(queue) == (1, 0))
    fw.cancel(consumer)
    with pytest.raises(TaskCancelledError):
        get(consumer)
    wait_until(lambda: waiting(queue) == (0, 0))
    queue.put("kept")
    assert queue.get(timeout=LIMIT) == "kept"


def test_an_interrupted_script_takes_nothing(queue: Queue[Any]) -> None:
    script = threading.get_ident()

    def interrupt() -> None:
        try:
            wait_until(lambda: waiting(queue) == (1, 0))
        finally:  # (else nobody would ever end the waiting)
            signal.pthread_kill(script, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        queue.get()
    thread.join(LIMIT)
    wait_until(lambda: waiting(queue) == (0, 0))
    queue.put("kept")
    assert queue.get(timeout=LIMIT) == "kept"


def attended(queue: Queue[Any], count: int) -> bool:
    """Whether it watches over so many handles."""
    assert queue.actor is not None
    found: int = get(queue.actor.__ray_call__.remote(lambda actor: len(actor._attending)))
    return found == count


@pytest.mark.parametrize("maxsize", [0, 1])
def test_a_process_that_dies_while_it_waits_takes_nothing(session: object, maxsize: int) -> None:
    queue: Queue[Any] = Queue(maxsize)

    @fw.remote(num_cpus=0)
    class Consumer:
        def take(self, queue: Queue[Any]) -> Any:
            return queue.get()

    @fw.remote(num_cpus=0)
    class Producer:
        async def put(self, queue: Queue[Any]) -> None:
            await queue.put_async("never")

    consumer = Consumer.remote()
    call = consumer.take.remote(queue)
    wait_until(lambda: waiting(queue) == (1, 0) and attended(queue, 1))
    fw.kill(consumer)
    with pytest.raises(ActorDiedError):
        get(call)
    wait_until(lambda: waiting(queue) == (0, 0))
    queue.put("kept")
    if maxsize:
        producer = Producer.remote()
        call = producer.put.remote(queue)
        wait_until(lambda: waiting(queue) == (0, 1) and attended(queue, 1))
        fw.kill(producer)
        wait_until(lambda: waiting(queue) == (0, 0))
        with pytest.raises(ActorDiedError):
            get(call)
    assert queue.get(timeout=LIMIT) == "kept"
    assert queue.empty()
    wait_until(lambda: attended(queue, 0))
    queue.shutdown()


def test_a_handle_that_has_waited_is_watched_until_its_last_use(session: object) -> None:
    queue: Queue[Any] = Queue()
    (copy,) = get(fw.put([queue]))
    for handle in (queue, copy):
        with pytest.raises(Empty):
            handle.get(timeout=0.3)
    assert attended(queue, 2)
    del copy, handle
    wait_until(functools.partial(attended, queue, 1))
    assert queue.actor is not None
    pid = get(queue.actor.__ray_call__.remote(lambda actor: os.getpid()))
    del queue
    wait_until(lambda: not alive(pid))


# ---- ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_shutdown_fails_whoever_waits_and_whoever_comes(session: object, force: bool) -> None:
    queue: Queue[Any] = Queue(1)
    copy = pickle.loads(pickle.dumps(queue))
    consumers = [take_forever.remote(queue) for _ in range(2)]
    wait_until(lambda: waiting(queue) == (2, 0))
    queue.shutdown(force=force)
    queue.shutdown(force=force)
    for consumer in consumers:
        with pytest.raises(ActorDiedError):
            get(consumer)
    assert queue.actor is None
    for call in (queue.get, queue.qsize, lambda: queue.put(1), copy.get, copy.get_nowait):
        with pytest.raises(ActorDiedError):
            call()


async def test_when_its_actor_dies_all_calls_fail(session: object) -> None:
    queue: Queue[Any] = Queue(1)
    assert queue.actor is not None
    getter = asyncio.ensure_future(queue.get_async())
    await are_waiting(queue, 1, 0)
    fw.kill(queue.actor)
    with pytest.raises(ActorDiedError):
        await getter
    with pytest.raises(ActorDiedError):
        await queue.put_async(1)


# ---- properties --------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=25))
def test_it_behaves_like_the_standard_queue(small: Queue[int], steps: list[tuple[bool, int]]) -> None:
    model: standard.Queue[int] = standard.Queue(1)
    while not small.empty():
        small.get()
    for number, (putting, times) in enumerate(steps):
        for _ in range(times):
            outcomes: list[Any] = []
            for queue in (small, model):
                try:
                    outcomes.append(queue.put_nowait(number) if putting else queue.get_nowait())
                except (standard.Empty, standard.Full) as error:
                    outcomes.append(isinstance(error, standard.Full))
            assert outcomes[0] == outcomes[1] and type(outcomes[0]) is type(outcomes[1])
            assert (small.qsize(), small.empty(), small.full()) == (
                model.qsize(),
                model.empty(),
                model.full(),
            )
