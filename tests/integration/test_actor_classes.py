"""What a class may have to become an actor, and what its methods give."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pytest

import framework as fw
from framework.actor import ActorClass
from framework.exceptions import ActorDiedError
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


# ---- what a class may be -----------------------------------------------------------------------------


class Named(ABC):
    """An abstract base with a mix-in below it."""

    @abstractmethod
    def name(self) -> str: ...

    def shout(self) -> str:
        return self.name().upper()

    def __len__(self) -> int:
        return len(self.name())

    def __contains__(self, text: str) -> bool:
        return text in self.name()


class Polite(Named):
    def shout(self) -> str:
        return super().shout() + ", please"


@fw.remote
class Ada(Polite):
    born = 1815

    def name(self) -> str:
        return "ada"

    def shout(self) -> str:
        return super().shout() + "!"

    @fw.method
    def bare(self, n: int) -> int:
        return self.twice(n)

    @fw.method()
    def twice(self, n: int) -> int:
        return 2 * n

    @fw.method(num_returns=2)
    @staticmethod
    def above(n: int) -> tuple[int, int]:
        return n, n

    @classmethod
    @fw.method(num_returns=2)
    def below(cls) -> tuple[str, int]:
        return cls.__name__, cls.born

    @staticmethod
    async def age(year: int) -> int:
        return year - Ada.born


def test_abstract_bases_mixins_and_super(session: object) -> None:
    ada = Ada.remote()
    assert get(ada.shout.remote()) == "ADA, please!"
    assert get([ada.__len__.remote(), ada.__contains__.remote("da")]) == [3, True]
    with pytest.raises(TypeError, match="Named is an abstract class: it leaves name to its subclasses"):
        fw.remote(Named).remote()


def test_method_marks_of_all_kinds(session: object) -> None:
    ada = Ada.remote()
    assert get(ada.bare.remote(3)) == 6
    assert get(ada.above.remote(4)) == [4, 4]
    assert get(ada.below.remote()) == ["Ada", 1815]
    assert get(ada.age.remote(1852)) == 37
    assert Ada.__wrapped__().bare(1) == 2, "marks change nothing for plain objects"
    with pytest.raises(TypeError, match="use @method, or @method"):
        fw.method(lambda self: None, num_returns=2)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="use @method, or @method"):
        fw.method(5)  # type: ignore[call-overload]


def test_the_class_itself(session: object) -> None:
    """What belongs to the class can be used where it is; what belongs to actors names the way to them."""
    assert Ada.born == 1815 and Ada.below() == ("Ada", 1815)
    with pytest.raises(AttributeError, match=r"bare\(\) is a method of actors: make one, actor = Ada.remote"):
        Ada.bare.remote(1)
    with pytest.raises(AttributeError, match="no attribute 'died'"):
        Ada.died
    assert not hasattr(Ada, "_private")


def test_dataclasses(session: object) -> None:
    @fw.remote
    @dataclass
    class Point:
        x: int
        y: int = 5

        def moved(self, by: int) -> int:
            self.x += by
            return self.x + self.y

        def __eq__(self, other: object) -> bool:
            return True

    point = Point.remote(1)
    assert get(point.moved.remote(1)) == 7
    assert get(Point.remote(x=1, y=2).moved.remote(1)) == 4
    assert point != Point.remote(1), "handles compare as handles"
    with pytest.raises(TypeError, match="misses the argument 'x'"):
        Point.remote()


def test_parameters_of_generic_classes(session: object) -> None:
    @fw.remote
    class Box(fw.Actor, Generic[T]):
        def __init__(self, item: T) -> None:
            self.item = item

        @fw.method
        def open(self) -> T:
            return self.item

    assert get(Box[str].remote("x").open.remote()) == "x"
    with pytest.raises(TypeError, match="not subscriptable"):
        Ada[int]


def test_a_remote_class_that_extends_a_remote_class(session: object) -> None:
    """Ray refuses this. Here the plain classes are what is extended."""

    @fw.remote(max_restarts=5)
    class Parent:
        def __init__(self, n: int) -> None:
            self.n = n

        def value(self) -> int:
            return self.n

    @fw.remote
    class Child(Parent):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(20)

        def value(self) -> int:
            return super().value() + 1  # type: ignore[no-any-return]

    assert get(Child.remote().value.remote()) == 21
    assert not isinstance(Child.__wrapped__.__mro__[1], ActorClass)
    assert Child._options.max_restarts == 0, "options belong to one remote class"


def test_chains_of_options(session: object) -> None:
    named = Counter.options(name="chained", max_restarts=1).options(runtime_env={"env_vars": {"A": "1"}})
    counter = named.remote(1)
    assert fw.get_actor("chained") == counter
    environment = counter.__ray_call__.remote(lambda self: os.environ.get("A"))
    assert get(environment) == "1"
    other = named.options(name=None).remote(1)
    assert other != counter and get(other.inc.remote()) == 2
    assert Counter.remote() != counter, "options() leaves the class as it is"
    assert isinstance(named, ActorClass)
