"""Tasks and actors that raise exceptions with references inside. (A module of its own: see custody.py.)"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import framework as fw
from support.custody import LIMIT, Carrier, value

WAYS = ("args", "attributes", "group", "cause", "ours", "kept in a local variable", "task error")


def new(tag: int) -> Any:
    return fw.put(value(tag, True, []))


def raise_it(way: str, ref: Any) -> None:
    """Raise an exception that has `ref` somewhere inside."""
    if way == "args":
        raise ValueError("with a reference", ref)
    if way == "attributes":
        raise Carrier(0, [ref])
    if way == "group":
        raise ExceptionGroup("both", [ValueError(1), ExceptionGroup("inner", [Carrier(0, [ref])])])
    if way == "cause":
        try:
            raise ValueError("the first", new(7))  # of this, only the text travels
        except ValueError as error:
            raise KeyError("the second", ref) from error
    if way == "ours":
        raise fw.exceptions.GetTimeoutError(ref)
    if way == "kept in a local variable":
        error = ValueError(ref)
        raise error
    assert way == "task error"
    fw.get(one.remote("args", [ref]), timeout=LIMIT)


def found_in(error: BaseException) -> Any:
    """The reference inside."""
    if isinstance(error, BaseExceptionGroup):
        return found_in(error.exceptions[-1])
    return error.refs[0] if isinstance(error, Carrier) else error.args[-1]


@fw.remote(max_retries=0)
def one(way: str, refs: list[Any]) -> None:
    raise_it(way, refs[0] if refs else new(5))


@fw.remote(max_retries=0)
async def coroutine(way: str, refs: list[Any]) -> None:
    raise_it(way, refs[0] if refs else new(5))


@fw.remote(num_returns=3, max_retries=0)
def three(way: str, refs: list[Any]) -> None:
    raise_it(way, refs[0] if refs else new(5))


@fw.remote(num_returns=0, max_retries=0)
def without_returns() -> None:
    raise Carrier(0, [new(5)])


@fw.remote(max_retries=3, retry_exceptions=True)
def better_later(path: Path) -> int:
    with path.open("a") as file:
        file.write("x")
    if path.stat().st_size < 4:
        raise Carrier(0, [new(5)])
    return path.stat().st_size


@fw.remote(max_retries=0)
def answers_a_cancel_with_it(path: Path) -> None:
    try:
        path.touch()
        time.sleep(LIMIT)
    finally:
        raise Carrier(0, [new(5)])


@fw.remote(max_retries=0)
def stream(items: int) -> Iterator[Any]:
    for number in range(items):
        yield [new(number)]
    raise Carrier(0, [new(5)])


@fw.remote(max_retries=0, num_returns="dynamic")
def dynamic(items: int) -> Iterator[Any]:
    for number in range(items):
        yield [new(number)]
    raise Carrier(0, [new(5)])


@fw.remote(max_retries=0)
def given(argument: Any) -> Any:
    return argument


@fw.remote(num_cpus=0)
class Sync:
    def __init__(self, fail: bool = False) -> None:
        self.kept: Any = None
        if fail:
            raise Carrier(0, [new(5)])

    def call(self, way: str, refs: list[Any]) -> None:
        raise_it(way, refs[0] if refs else new(5))

    def keeps_it(self) -> None:
        try:
            raise Carrier(0, [new(5)])
        except Carrier as error:
            self.kept = error
            raise

    def keep(self, refs: list[Any]) -> None:
        self.kept = refs

    def tag_inside(self) -> int:
        """Of what it keeps: the tag of the object inside of the error."""
        try:
            fw.get(self.kept[0], timeout=LIMIT)
        except Carrier as error:
            return int(fw.get(error.refs[0], timeout=LIMIT)["tag"])
        return -1

    def forget(self) -> None:
        self.kept = None


@fw.remote(num_cpus=0, max_concurrency=2)
class Threads:
    def call(self, way: str, refs: list[Any]) -> None:
        raise_it(way, refs[0] if refs else new(5))


@fw.remote(num_cpus=0)
class Async:
    async def call(self, way: str, refs: list[Any]) -> None:
        raise_it(way, refs[0] if refs else new(5))

    async def items(self) -> AsyncIterator[Any]:
        yield [new(1)]
        raise Carrier(0, [new(5)])
