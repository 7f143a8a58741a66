"""What type checkers must accept and infer where actors are used. Checked by test_types.py, never run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, assert_type

import framework as fw
from framework.actor import ActorHandle

T = TypeVar("T")


@fw.remote
def number() -> int:
    return 1


@fw.remote
class Counter(fw.Actor):
    kind = "plain"

    def __init__(self, start: int, *, name: str = "") -> None:
        self.value = start

    @fw.method
    def increment(self, by: int = 1) -> int:
        self.value += by
        return self.value

    @fw.method
    def twice(self) -> int:
        assert_type(self.increment(1), int)
        return self.increment(1) + self.increment()

    @fw.method
    async def slowly(self, text: str) -> str:
        assert_type(await self.slowly("a"), str)
        return text

    @fw.method
    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    @fw.method(generator_window=10)
    async def texts(self, n: int) -> AsyncIterator[str]:
        for i in range(n):
            yield str(i)

    @fw.method(num_returns=2, timeout=1.5)
    def pair(self) -> tuple[int, str]:
        return 1, "a"

    @fw.method(num_returns=0)
    def nothing(self) -> None: ...

    @fw.method(num_returns="dynamic")
    def dynamic(self) -> Iterator[int]:
        yield 1

    @fw.method(concurrency_group="io", max_task_retries=2)
    def in_group(self, path: str) -> bytes:
        return path.encode()

    @fw.method()
    def empty_parentheses(self) -> None: ...

    @fw.method
    @classmethod
    def of_class(cls, n: int) -> str:
        return cls.__name__ * n

    @fw.method
    def others(self, friends: list[ActorHandle[Counter]]) -> ActorHandle[Counter]:
        assert_type(friends[0].increment.remote(1), fw.ObjectRef[int])
        return friends[0]

    def helper(self) -> int:
        return self.value


def handles() -> None:
    counter = Counter.remote(1, name="a")
    assert_type(counter, ActorHandle[Counter])
    assert_type(counter.increment.remote(1), fw.ObjectRef[int])
    assert_type(counter.increment.remote(), fw.ObjectRef[int])
    assert_type(counter.increment.remote(by=2), fw.ObjectRef[int])
    assert_type(counter.twice.remote(), fw.ObjectRef[int])
    assert_type(counter.slowly.remote("a"), fw.ObjectRef[str])
    assert_type(counter.numbers.remote(3), fw.ObjectRefGenerator[int])
    assert_type(counter.texts.remote(3), fw.ObjectRefGenerator[str])
    assert_type(counter.pair.remote(), list[fw.ObjectRef[Any]])
    assert_type(counter.nothing.remote(), None)
    assert_type(counter.dynamic.remote(), fw.ObjectRef[Any])
    assert_type(counter.in_group.remote("a"), fw.ObjectRef[bytes])
    assert_type(counter.empty_parentheses.remote(), fw.ObjectRef[None])
    assert_type(counter.of_class.remote(1), fw.ObjectRef[str])
    assert_type(fw.get(counter.increment.remote(1)), int)
    assert_type(fw.get([counter.increment.remote(n) for n in range(3)]), list[int])
    fw.kill(counter)


async def awaited(counter: ActorHandle[Counter]) -> None:
    assert_type(await counter.increment.remote(1), int)
    assert_type(await counter.slowly.remote("a"), str)
    async for ref in counter.texts.remote(3):
        assert_type(await ref, str)


def references_as_arguments(counter: ActorHandle[Counter]) -> None:
    assert_type(counter.increment.remote(number.remote()), fw.ObjectRef[int])
    assert_type(counter.increment.remote(counter.twice.remote()), fw.ObjectRef[int])
    assert_type(Counter.remote(number.remote()), ActorHandle[Counter])
    assert_type(Counter.options(name="a").remote(number.remote()), ActorHandle[Counter])


def options() -> None:
    configured = Counter.options(name="a", lifetime="detached").options(max_restarts=-1)
    counter = configured.remote(1)
    assert_type(counter, ActorHandle[Counter])
    assert_type(counter.increment.options(timeout=1.0).remote(1), fw.ObjectRef[int])
    assert_type(counter.increment.options(name="a").options(timeout=1.0).remote(1), fw.ObjectRef[int])
    assert_type(counter.pair.options(num_returns=1).remote(), fw.ObjectRef[Any])
    assert_type(counter.increment.options(num_returns=0).remote(1), None)
    assert_type(counter.twice.options(num_returns=3).remote(), list[fw.ObjectRef[Any]])


def special_calls(counter: ActorHandle[Counter]) -> None:
    assert_type(counter.__ray_ready__.remote(), fw.ObjectRef[bool])
    assert_type(counter.__ray_call__.remote(lambda self, n: n, 1), fw.ObjectRef[Any])
    assert_type(counter.__ray_terminate__.remote(), fw.ObjectRef[None])


def in_annotations(by_name: dict[str, ActorHandle[Counter]], maybe: ActorHandle[Counter] | None) -> None:
    found: ActorHandle[Counter] = fw.get_actor("counter")
    assert_type(found.increment.remote(1), fw.ObjectRef[int])
    assert_type(by_name["a"].increment.remote(1), fw.ObjectRef[int])
    if maybe is not None:
        assert_type(maybe.increment.remote(1), fw.ObjectRef[int])


@fw.remote(num_cpus=0.5, max_restarts=1)
class Derived(Counter):
    def __init__(self, text: str) -> None:
        super().__init__(1)

    @fw.method
    def increment(self, by: int = 1) -> int:
        return super().increment(by) + 1

    @fw.method
    def more(self) -> list[str]:
        return []


def inheritance() -> None:
    derived = Derived.remote("a")
    assert_type(derived, ActorHandle[Derived])
    assert_type(derived.increment.remote(1), fw.ObjectRef[int])
    assert_type(derived.twice.remote(), fw.ObjectRef[int])
    assert_type(derived.more.remote(), fw.ObjectRef[list[str]])
    as_base: ActorHandle[Counter] = derived
    as_base.increment.remote(1)


class Shape(fw.Actor, ABC):
    @fw.method
    @abstractmethod
    def area(self) -> float: ...


@fw.remote
@dataclass
class Square(Shape):
    side: float

    @fw.method
    def area(self) -> float:
        return self.side**2


def abstract_bases_and_dataclasses() -> None:
    shape: ActorHandle[Shape] = Square.remote(2.0)
    assert_type(shape.area.remote(), fw.ObjectRef[float])


@fw.remote
class Box(fw.Actor, Generic[T]):
    def __init__(self, item: T) -> None:
        self.item = item

    @fw.method
    def open(self) -> T:
        return self.item

    @fw.method
    def put(self, item: T) -> None:
        self.item = item


def generics(texts: ActorHandle[Box[str]]) -> None:
    assert_type(texts.open.remote(), fw.ObjectRef[str])
    assert_type(texts.put.remote("a"), fw.ObjectRef[None])
    assert_type(Box[int].remote(1).open.remote(), fw.ObjectRef[int])


# The call form, and classes without the base: everything about their handles is unknown, so nothing is wrong.


class Later(fw.Actor):
    @fw.method
    def run(self) -> int:
        return 1


RemoteLater = fw.remote(Later)
WithOptions = fw.remote(num_cpus=1)(Later)


class Plain:
    def __init__(self, start: int) -> None: ...
    def run(self) -> int:
        return 1


RemotePlain = fw.remote(Plain)


def call_form() -> None:
    assert_type(RemoteLater.remote().run.remote(), fw.ObjectRef[int])
    assert_type(WithOptions.remote().run.remote(), fw.ObjectRef[int])
    plain = RemotePlain.options(num_cpus=1).remote(1)
    plain.run.remote()
    fw.get(plain.run.options(num_returns=2).remote())


def unknown_handles(any_handle: ActorHandle[Any]) -> None:
    any_handle.whatever.remote(1)
    fw.get_actor("a").whatever.remote()
