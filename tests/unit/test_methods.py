"""What becomes of the members of an actor class: its methods, as handles know them."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic, TypeVar

import pytest

import framework as fw
from framework._base.signature import is_async_class
from framework._methods import MethodTable, methods_of
from framework._state.tasks import STREAMING

T = TypeVar("T")


class Base(ABC):
    @abstractmethod
    def abstract(self) -> None: ...

    def __len__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True


class Full(Base, Generic[T]):
    constant = 1

    class Inner: ...

    def __init__(self, start: int) -> None: ...
    def __getattr__(self, name: str) -> int:
        return 1

    def __framework_shutdown__(self) -> None: ...
    def __call__(self, x: int) -> int:
        return x

    @property
    def prop(self) -> int:
        return 1

    def abstract(self) -> None: ...
    def plain(self, a: int, b: int = 1) -> None: ...
    def _private(self) -> None: ...
    @staticmethod
    def static(a: int) -> None: ...
    @classmethod
    def of_class(cls, a: int) -> None: ...
    def generator(self) -> Iterator[int]:
        yield 1

    @fw.method
    def bare(self) -> None: ...
    @fw.method()
    def empty(self) -> None: ...
    @fw.method(num_returns=3, timeout=2.0)
    def three(self) -> None: ...
    @fw.method(num_returns=4)
    @classmethod
    def above(cls) -> None: ...
    @staticmethod
    @fw.method(num_returns=5)
    def below() -> None: ...


METHODS = methods_of(Full)


def test_which_members_are_methods() -> None:
    assert set(METHODS) == {
        *("abstract", "plain", "_private", "static", "of_class", "generator", "bare", "empty", "three"),
        *("above", "below", "__call__", "__len__"),
    }
    assert set(methods_of(type("Empty", (fw.Actor,), {}))) == set()


def test_numbers_of_returns_and_options() -> None:
    returns = {
        name: METHODS[name].returns for name in ("plain", "generator", "bare", "three", "above", "below")
    }
    assert returns == {"plain": 1, "generator": STREAMING, "bare": 1, "three": 3, "above": 4, "below": 5}
    assert METHODS["three"].options == {"num_returns": 3, "timeout": 2.0}
    assert METHODS["bare"].options == METHODS["empty"].options == {}


@pytest.mark.parametrize("name", ["plain", "static", "of_class", "__call__"])
def test_the_instance_or_class_is_no_argument(name: str) -> None:
    signature = METHODS[name].signature
    assert signature is not None
    signature.check(name, (1,), {})
    with pytest.raises(TypeError, match="misses the argument"):
        signature.check(name, (), {})
    with pytest.raises(TypeError, match="takes at most"):
        signature.check(name, (1, 2, 3), {})


def test_marks_leave_methods_as_they_are() -> None:
    def function(self: Any) -> int:
        return 1

    assert fw.method(function) is function
    assert fw.method(timeout=1.0)(function) is function and function(None) == 1
    with pytest.raises(TypeError, match="use @method"):
        fw.method(function, timeout=1.0)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="use @method"):
        fw.method(3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="num_return.*num_returns"):
        fw.method(num_return=1)  # type: ignore[call-overload]


def test_tables_are_unpacked_once() -> None:
    class Failure(Exception): ...

    class Local:
        @fw.method(retry_exceptions=[Failure])
        def run(self) -> None: ...

    first, second = (pickle.loads(pickle.dumps(methods_of(Full))) for _ in range(2))
    assert type(first) is MethodTable and first is second and set(first) == set(METHODS)
    assert first["three"].options == METHODS["three"].options
    again = pickle.loads(pickle.dumps(first))
    assert again is first
    local = pickle.loads(pickle.dumps(methods_of(Local)))
    assert issubclass(local["run"].options["retry_exceptions"][0], Exception), "by value"


def test_which_classes_are_async() -> None:
    async def coroutine(self: Any) -> None: ...
    async def stream(self: Any) -> AsyncIterator[int]:
        yield 1

    assert not is_async_class(Full)
    for member in (coroutine, stream, staticmethod(coroutine), classmethod(coroutine)):
        cls = type("Async", (), {"f": member})
        assert is_async_class(cls) and is_async_class(type("Derived", (cls,), {}))
