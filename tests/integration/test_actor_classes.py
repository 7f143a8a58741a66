"""What a class may have to become an actor, and what its methods give."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import pytest

import framework as fw
from framework.exceptions import (
    ActorDiedError,
)
from support.actors import Counter, Gate, get
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

T = TypeVar("T")


class Base:
    def __init__(self) -> None:
        self.total = 5

    def total(self) -> int:  # type: ignore[no-redef]
        return self.total  # type: ignore[return-value]

    def who(self) -> str:
        return "base"

    def both(self) -> str:
        return self.who() + "/" + Base.who(self)


@fw.remote
class Derived(Base):
    @property
    def prop(self) -> str:
        return "property"

    def who(self) -> str:
        return "derived"

    @staticmethod
    def static(n: int) -> int:
        return n * 2

    @classmethod
    def cls(cls) -> str:
        return cls.__name__

    def __call__(self, n: int) -> int:
        return n + 1

    def read(self) -> str:
        return self.prop

    @fw.method(num_returns=2)
    def two(self) -> tuple[int, int]:
        return 1, 2

    def three(self) -> list[int]:
        return [1, 2, 3]

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    def say(self) -> None:
        print("hello from an actor")


def test_inheritance_properties_static_class_and_special_methods(session: object) -> None:
    actor = Derived.remote()
    assert get(actor.both.remote()) == "derived/base"
    assert get(actor.total.remote()) == 5, "an attribute of the instance does not hide the method"
    assert get(actor.static.remote(4)) == 8
    assert get(actor.cls.remote()) == "Derived"
    assert get(actor.__call__.remote(1)) == 2
    assert get(actor.read.remote()) == "property"
    with pytest.raises(AttributeError, match="no method 'prop'; it has: .*both"):
        _ = actor.prop
    with pytest.raises(AttributeError, match="no method 'nothing'"):
        actor.nothing.remote()


def test_numbers_of_returns(session: object) -> None:
    actor = Derived.remote()
    first, second = actor.two.remote()
    assert get([first, second]) == [1, 2]
    assert get(actor.three.options(num_returns=3).remote()) == [1, 2, 3]
    assert get(actor.three.remote()) == [1, 2, 3]
    assert actor.say.options(num_returns=0).remote() is None
    wrong = actor.three.options(num_returns=2).remote()
    with pytest.raises(ValueError, match="num_returns=2, but returned 3 values"):
        get(wrong[0])
    assert [get(ref) for ref in actor.numbers.remote(5)] == [0, 1, 2, 3, 4]


def test_a_generic_class(session: object) -> None:
    class Box(Generic[T]):
        def __init__(self, item: T) -> None:
            self.item = item

        def open(self) -> T:
            return self.item

    assert get(fw.remote(Box).remote("x").open.remote()) == "x"


def test_a_class_by_value_that_extends_a_remote_class(session: object) -> None:
    class More(Counter):  # type: ignore[misc, valid-type]
        def twice(self) -> int:
            self.inc()
            return self.inc()  # type: ignore[no-any-return]

    assert get(fw.remote(More).remote(1).twice.remote()) == 3


def test_special_calls(session: object) -> None:
    counter = Counter.remote(3)
    assert get(counter.__ray_ready__.remote()) is True
    assert get(counter.__ray_call__.remote(lambda self, n: self.value + n, 4)) == 7
    gate = Gate.remote()

    async def waiting(self: Any) -> int:
        await asyncio.sleep(0)
        return self.waiting  # type: ignore[no-any-return]

    assert get(gate.__ray_call__.remote(waiting)) == 0
    pid = get(counter.pid.remote())
    counter.__ray_terminate__.remote()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), what="its end")
    with pytest.raises(ActorDiedError, match="__ray_terminate__"):
        get(counter.inc.remote())
