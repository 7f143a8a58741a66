"""Actors that the tests of actors share."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import framework as fw
from support.leaks import wait_until

LIMIT = 20  #: seconds after which a result is missing


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


@fw.remote
class Counter:
    """A counter."""

    kind = "plain"

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def inc(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def die(self, code: int = 3) -> None:
        os._exit(code)

    def fail(self, text: str) -> None:
        raise KeyError(text)


@fw.remote
class Recorder:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, item: Any) -> None:
        self.seen.append(item)

    def all(self) -> list[Any]:
        return self.seen


@fw.remote
def later(value: Any, gate: Any = None) -> Any:
    if gate is not None:
        fw.get(gate.wait.remote())
    return value


@fw.remote
class Gate:
    """Holds others up until it is opened."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.waiting = 0

    async def wait(self) -> bool:
        self.waiting += 1
        await self.event.wait()
        return True

    async def open(self) -> None:
        self.event.set()

    async def count(self) -> int:
        return self.waiting


def wait_for_waiters(gate: Any, count: int) -> None:
    wait_until(lambda: get(gate.count.remote()) >= count, what=f"{count} waiters")
