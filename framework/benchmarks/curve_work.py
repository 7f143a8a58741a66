"""The work behind each curve: a size in, the seconds that it took out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import framework as fw
from framework.benchmarks.model import Settings
from framework.benchmarks.processes import descendants
from framework.benchmarks.stored import wait_until_free

Timed = Callable[[int], float]
Prepare = Callable[[Settings], AbstractContextManager[Timed]]

_SUBMITTED = 10_000
_OF_AN_ACTOR = 12_000_000  # bytes of memory that one more process may need
_GONE_WITHIN = 60.0


class TooLarge(Exception):
    """This machine cannot hold a point of the curve; the text says why."""


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _identity(number: int) -> int:
    return number


def _count(*arguments: object) -> int:
    return len(arguments)


def _length(array: Any) -> int:
    return len(array)


def _many(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def _container(count: int) -> list[Any]:
    return [fw.put(1) for _ in range(count)]


class _Client:
    def submit(self, count: int) -> None:
        work: Any = fw.remote(_identity)
        fw.get([work.remote(number) for number in range(count)])


@contextmanager
def tasks(settings: Settings) -> Iterator[Timed]:
    """All submitted at once, then all results."""
    work: Any = fw.remote(_identity)

    def timed(size: int) -> float:
        return _seconds(lambda: fw.get([work.remote(number) for number in range(size)]))

    timed(1000)
    yield timed


@contextmanager
def actors(settings: Settings) -> Iterator[Timed]:
    """All created at once, until each has answered; their end is waited for, but not timed."""

    class Server:  # sent by value: its process imports no module of ours
        def small_value(self) -> bytes:
            return b"ok"

    actor: Any = fw.remote(Server)

    def timed(size: int) -> float:
        if (free := available_memory()) is not None and size * _OF_AN_ACTOR > free:
            raise TooLarge(f"{size} processes may need more than the {free / 1e9:.1f} GB that are free")
        before = len(descendants(os.getpid()))
        handles: list[Any] = []

        def start() -> None:
            handles.extend(actor.options(num_cpus=0).remote() for _ in range(size))
            fw.get([handle.small_value.remote() for handle in handles])

        taken = _seconds(start)
        for handle in handles:
            fw.kill(handle)
        end = time.monotonic() + _GONE_WITHIN
        while len(descendants(os.getpid())) > before + settings.cpus and time.monotonic() < end:
            time.sleep(0.05)
        return taken

    timed(1)
    yield timed


def available_memory() -> int | None:
    """Bytes that could still be taken, where the system tells."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


@contextmanager
def values(settings: Settings) -> Iterator[Timed]:
    """An array is put, a task reads it, its result is awaited. The store's memory has been used before."""
    length: Any = fw.remote(_length)

    def timed(size: int) -> float:
        array = np.ones(size, dtype=np.uint8)
        once = _seconds(lambda: _put_and_read(length, array))
        wait_until_free()
        return once

    def warmed(size: int) -> float:
        if size >= 1_000_000:
            timed(size)
        return timed(size)

    warmed(1)
    yield warmed


def _put_and_read(length: Any, array: Any) -> None:
    if fw.get(length.remote(fw.put(array))) != len(array):
        raise RuntimeError("the array arrived shorter than it was")


@contextmanager
def submitters(settings: Settings) -> Iterator[Timed]:
    """So many processes submit 10,000 tasks each, at once: the more, the more work there is."""
    client: Any = fw.remote(_Client)
    count = settings.batch(_SUBMITTED)
    clients: list[Any] = []

    def timed(size: int) -> float:
        while len(clients) < size:
            clients.append(client.options(num_cpus=0).remote())
        fw.get([each.submit.remote(100) for each in clients[:size]])
        return _seconds(lambda: fw.get([each.submit.remote(count) for each in clients[:size]]))

    yield timed


@contextmanager
def wait(settings: Settings) -> Iterator[Timed]:
    """Tasks are submitted, and one `wait` returns when all are done."""
    work: Any = fw.remote(_identity)

    def timed(size: int) -> float:
        def run() -> None:
            refs = [work.remote(number) for number in range(size)]
            if len(fw.wait(refs, num_returns=size)[0]) != size:
                raise RuntimeError("wait returned before all was done")

        return _seconds(run)

    timed(1000)
    yield timed


@contextmanager
def contained(settings: Settings) -> Iterator[Timed]:
    """A task makes an object that holds so many references; it is got, and dropped."""
    make: Any = fw.remote(_container)

    def timed(size: int) -> float:
        def run() -> None:
            if len(fw.get(make.remote(size))) != size:
                raise RuntimeError("the container lost refs")

        return _seconds(run)

    timed(100)
    yield timed


@contextmanager
def arguments(settings: Settings) -> Iterator[Timed]:
    """One task with so many references to small objects as its arguments."""
    count: Any = fw.remote(_count)

    def timed(size: int) -> float:
        refs = [fw.put(number) for number in range(size)]

        def run() -> None:
            if fw.get(count.remote(*refs)) != size:
                raise RuntimeError("arguments were lost")

        return _seconds(run)

    timed(100)
    yield timed


@contextmanager
def returns(settings: Settings) -> Iterator[Timed]:
    """One task with so many results, all of which are got."""
    many: Any = fw.remote(_many)

    def timed(size: int) -> float:
        def run() -> None:
            if len(fw.get(many.options(num_returns=size).remote(size))) != size:
                raise RuntimeError("returns were lost")

        return _seconds(run)

    timed(100)
    yield timed
