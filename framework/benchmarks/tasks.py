"""Tasks: one at a time, in flight, awaited, streamed, mapped; and the wide ones."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import framework as fw
from framework.benchmarks.echo_server import loop_factory
from framework.benchmarks.floors import ECHO_BATCH, ECHO_ONE, IN_FLIGHT, SPIN, spin
from framework.benchmarks.model import PER_SECOND, Measure, Row, Settings, Workload
from framework.benchmarks.runner import async_rate, rate_measure

_CLIENTS = 4
_CLIENT_TASKS = 10_000
_STREAMED = 1000
_MAPPED = 10_000
_ARGUMENTS = 10_000
_RETURNS = 3000


def _small_value() -> bytes:
    return b"ok"


def _spin_item(item: int) -> int:
    spin()
    return item


def _count_arguments(*arguments: int) -> int:
    return len(arguments)


def _many(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def _stream(count: int) -> Iterator[int]:
    for item in range(count):  # noqa: UP028 - the plain form, which every system's generators take
        yield item


class _TaskClient:
    """A client of the multi client row: submits its tasks from a worker."""

    def __init__(self) -> None:
        self._small: Any = fw.remote(_small_value)

    def submit(self, count: int) -> int:
        fw.get([self._small.remote() for _ in range(count)])
        return count


@contextmanager
def _sync(settings: Settings) -> Iterator[Measure]:
    small: Any = fw.remote(_small_value)
    yield rate_measure(lambda: fw.get(small.remote()))


@contextmanager
def _async(settings: Settings) -> Iterator[Measure]:
    small: Any = fw.remote(_small_value)
    yield rate_measure(lambda: fw.get([small.remote() for _ in range(IN_FLIGHT)]), IN_FLIGHT)


@contextmanager
def _batch(settings: Settings) -> Iterator[Measure]:
    small: Any = fw.remote(_small_value)
    yield rate_measure(lambda: fw.get([small.remote() for _ in range(IN_FLIGHT)]))


@contextmanager
def _multi_client(settings: Settings) -> Iterator[Measure]:
    client: Any = fw.remote(_TaskClient)
    clients = [client.options(num_cpus=0).remote() for _ in range(_CLIENTS)]
    count = settings.batch(_CLIENT_TASKS)
    yield rate_measure(lambda: fw.get([each.submit.remote(count) for each in clients]), count * _CLIENTS)


@contextmanager
def _multi_client_on_one_cpu(settings: Settings) -> Iterator[Measure]:
    """All processes on one CPU: what the row above is compared with to see whether it scales."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        with (
            fw.init(num_cpus=settings.cpus, log_to_driver=False),
            _multi_client(settings) as measure,
        ):
            yield measure
    finally:
        os.sched_setaffinity(0, usable)


def _await_one(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> Callable[[Settings], AbstractContextManager[Measure]]:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        small: Any = fw.remote(_small_value)

        async def call() -> None:
            await small.remote()

        with asyncio.Runner(loop_factory=new_loop) as runner:

            def measure(seconds: float) -> Sequence[float]:
                return (runner.run(async_rate(call, seconds)),)

            yield measure

    return prepare


@contextmanager
def _await_gather(settings: Settings) -> Iterator[Measure]:
    small: Any = fw.remote(_small_value)

    async def calls() -> None:
        await asyncio.gather(*[small.remote() for _ in range(IN_FLIGHT)])

    def measure(seconds: float) -> Sequence[float]:
        return (asyncio.run(async_rate(calls, seconds)) * IN_FLIGHT,)

    yield measure


@contextmanager
def _generator(settings: Settings) -> Iterator[Measure]:
    stream: Any = fw.remote(_stream)

    def drain() -> None:
        seen = 0
        for ref in stream.options(num_returns="streaming").remote(_STREAMED):
            fw.get(ref)
            seen += 1
        if seen != _STREAMED:
            raise RuntimeError(f"{seen} of {_STREAMED} items arrived")

    yield rate_measure(drain, _STREAMED)


@contextmanager
def _map(settings: Settings) -> Iterator[Measure]:
    work: Any = fw.remote(_spin_item)
    count = settings.batch(_MAPPED)

    def run() -> None:
        if fw.get([work.remote(item) for item in range(count)]) != list(range(count)):
            raise RuntimeError("the map returned other items than it was given")

    yield rate_measure(run, count)


@contextmanager
def _arguments(settings: Settings) -> Iterator[Measure]:
    count: Any = fw.remote(_count_arguments)
    refs = [fw.put(number) for number in range(_ARGUMENTS)]

    def call() -> None:
        if fw.get(count.remote(*refs)) != _ARGUMENTS:
            raise RuntimeError("arguments were lost")

    yield rate_measure(call)


@contextmanager
def _returns(settings: Settings) -> Iterator[Measure]:
    many: Any = fw.remote(_many)

    def call() -> None:
        if fw.get(many.options(num_returns=_RETURNS).remote(_RETURNS)) != list(range(_RETURNS)):
            raise RuntimeError("returns were lost")

    yield rate_measure(call)


WORKLOADS: tuple[Workload, ...] = (
    Workload("tasks", (Row("single client tasks sync", PER_SECOND, ECHO_ONE),), _sync),
    Workload("tasks", (Row("single client tasks async", PER_SECOND, ECHO_BATCH),), _async),
    Workload("tasks", (Row("single client tasks and get batch", PER_SECOND, ECHO_BATCH, IN_FLIGHT),), _batch),
    Workload("tasks", (Row("multi client tasks async", PER_SECOND, ECHO_BATCH),), _multi_client),
    Workload(
        "tasks",
        (Row("multi client tasks async, one CPU", PER_SECOND),),
        _multi_client_on_one_cpu,
        product=False,
    ),
    Workload(
        "tasks",
        (Row("await one at a time", PER_SECOND, ECHO_ONE),),
        _await_one(asyncio.new_event_loop),
    ),
    Workload(
        "tasks",
        (Row("await one at a time, uvloop", PER_SECOND, ECHO_ONE),),
        _await_one(loop_factory()),
    ),
    Workload("tasks", (Row("await gather of 1k", PER_SECOND, ECHO_BATCH),), _await_gather),
    Workload("tasks", (Row("streaming generator items", PER_SECOND, ECHO_BATCH),), _generator),
    Workload("tasks", (Row("map over items of 1 ms", PER_SECOND, SPIN),), _map),
    Workload("tasks", (Row("task with 10k object arguments", PER_SECOND),), _arguments),
    Workload("tasks", (Row("task with 3k returns", PER_SECOND),), _returns),
)
