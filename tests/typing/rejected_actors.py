"""What type checkers must complain about where actors are used: each line marked «error». Never run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import framework as fw
from framework.actor import ActorHandle

T = TypeVar("T")


@fw.remote
def text() -> str:
    return ""


@fw.remote
class Counter(fw.Actor):
    def __init__(self, start: int) -> None:
        self.value = start

    @fw.method
    def increment(self, by: int = 1) -> int:
        self.increment("one")  # error
        return by

    @fw.method
    async def slowly(self, text: str) -> str:
        return text

    @fw.method
    def numbers(self, n: int) -> Iterator[int]:
        yield n

    def helper(self) -> None: ...


@fw.remote
class Box(fw.Actor, Generic[T]):
    def __init__(self, item: T) -> None:
        self.item = item

    @fw.method
    def put(self, item: T) -> None: ...


def constructors() -> None:
    Counter.remote()  # error
    Counter.remote("one")  # error
    Counter.remote(1, 2)  # error
    Counter.remote(start="one")  # error
    Counter.remote(text.remote())  # error
    Counter.options(name="a").remote("one")  # error
    Counter.options(name="a").remote()  # error


def methods(counter: ActorHandle[Counter], box: ActorHandle[Box[int]]) -> None:
    counter.increment.remote("one")  # error
    counter.increment.remote(1, 2)  # error
    counter.increment.remote(to=1)  # error
    counter.increment.remote(text.remote())  # error
    counter.increment.options(timeout=1.0).remote("one")  # error
    counter.slowly.remote(1)  # error
    counter.numbers.remote()  # error
    counter.nothing.remote()  # error
    counter.helper.remote()  # error
    box.put.remote("a")  # error


def results(counter: ActorHandle[Counter]) -> None:
    a: str = fw.get(counter.increment.remote(1))  # error
    b: fw.ObjectRef[int] = counter.numbers.remote(1)  # error
    print(a, b)


async def awaited(counter: ActorHandle[Counter]) -> None:
    a: str = await counter.increment.remote(1)  # error
    b: int = await counter.slowly.remote("a")  # error
    print(a, b)


def options(counter: ActorHandle[Counter]) -> None:
    Counter.options(max_retries=1)  # error
    Counter.options(max_restarts="many")  # error
    counter.increment.options(num_cpus=1)  # error
    counter.increment.options(num_returns="stream")  # error
    fw.method(num_returns="stream")  # error
    fw.method(timeouts=1)  # error


def another_class(counter: ActorHandle[Counter]) -> None:
    a: ActorHandle[Box[int]] = counter  # error
    print(a)
