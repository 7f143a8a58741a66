"""Streaming generators with real workers: order, backpressure, errors at their place, stopping, sharing,
worker death."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from support.leaks import framework_processes, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

PATIENCE = 15.0  # seconds for something that takes milliseconds when it works


@fw.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


@fw.remote
async def acount(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@fw.remote
def recorded(n: int, progress: str, ended: str) -> Iterator[int]:
    """Writes how far it got, one byte per item, before it yields that item."""
    try:
        with open(progress, "ab", buffering=0) as file:
            for i in range(n):
                file.write(b".")
                yield i
    finally:
        Path(ended).touch()


@fw.remote
async def arecorded(n: int, progress: str, ended: str) -> AsyncIterator[int]:
    try:
        with open(progress, "ab", buffering=0) as file:
            for i in range(n):
                file.write(b".")
                yield i
    finally:
        Path(ended).touch()


@fw.remote
def where() -> int:
    return os.getpid()


class Record:
    """Files by which a generator tells the test what it does."""

    def __init__(self, directory: Path) -> None:
        self.progress = directory / "progress"
        self.ended = directory / "ended"
        self.arguments = (str(self.progress), str(self.ended))

    def made(self) -> int:
        return self.progress.stat().st_size if self.progress.exists() else 0

    def settled(self, least: int) -> int:
        """How many items were made when no more are for a while, and there are so many."""
        wait_until(lambda: self.made() >= least, PATIENCE, f"{least} items")
        last, since = self.made(), time.monotonic()
        while time.monotonic() - since < 0.15:
            time.sleep(0.005)
            if self.made() != last:
                last, since = self.made(), time.monotonic()
        return last


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path)


def take(generator: Any, n: int) -> list[Any]:
    return [fw.get(next(generator), timeout=PATIENCE) for _ in range(n)]


def rest(generator: Any) -> list[Any]:
    return [fw.get(ref, timeout=PATIENCE) for ref in generator]


def all_cpus_free() -> bool:
    return fw.available_resources().get("CPU") == 2.0


# ---- items -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [count, acount], ids=["plain", "async"])
def test_for(session: object, function: Any) -> None:
    generator = function.remote(100)
    assert isinstance(generator, fw.ObjectRefGenerator)
    refs = list(generator)
    assert all(isinstance(ref, fw.ObjectRef) for ref in refs)
    assert fw.get(refs) == list(range(100))
    assert list(generator) == []
    assert rest(function.remote(0)) == []


@pytest.mark.parametrize("function", [count, acount], ids=["plain", "async"])
async def test_async_for(session: object, function: Any) -> None:
    assert [await ref async for ref in function.remote(200)] == list(range(200))
    generator = function.remote(1)
    assert await (await anext(generator)) == 0
    with pytest.raises(StopAsyncIteration):
        await anext(generator)
    assert await anext(generator, "default") == "default"


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_items_arrive_while_the_task_runs(session: object, tmp_path: Path, kind: str) -> None:
    @fw.remote
    def plain() -> Iterator[str]:
        for name in "abc":
            yield name
            while not (tmp_path / name).exists():
                time.sleep(0.005)

    @fw.remote
    async def coroutine() -> AsyncIterator[str]:
        for name in "abc":
            yield name
            while not (tmp_path / name).exists():
                await asyncio.sleep(0.005)

    generator: Any = plain.remote() if kind == "plain" else coroutine.remote()
    for name in "abc":
        assert fw.get(next(generator), timeout=PATIENCE) == name
        assert not generator.is_finished()
        assert not generator.next_ready()
        (tmp_path / name).touch()
    assert list(generator) == []


def test_values_of_all_kinds(session: object) -> None:
    @fw.remote
    def things() -> Iterator[Any]:
        yield None
        yield "text"
        yield {"a": [1, 2]}
        yield np.arange(1000)
        yield fw.put("nested")
        yield [fw.put(1), fw.put(2)]
        yield b"bytes"

    values = rest(things.remote())
    assert values[:3] == [None, "text", {"a": [1, 2]}]
    assert (values[3] == np.arange(1000)).all()
    assert fw.get(values[4], timeout=PATIENCE) == "nested"
    assert fw.get(values[5], timeout=PATIENCE) == [1, 2]
    assert values[6] == b"bytes"


def test_refs_in_items_outlive_the_task(session: object) -> None:
    @fw.remote
    def refs(n: int) -> Iterator[list[Any]]:
        for i in range(n):
            yield [fw.put({"number": i})]

    items = list(refs.remote(20))
    gc.collect()
    inner = [fw.get(item, timeout=PATIENCE)[0] for item in items]
    del items
    gc.collect()
    fw.get(where.remote(), timeout=PATIENCE)
    assert [value["number"] for value in fw.get(inner, timeout=PATIENCE)] == list(range(20))


def test_big_items(session: object) -> None:
    @fw.remote
    def arrays() -> Iterator[Any]:
        for i in range(6):
            yield np.full(500_000, i, dtype=np.int64)

    for i, ref in enumerate(arrays.remote()):
        value = fw.get(ref, timeout=PATIENCE)
        assert value.shape == (500_000,)
        assert int(value[0]) == int(value[-1]) == i


def test_items_are_refs_like_others(session: object) -> None:
    @fw.remote
    def add(a: int, b: int) -> int:
        return a + b

    first, second = count.remote(2)
    assert fw.get(add.remote(first, second), timeout=PATIENCE) == 1
    done, pending = fw.wait([first, second], num_returns=2, timeout=PATIENCE)
    assert (done, pending) == ([first, second], [])
    assert first.task_id() == second.task_id()
    assert first != second


@pytest.mark.slow
def test_fifty_thousand_items(session: object) -> None:
    begin = time.perf_counter()
    total = 0
    for ref in count.remote(50_000):
        total += fw.get(ref)
    took = time.perf_counter() - begin
    assert total == sum(range(50_000))
    assert took < 20, f"{50_000 / took:.0f} items/s"


# ---- kinds of functions ------------------------------------------------------------------------------------


def test_streaming_from_a_function_that_returns_an_iterable(session: object) -> None:
    @fw.remote(num_returns="streaming")
    def iterator(n: int) -> Any:
        return iter(range(n))

    @fw.remote(num_returns="streaming")
    def listed(n: int) -> Any:
        return list(range(n))

    @fw.remote(num_returns="streaming")
    async def coroutine(n: int) -> Any:
        await asyncio.sleep(0)
        return iter(range(n))

    for function in (iterator, listed, coroutine):
        assert rest(function.remote(5)) == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]
    assert rest(count.options(num_returns="streaming").remote(3)) == [0, 1, 2]


def test_streaming_from_a_function_that_returns_no_iterable(session: object) -> None:
    @fw.remote(num_returns="streaming")
    def number() -> Any:
        return 3

    (ref,) = list(number.remote())
    with pytest.raises(TypeError, match=r'number\(\) has num_returns="streaming".*returned int'):
        fw.get(ref, timeout=PATIENCE)


def test_dynamic(session: object) -> None:
    @fw.remote(num_returns="dynamic")
    def split(n: int) -> Iterator[Any]:
        for i in range(n):
            yield np.full(10, i)

    ref = split.remote(200)
    assert isinstance(ref, fw.ObjectRef)
    generator: Any = fw.get(ref, timeout=PATIENCE)
    refs = list(generator)
    assert [int(fw.get(item)[0]) for item in refs] == list(range(200))
    assert refs == list(generator), "it can be iterated over again"
    del generator, ref
    gc.collect()
    assert int(fw.get(refs[7])[0]) == 7


def test_dynamic_that_fails(session: object) -> None:
    @fw.remote(num_returns="dynamic")
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("half way")

    with pytest.raises(LookupError, match="half way"):
        fw.get(broken.remote(), timeout=PATIENCE)


def test_dynamic_value_in_another_task(session: object) -> None:
    @fw.remote(num_returns="dynamic")
    def split() -> Iterator[int]:
        yield from range(5)

    @fw.remote
    def total(generator: Any) -> int:
        return sum(fw.get(list(generator)))

    assert fw.get(total.remote(split.remote()), timeout=PATIENCE) == 10


def test_misuse_says_what_to_do(session: object) -> None:
    generator = count.remote(3)
    with pytest.raises(TypeError, match="iterate"):
        fw.get(generator)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="cannot be sent"):
        generator.send(1)  # type: ignore[arg-type]
    assert fw.get(generator.send(None)) == 0


# ---- backpressure ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("function", [recorded, arecorded], ids=["plain", "async"])
def test_the_producer_is_bounded(session: object, record: Record, function: Any, window: int) -> None:
    generator = function.options(generator_window=window).remote(1000, *record.arguments)
    assert record.settled(window) == window
    assert take(generator, window) == list(range(window))
    assert record.settled(window + 1) <= 2 * window
    assert take(generator, 20) == list(range(window, window + 20))
    assert record.settled(window + 20) <= 2 * window + 20
    assert rest(generator) == list(range(window + 20, 1000))
    assert record.made() == 1000


@fw.remote
def recorded_large(n: int, progress: str, ended: str) -> Iterator[bytes]:
    with open(progress, "ab", buffering=0) as file:
        for i in range(n):
            file.write(b".")
            yield bytes([i % 256]) * 2000


@pytest.mark.slow
@pytest.mark.parametrize("function", [recorded, arecorded], ids=["plain", "async"])
def test_the_default_window_of_quick_small_items(session: object, record: Record, function: Any) -> None:
    generator = function.remote(5000, *record.arguments)
    # (Where others have the processor meanwhile, it may look slow: then it stays behind that.)
    assert record.settled(64) <= 1024
    assert take(generator, 1500) == list(range(1500))
    assert record.settled(1500) <= 1500 + 1024
    assert rest(generator) == list(range(1500, 5000))


def test_the_default_window_of_large_items(session: object, record: Record) -> None:
    generator = recorded_large.remote(1000, *record.arguments)
    assert record.settled(64) == 64
    generator.close()


@pytest.mark.slow
def test_the_default_window_of_slow_items(session: object, record: Record) -> None:
    @fw.remote
    def slow(progress: str) -> Iterator[int]:
        with open(progress, "ab", buffering=0) as file:
            for i in range(1000):
                time.sleep(0.001)
                file.write(b".")
                yield i

    generator = slow.remote(record.arguments[0])
    assert record.settled(64) == 64
    generator.close()


def test_an_unbounded_producer(session: object, record: Record) -> None:
    generator = recorded.options(generator_window=-1).remote(2000, *record.arguments)
    wait_until(record.ended.exists, PATIENCE, "the end of the producer")
    assert record.made() == 2000
    assert rest(generator) == list(range(2000))


def test_rays_name_for_the_window(session: object, record: Record) -> None:
    generator = recorded.options(_generator_backpressure_num_objects=5).remote(100, *record.arguments)
    assert record.settled(5) == 5
    generator.close()


@pytest.mark.parametrize("function", [recorded, arecorded], ids=["plain", "async"])
def test_a_producer_without_credits_lends_its_cpus(session: object, record: Record, function: Any) -> None:
    generator = function.options(num_cpus=2, generator_window=2).remote(100, *record.arguments)
    assert fw.get(next(generator), timeout=PATIENCE) == 0
    assert fw.get([where.options(num_cpus=2).remote() for _ in range(3)], timeout=PATIENCE)
    assert rest(generator) == list(range(1, 100))
    wait_until(all_cpus_free, PATIENCE, "all CPUs to be free again")


# ---- errors ------------------------------------------------------------------------------------------------


@fw.remote
def breaks_after(n: int) -> Iterator[int]:
    yield from range(n)
    raise ValueError(f"after {n}")


@fw.remote
async def abreaks_after(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i
    raise ValueError(f"after {n}")


@pytest.mark.parametrize("function", [breaks_after, abreaks_after], ids=["plain", "async"])
@pytest.mark.parametrize("n", [0, 1, 100])
def test_an_exception_arrives_at_its_place(session: object, function: Any, n: int) -> None:
    refs = list(function.remote(n))
    assert len(refs) == n + 1
    assert fw.get(refs[:-1]) == list(range(n))
    with pytest.raises(ValueError, match=f"after {n}"):
        fw.get(refs[-1])


async def test_an_exception_in_async_for(session: object) -> None:
    seen = []
    with pytest.raises(ValueError, match="after 3"):
        async for ref in breaks_after.remote(3):
            seen.append(await ref)
    assert seen == [0, 1, 2]


def test_an_item_that_cannot_be_pickled(session: object) -> None:
    @fw.remote
    def locks() -> Iterator[Any]:
        yield 1
        yield {"inner": threading.Lock()}
        yield 3

    good, bad = list(locks.remote())
    assert fw.get(good) == 1
    with pytest.raises(fw.exceptions.SerializationError, match=r"item 1 of locks\(\)") as raised:
        fw.get(bad)
    assert "inner" in str(raised.value)


def test_an_argument_that_fails(session: object) -> None:
    @fw.remote
    def fails() -> int:
        raise LookupError("the argument")

    (ref,) = list(count.remote(fails.remote()))
    with pytest.raises(LookupError, match="the argument"):
        fw.get(ref)


def test_sys_exit_in_a_generator(session: object) -> None:
    @fw.remote
    def leaves() -> Iterator[int]:
        yield 1
        sys.exit(3)

    first, last = list(leaves.remote())
    assert fw.get(first) == 1
    with pytest.raises(RuntimeError, match=r"sys\.exit"):
        fw.get(last)


def test_retry_exceptions_makes_each_item_once(session: object, tmp_path: Path) -> None:
    @fw.remote(max_retries=3, retry_exceptions=True, generator_window=4)
    def flaky(n: int, fail_at: int) -> Iterator[int]:
        attempt = len(list(tmp_path.iterdir()))
        (tmp_path / str(attempt)).touch()
        for i in range(n):
            if i == fail_at and attempt < 2:
                raise OSError("not yet")
            yield i

    assert rest(flaky.remote(30, 20)) == list(range(30))
    assert len(list(tmp_path.iterdir())) == 3


# ---- stopping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [recorded, arecorded], ids=["plain", "async"])
def test_close_stops_the_producer(session: object, record: Record, function: Any) -> None:
    generator = function.remote(10**9, *record.arguments)
    assert take(generator, 3) == [0, 1, 2]
    generator.close()
    wait_until(record.ended.exists, PATIENCE, "the producer's finally")
    assert list(generator) == []
    assert generator.is_finished()
    generator.close()
    wait_until(all_cpus_free, PATIENCE, "all CPUs to be free again")


@pytest.mark.parametrize("function", [recorded, arecorded], ids=["plain", "async"])
def test_dropping_it_stops_the_producer(session: object, record: Record, function: Any) -> None:
    generator = function.options(generator_window=-1).remote(10**9, *record.arguments)
    item = next(generator)
    del generator
    wait_until(record.ended.exists, PATIENCE, "the producer's finally")
    assert fw.get(item) == 0
    wait_until(all_cpus_free, PATIENCE, "all CPUs to be free again")


async def test_aclosing(session: object, record: Record) -> None:
    async with contextlib.aclosing(recorded.remote(10**9, *record.arguments)) as generator:
        async for ref in generator:
            if await ref == 5:
                break
    await asyncio.to_thread(wait_until, record.ended.exists, PATIENCE, "the producer's finally")
    assert [ref async for ref in generator] == []


@pytest.mark.slow
def test_close_stops_a_producer_that_makes_no_more_items(session: object, record: Record) -> None:
    """One that does not come to its next `yield` is interrupted after a second."""

    @fw.remote
    def plain() -> Iterator[int]:
        try:
            yield 1
            time.sleep(1e6)
        finally:
            record.ended.touch()

    @fw.remote
    async def coroutine() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(1e6)
        finally:
            record.ended.touch()

    for function in (plain, coroutine):
        generator: Any = function.remote()  # type: ignore[attr-defined]
        assert take(generator, 1) == [1]
        generator.close()
        wait_until(record.ended.exists, PATIENCE, "the producer's finally")
        record.ended.unlink()
    wait_until(all_cpus_free, PATIENCE, "all CPUs to be free again")


def test_a_generator_closed_before_it_begins_never_runs(
    session: object, record: Record, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    @fw.remote(num_cpus=2)
    def hold() -> None:
        while not gate.exists():
            time.sleep(0.005)

    holding = hold.remote()
    generator = recorded.remote(10, *record.arguments)
    generator.close()
    gate.touch()
    fw.get(holding, timeout=PATIENCE)
    assert fw.get([where.remote() for _ in range(4)], timeout=PATIENCE)
    assert list(generator) == []
    assert record.made() == 0


@pytest.mark.parametrize("function", [recorded, arecorded], ids=["plain", "async"])
def test_cancel(session: object, record: Record, function: Any) -> None:
    generator = function.options(generator_window=4).remote(10**9, *record.arguments)
    assert take(generator, 2) == [0, 1]
    fw.cancel(generator)
    wait_until(record.ended.exists, PATIENCE, "the producer's finally")
    refs = list(generator)
    for ref in refs[:-1]:
        fw.get(ref)
    with pytest.raises(fw.exceptions.TaskCancelledError):
        fw.get(refs[-1])
    with pytest.raises(fw.exceptions.TaskCancelledError):
        fw.get(generator.completed(), timeout=PATIENCE)


def test_cancel_while_it_sleeps(session: object) -> None:
    @fw.remote
    def sleeper() -> Iterator[int]:
        yield 1
        time.sleep(1e6)

    generator = sleeper.remote()
    assert take(generator, 1) == [1]
    fw.cancel(generator)
    with pytest.raises(fw.exceptions.TaskCancelledError):
        fw.get(next(generator), timeout=PATIENCE)
    assert list(generator) == []


def test_breaking_out_releases_the_worker(session: object, record: Record) -> None:
    generator = recorded.options(num_cpus=2).remote(10**9, *record.arguments)
    for ref in generator:
        if fw.get(ref) == 10:
            break
    # The generator still lives: its producer waits, and is in nobody's way.
    assert fw.get([where.options(num_cpus=2).remote() for _ in range(5)], timeout=PATIENCE)
    assert fw.get(next(generator)) == 11
    generator.close()
    wait_until(record.ended.exists, PATIENCE, "the producer's finally")


def test_a_timeout_of_the_producer(session: object) -> None:
    @fw.remote(timeout=0.3)
    def endless() -> Iterator[int]:
        yield 1
        time.sleep(1e6)

    generator = endless.remote()
    assert take(generator, 1) == [1]
    with pytest.raises(fw.exceptions.TaskTimeoutError):
        fw.get(next(generator), timeout=PATIENCE)


# ---- questions ---------------------------------------------------------------------------------------------


def test_completed_next_ready_and_is_finished(session: object, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @fw.remote
    def held() -> Iterator[int]:
        yield 1
        while not gate.exists():
            time.sleep(0.005)
        yield 2

    generator = held.remote()
    wait_until(generator.next_ready, PATIENCE, "the first item")
    assert take(generator, 1) == [1]
    assert not generator.next_ready()
    assert not generator.is_finished()
    assert not generator.completed().done()
    gate.touch()
    assert fw.get(generator.completed(), timeout=PATIENCE) is None
    assert generator.next_ready()
    assert not generator.is_finished(), "an item is left"
    assert take(generator, 1) == [2]
    assert generator.is_finished()


def test_wait_takes_generators(session: object, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @fw.remote
    def held() -> Iterator[int]:
        while not gate.exists():
            time.sleep(0.005)
        yield 1

    slow, fast, ref = held.remote(), count.remote(1), where.remote()
    ready, pending = fw.wait([slow, fast, ref], num_returns=2, timeout=PATIENCE)  # type: ignore[list-item]
    assert (ready, pending) == ([fast, ref], [slow])
    ready, pending = fw.wait([slow], timeout=0)  # type: ignore[list-item]
    assert (ready, pending) == ([], [slow])
    gate.touch()
    ready, _ = fw.wait([slow], timeout=PATIENCE)  # type: ignore[list-item]
    assert ready == [slow]
    assert rest(slow) == [1]
    ready, _ = fw.wait([slow], timeout=PATIENCE)  # type: ignore[list-item]
    assert ready == [slow], "a generator that has ended is ready"


# ---- several consumers -------------------------------------------------------------------------------------


def test_several_threads(session: object) -> None:
    generator = count.options(generator_window=8).remote(2000)
    lists: list[list[int]] = [[] for _ in range(6)]

    def consume(into: list[int]) -> None:
        for ref in generator:
            into.append(fw.get(ref))

    threads = [threading.Thread(target=consume, args=(into,), daemon=True) for into in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sorted(itertools.chain(*lists)) == list(range(2000))
    assert all(into == sorted(into) for into in lists)


async def test_several_coroutines(session: object) -> None:
    generator = count.options(generator_window=4).remote(500)

    async def consume() -> list[int]:
        return [await ref async for ref in generator]

    lists = await asyncio.wait_for(asyncio.gather(*[consume() for _ in range(5)]), PATIENCE)
    assert sorted(itertools.chain(*lists)) == list(range(500))


async def test_a_consumer_that_gives_up_loses_nothing(session: object, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @fw.remote
    def held() -> Iterator[int]:
        while not gate.exists():
            time.sleep(0.005)
        yield from range(3)

    generator = held.remote()
    for _ in range(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(generator), 0.001)
    gate.touch()
    assert [await ref async for ref in generator] == [0, 1, 2]


# ---- passed to other processes -----------------------------------------------------------------------------


@fw.remote
def consume_some(generator: Any, n: int) -> list[int]:
    return [fw.get(next(generator)) for _ in range(n)]


@fw.remote
def consume_all(generator: Any) -> list[int]:
    return [fw.get(ref) for ref in generator]


@fw.remote
async def aconsume_all(generator: Any) -> list[int]:
    return [await ref async for ref in generator]


@pytest.mark.parametrize("consumer", [consume_all, aconsume_all], ids=["plain", "async"])
def test_passed_to_a_task(session: object, consumer: Any) -> None:
    assert fw.get(consumer.remote(count.remote(300)), timeout=PATIENCE) == list(range(300))
    assert fw.get(consumer.remote(count.remote(0)), timeout=PATIENCE) == []


def test_half_here_half_there(session: object) -> None:
    generator = count.options(generator_window=4).remote(100)
    assert take(generator, 10) == list(range(10))
    assert fw.get(consume_some.remote(generator, 20), timeout=PATIENCE) == list(range(10, 30))
    assert take(generator, 10) == list(range(30, 40))
    there = [consume_all.remote(generator) for _ in range(2)]
    here = rest(generator)
    assert sorted(itertools.chain(here, *fw.get(there, timeout=PATIENCE))) == list(range(40, 100))


def test_an_error_reaches_another_process(session: object) -> None:
    with pytest.raises(ValueError, match="after 5"):
        fw.get(consume_all.remote(breaks_after.remote(5)), timeout=PATIENCE)


def test_questions_in_another_process(session: object) -> None:
    @fw.remote
    def ask(generator: Any) -> tuple[int, bool, bool]:
        while not generator.next_ready():
            time.sleep(0.001)
        value = fw.get(next(generator))
        before = generator.is_finished()
        assert list(generator) == []
        return value, before, generator.is_finished()

    assert fw.get(ask.remote(count.remote(1)), timeout=PATIENCE) == (0, False, True)


def test_closed_by_another_process(session: object, record: Record) -> None:
    @fw.remote
    def close(generator: Any) -> list[int]:
        first = fw.get(next(generator))
        generator.close()
        return [first, *generator]

    generator = recorded.remote(10**9, *record.arguments)
    assert fw.get(close.remote(generator), timeout=PATIENCE) == [0]
    wait_until(record.ended.exists, PATIENCE, "the producer's finally")
    assert list(generator) == []


def test_dropped_by_its_last_process(session: object, record: Record) -> None:
    assert fw.get(
        consume_some.remote(recorded.remote(10**9, *record.arguments), 5), timeout=PATIENCE
    ) == list(range(5))
    wait_until(record.ended.exists, PATIENCE, "the producer's finally")


def test_a_consumer_elsewhere_that_gives_up_loses_nothing(session: object, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @fw.remote
    def held() -> Iterator[int]:
        while not gate.exists():
            time.sleep(0.005)
        yield from range(5)

    @fw.remote
    async def impatient(generator: Any) -> list[int]:
        for _ in range(10):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(anext(generator), 0.002)
                raise AssertionError("there was nothing yet")
        gate.touch()
        return [await ref async for ref in generator]

    assert fw.get(impatient.remote(held.remote()), timeout=PATIENCE) == [0, 1, 2, 3, 4]


def test_made_by_a_task_and_consumed_here(session: object) -> None:
    @fw.remote
    def nested(n: int) -> Iterator[int]:
        for ref in count.remote(n):
            yield fw.get(ref) * 10

    assert rest(nested.remote(50)) == [10 * i for i in range(50)]


def test_the_process_that_owns_it_ends(session: object) -> None:
    @fw.remote
    class Owner:
        def make(self) -> Any:
            self.generator = count.options(generator_window=2).remote(10**9)
            return [self.generator]

    owner = Owner.remote()
    (generator,) = fw.get(owner.make.remote(), timeout=PATIENCE)
    assert take(generator, 5) == list(range(5))
    fw.kill(owner)
    with pytest.raises(fw.exceptions.OwnerDiedError, match="generator"):
        for ref in generator:
            with contextlib.suppress(fw.exceptions.OwnerDiedError):  # an item that had come, and no value
                fw.get(ref)
    wait_until(all_cpus_free, PATIENCE, "its producer to end as well")


def test_generators_of_actors(session: object) -> None:
    @fw.remote
    class Source:
        def plain(self, n: int) -> Iterator[int]:
            yield from range(n)

    @fw.remote
    class AsyncSource:
        async def coroutine(self, n: int) -> AsyncIterator[int]:
            for i in range(n):
                await asyncio.sleep(0)
                yield i

    source, asource = Source.remote(), AsyncSource.remote()
    assert rest(source.plain.options(num_returns="streaming").remote(200)) == list(range(200))
    one, two = asource.coroutine.remote(200), asource.coroutine.remote(200)
    pairs = [(fw.get(a), fw.get(b)) for a, b in zip(one, two, strict=True)]
    assert pairs == [(i, i) for i in range(200)]


# ---- death of the worker -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 5, -1])
def test_a_retry_goes_on_without_gaps_or_repetitions(session: object, tmp_path: Path, window: int) -> None:
    @fw.remote(max_retries=5, generator_window=window)
    def dies(n: int) -> Iterator[Any]:
        attempt = len(list(tmp_path.iterdir()))
        (tmp_path / str(attempt)).touch()
        for i in range(n):
            if attempt < 3 and i == 10 * (attempt + 1):
                os.kill(os.getpid(), signal.SIGKILL)
            yield [i, fw.put(i)] if i % 7 == 0 else i

    values = rest(dies.remote(60))
    assert [value[0] if isinstance(value, list) else value for value in values] == list(range(60))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.slow
def test_a_retry_is_bounded_too(session: object, record: Record, tmp_path: Path) -> None:
    died = tmp_path / "died"

    @fw.remote(max_retries=1, generator_window=4)
    def dies(n: int) -> Iterator[int]:
        for i in range(n):
            if i == 10 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with record.progress.open("ab") as file:
                file.write(b"." if died.exists() else b"")
            yield i

    generator = dies.remote(1000)
    assert take(generator, 8) == list(range(8))  # so the first attempt may go as far as to its death
    wait_until(died.exists, PATIENCE, "the death of the worker")
    assert record.settled(8) <= 8 + 4
    assert rest(generator) == list(range(8, 1000))


@pytest.mark.slow
def test_without_retries_the_error_is_at_its_place(session: object) -> None:
    @fw.remote(max_retries=0)
    def dies() -> Iterator[int]:
        yield 1
        yield 2
        os._exit(9)

    one, two, error = list(dies.remote())
    assert fw.get([one, two]) == [1, 2]
    with pytest.raises(fw.exceptions.WorkerCrashedError, match="9"):
        fw.get(error)


# ---- the driver's end --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pass", "os._exit(0)", "raise SystemExit(0)"])
def test_the_driver_ends_while_a_generator_runs(session_root: Path, tmp_path: Path, ending: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, framework as fw\n"
        "@fw.remote(generator_window=-1)\n"
        "def endless():\n"
        "    i = 0\n"
        "    while True:\n"
        "        yield i\n"
        "        i += 1\n"
        "fw.init(num_cpus=1)\n"
        "generator = endless.remote()\n"
        "print(fw.get(next(generator)), flush=True)\n"
        f"{ending}\n"
    )
    root = tmp_path / "s"
    root.mkdir()
    env = {**os.environ, "FRAMEWORK_TMPDIR": str(root), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(program)], env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    wait_until(lambda: not framework_processes(root), 5, "the end of all processes")
