"""What type checkers must accept and infer. Checked by test_types.py, never run."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import framework as fw


@fw.remote
def increment(x: int) -> int:
    return x + 1


@fw.remote
def describe(x: int, *, prefix: str = "") -> str:
    return f"{prefix}{x}"


@fw.remote
def nothing() -> None: ...


@fw.remote(num_cpus=2, max_retries=0)
def with_options(x: int, y: str) -> list[str]:
    return [y] * x


@fw.remote
async def in_a_coroutine(x: int) -> str:
    return str(x)


@fw.remote
def stream(n: int) -> Iterator[int]:
    yield from range(n)


@fw.remote
async def async_stream(n: int) -> AsyncIterator[str]:
    for number in range(n):
        yield str(number)


class Counter:
    def __init__(self, start: int) -> None:
        self.value = start

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value


# mypy does not apply the decorators of classes, so that `@fw.remote class …` keeps its plain type there;
# the call form is seen by both checkers.
Counters = fw.remote(Counter)


def submitting() -> None:
    assert_type(increment.remote(1), fw.ObjectRef[int])
    assert_type(increment.remote(x=1), fw.ObjectRef[int])
    assert_type(nothing.remote(), fw.ObjectRef[None])
    assert_type(describe.remote(1, prefix="n"), fw.ObjectRef[str])
    assert_type(with_options.remote(1, "a"), fw.ObjectRef[list[str]])
    assert_type(increment.options(num_cpus=0.5).remote(1), fw.ObjectRef[int])
    assert_type(in_a_coroutine.remote(1), fw.ObjectRef[str])


def references_as_arguments() -> None:
    one = increment.remote(1)
    assert_type(increment.remote(one), fw.ObjectRef[int])
    assert_type(with_options.remote(one, "a"), fw.ObjectRef[list[str]])
    assert_type(with_options.remote(1, describe.remote(one)), fw.ObjectRef[list[str]])


def blocking() -> None:
    one = increment.remote(1)
    assert_type(fw.get(one), int)
    assert_type(fw.get(one, timeout=1.0), int)
    assert_type(fw.get([one, one]), list[int])
    assert_type(fw.get(in_a_coroutine.remote(1)), str)
    assert_type(fw.put(b"data"), fw.ObjectRef[bytes])
    ready, waiting = fw.wait([one], num_returns=1, timeout=0)
    assert_type(ready, list[fw.ObjectRef[int]])
    assert_type(waiting, list[fw.ObjectRef[int]])
    assert_type(one.future(), concurrent.futures.Future[int])
    assert_type(one.hex(), str)


async def awaiting() -> None:
    one = increment.remote(1)
    assert_type(await one, int)
    assert_type(await in_a_coroutine.remote(1), str)
    assert_type(await one.as_future(), int)
    assert_type(await asyncio.gather(one, describe.remote(1)), tuple[int, str])
    assert_type(await asyncio.wait_for(one, timeout=1), int)


async def streaming() -> None:
    numbers = stream.remote(3)
    assert_type(numbers, fw.ObjectRefGenerator[int])
    for ref in numbers:
        assert_type(ref, fw.ObjectRef[int])
    async for ref in stream.remote(3):
        assert_type(await ref, int)
    texts = async_stream.remote(3)
    assert_type(texts, fw.ObjectRefGenerator[str])
    async for text in texts:
        assert_type(await text, str)


async def sessions() -> None:
    with fw.init(num_cpus=1):
        assert_type(fw.is_initialized(), bool)
    async with fw.init():
        pass


def actors() -> None:
    counter = Counters.remote(1)
    counter.add.remote(2)
    counter.add.options(num_returns=1, concurrency_group="io").remote(2)
    Counters.options(name="counter", lifetime="detached", max_restarts=-1).remote(0)


@fw.remote(
    num_cpus=0.5, resources={"disk": 1}, retry_exceptions=[OSError], runtime_env={"env_vars": {"A": "1"}}
)
def many_options() -> None: ...


@fw.remote(max_concurrency=4, concurrency_groups={"io": 2})
class WithMethods:
    @fw.method(num_returns=2, timeout=1.5)
    def pair(self) -> tuple[int, int]:
        return 1, 2
