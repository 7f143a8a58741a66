"""as_completed and map_unordered: order, batches, failures, bounds, timeouts, in scripts and coroutines."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework.exceptions import GetTimeoutError
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = 20


@fw.remote
def same(x: Any) -> Any:
    if x == "bad":
        raise KeyError(x)
    return x


@fw.remote
def large(n: int) -> Any:
    return np.full(50_000, n)


@fw.remote(num_cpus=0)
class Gates:
    """Calls that end when they are told to."""

    def __init__(self) -> None:
        self.gates: dict[Any, asyncio.Event] = {}
        self.entered: list[Any] = []

    async def wait(self, name: Any) -> Any:
        self.entered.append(name)
        await self.gates.setdefault(name, asyncio.Event()).wait()
        return name

    async def open(self, name: Any) -> None:
        self.gates.setdefault(name, asyncio.Event()).set()

    async def seen(self) -> list[Any]:
        return self.entered


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


class Way:
    """One iterator, stepped as a script or as a coroutine does it."""

    def __init__(self, name: str, runner: asyncio.Runner) -> None:
        self.name = name
        self._runner = runner

    def step(self, results: Any) -> Any:
        if self.name == "for":
            return next(results)
        return self._runner.run(self._anext(results))

    async def _anext(self, results: Any) -> Any:
        return await asyncio.wait_for(anext(results), LIMIT)

    def all(self, results: Any) -> list[Any]:
        if self.name == "for":
            return list(results)
        return self._runner.run(self._collect(results))

    async def _collect(self, results: AsyncIterator[Any]) -> list[Any]:
        return [result async for result in results]

    def ends(self, results: Any) -> bool:
        try:
            self.step(results)
        except (StopIteration, StopAsyncIteration):
            return True
        return False


@pytest.fixture(params=["for", "async for"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    with asyncio.Runner() as runner:
        yield Way(request.param, runner)


@pytest.fixture
def gates(session: object) -> Any:
    return Gates.remote()


def open_gate(gates: Any, ref: fw.ObjectRef[Any], name: Any) -> None:
    get(gates.open.remote(name))
    wait_until(ref.done)


# ---- as_completed ------------------------------------------------------------------------------------


def test_values_come_when_they_are_done(gates: Any, way: Way) -> None:
    refs = {name: gates.wait.remote(name) for name in range(4)}
    results = fw.util.as_completed(list(refs.values()))
    for name in (2, 0, 3, 1):
        open_gate(gates, refs[name], name)
        assert way.step(results) == name
    assert way.ends(results)
    assert way.ends(results)


def test_references_instead_of_values(session: object, way: Way) -> None:
    refs = [same.remote(n) for n in range(5)]
    found = way.all(fw.util.as_completed(refs, yield_obj_refs=True))
    assert set(found) == set(refs)
    assert all(ref.done() for ref in found)


def test_any_iterable_of_references_also_of_values_put(session: object, way: Way) -> None:
    found = way.all(fw.util.as_completed(fw.put(n) for n in range(3)))
    assert found == [0, 1, 2]


def test_a_failure_is_raised_at_its_place_and_the_rest_still_comes(session: object, way: Way) -> None:
    refs = [same.remote(x) for x in (1, "bad", 2)]
    get([refs[0], refs[2]])
    wait_until(refs[1].done)
    results = fw.util.as_completed(refs)
    seen = []
    for _ in refs:
        try:
            seen.append(way.step(results))
        except KeyError as error:
            seen.append(type(error).__name__[:9])
    assert sorted(map(str, seen)) == ["1", "2", "TaskError"]
    assert way.ends(results)


def test_a_batch_comes_when_all_of_it_is_done(gates: Any, way: Way) -> None:
    refs = [gates.wait.remote(name) for name in range(5)]
    results = fw.util.as_completed(refs, chunk_size=2, timeout=0.2)
    open_gate(gates, refs[3], 3)
    open_gate(gates, refs[1], 1)
    assert {way.step(results), way.step(results)} == {1, 3}
    open_gate(gates, refs[0], 0)
    assert way.step(results) == 0  # less than a batch, but time is up
    with pytest.raises(GetTimeoutError, match="2 of the references"):
        way.step(results)


def test_the_last_batch_may_be_smaller(session: object, way: Way) -> None:
    found = way.all(fw.util.as_completed([same.remote(n) for n in range(5)], chunk_size=3))
    assert sorted(found) == list(range(5))


def test_a_timeout_counts_from_the_call_and_can_be_outlived(gates: Any, way: Way) -> None:
    done, waiting = same.remote(1), gates.wait.remote("later")
    get(done)
    results = fw.util.as_completed([waiting, done], timeout=0)
    assert way.step(results) == 1
    with pytest.raises(TimeoutError, match="1 of the references were not ready within 0 s"):
        way.step(results)
    open_gate(gates, waiting, "later")
    assert way.step(results) == "later"


def test_duplicates_and_single_references_are_refused(session: object) -> None:
    ref = same.remote(1)
    with pytest.raises(ValueError, match="item 1 is there twice"):
        fw.util.as_completed([ref, ref])
    with pytest.raises(TypeError, match="a single one"):
        fw.util.as_completed(ref)  # type: ignore[call-overload]


def test_thousands(session: object, way: Way) -> None:
    assert sum(way.all(fw.util.as_completed([same.remote(n) for n in range(3000)]))) == sum(range(3000))


def test_cancelling_a_step_loses_nothing(gates: Any) -> None:
    async def main() -> list[Any]:
        refs = [gates.wait.remote(name) for name in range(2)]
        results = fw.util.as_completed(refs)
        step = asyncio.ensure_future(anext(results))
        done, _ = await asyncio.wait([step], timeout=0.01)
        assert not done
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        await gates.open.remote(0)
        await gates.open.remote(1)
        return [result async for result in results]

    assert sorted(asyncio.run(main())) == [0, 1]


def test_cancelling_while_a_large_value_is_read_loses_nothing(session: object) -> None:
    async def main() -> list[int]:
        refs = [large.remote(n) for n in range(40)]
        await asyncio.wait(refs)  # type: ignore[type-var]
        results, found = fw.util.as_completed(refs), []
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
        return found

    assert sorted(asyncio.run(main())) == list(range(40))


def test_several_consumers_of_one_iterator_share_it(session: object) -> None:
    async def consume(results: AsyncIterator[int]) -> list[int]:
        return [result async for result in results]

    async def main() -> list[list[int]]:
        results = fw.util.as_completed([same.remote(n) for n in range(100)])
        return await asyncio.gather(*(consume(results) for _ in range(3)))

    assert sorted(itertools.chain(*asyncio.run(main()))) == list(range(100))


def test_inside_of_a_task_it_lends_its_cpu(session: object) -> None:
    @fw.remote(num_cpus=2)
    def parent() -> list[int]:
        return sorted(fw.util.as_completed([same.remote(n) for n in range(4)]))

    assert get(parent.remote()) == [0, 1, 2, 3]


def test_references_of_others(session: object, way: Way) -> None:
    @fw.remote
    def make() -> list[Any]:
        return [same.remote(n) for n in range(3)]

    assert sorted(way.all(fw.util.as_completed(get(make.remote()), timeout=LIMIT))) == [0, 1, 2]


# ---- map_unordered -----------------------------------------------------------------------------------


class Counted:
    """Items that count how many of them were taken."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = iter(items)
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = next(self.items)
        self.taken += 1
        return item


def test_every_item_once(session: object, way: Way) -> None:
    assert sorted(way.all(fw.util.map_unordered(same, range(250)))) == list(range(250))


def test_nothing_is_submitted_before_the_first_step_and_no_more_than_the_bound(gates: Any, way: Way) -> None:
    items = Counted(itertools.count())
    results = fw.util.map_unordered(gates.wait, items, backpressure_size=3)
    assert items.taken == 0
    get(gates.open.remote(1))
    assert way.step(results) == 1
    assert items.taken == 3
    get(gates.open.remote(3))
    assert way.step(results) == 3
    assert items.taken == 4
    assert sorted(get(gates.seen.remote())) == [0, 1, 2, 3]


def test_references_that_were_given_out_are_not_kept(session: object, way: Way) -> None:
    results = fw.util.map_unordered(same, range(3), backpressure_size=1, yield_obj_refs=True)
    first = weakref.ref(way.step(results))
    way.step(results)
    wait_until(lambda: first() is None)


@pytest.mark.parametrize("timeout", [LIMIT, 0.001])
async def test_asyncio_wait_does_not_keep_references(gates: Any, timeout: float) -> None:
    gc.collect()
    gc.disable()
    try:
        ref = gates.wait.remote("any")
        if timeout == LIMIT:
            await gates.open.remote("any")
        await asyncio.wait([ref], timeout=timeout)
        watched = weakref.ref(ref)
        del ref
        await gates.open.remote("any")
        async with asyncio.timeout(LIMIT):
            while watched() is not None:
                await asyncio.sleep(0.005)
    finally:
        gc.enable()


def test_no_bound(gates: Any, way: Way) -> None:
    items = Counted(range(150))
    get(gates.open.remote(77))
    assert way.step(fw.util.map_unordered(gates.wait, items, backpressure_size=None)) == 77
    assert items.taken == 150


def test_failing_items_do_not_stop_the_others(session: object, way: Way) -> None:
    results = fw.util.map_unordered(same, [1, "bad", 2, "bad", 3], backpressure_size=2)
    seen: list[Any] = []
    failures = 0
    while True:
        try:
            seen.append(way.step(results))
        except KeyError:
            failures += 1
        except (StopIteration, StopAsyncIteration):
            break
    assert sorted(seen) == [1, 2, 3]
    assert failures == 2


def test_items_that_cannot_be_read_or_sent(session: object, way: Way) -> None:
    def items() -> Iterator[Any]:
        yield 1
        yield (line for line in ())  # cannot be pickled
        yield 2
        raise LookupError("no more")

    results = fw.util.map_unordered(same, items(), backpressure_size=10)
    with pytest.raises(TypeError):
        way.step(results)
    with pytest.raises(LookupError, match="no more"):
        way.step(results)
    assert sorted(way.all(results)) == [1, 2]


def test_references_of_calls(session: object, way: Way) -> None:
    found = way.all(fw.util.map_unordered(same, range(5), chunk_size=2, yield_obj_refs=True))
    assert sorted(get(found)) == list(range(5))


def test_a_function_with_several_results_is_refused(session: object, way: Way) -> None:
    results = fw.util.map_unordered(same.options(num_returns=2), [(1, 2)])
    with pytest.raises(TypeError, match="one result per call"):
        way.step(results)
