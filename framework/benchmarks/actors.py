"""Actors, sync and async: 1:1, 1:n and n:n, and the cost of starting them.

All actors ask for no CPU, as in Ray's: servers, clients and the tasks that call them must run together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import framework as fw
from framework.benchmarks.floors import ECHO_BATCH, ECHO_ONE, FORK, IN_FLIGHT
from framework.benchmarks.model import BYTES, PER_SECOND, SECONDS, Measure, Row, Settings, Workload
from framework.benchmarks.processes import private_memory
from framework.benchmarks.runner import rate_measure, time_measure

_CONCURRENCY = 16
_CALLS = 5000
_CALLS_SYNC = 1000
_CALLS_WITH_ARGUMENT = 1000
_CALLERS = 4
_HUNDRED = 100

Prepare = Callable[[Settings], AbstractContextManager[Measure]]


class _Server:
    def small_value(self) -> bytes:
        return b"ok"

    def small_value_arg(self, value: object) -> bytes:
        return b"ok"


class _AsyncServer:
    async def small_value(self) -> bytes:
        return b"ok"

    async def small_value_arg(self, value: object) -> bytes:
        return b"ok"


class _Client:
    """Calls its servers from a process of its own."""

    def __init__(self, servers: list[Any]) -> None:
        self._servers = servers

    def call(self, count: int) -> None:
        fw.get([server.small_value.remote() for server in self._servers for _ in range(count)])

    def call_with_argument(self, count: int) -> None:
        value = fw.put(0)
        fw.get([server.small_value_arg.remote(value) for server in self._servers for _ in range(count)])


def _pid() -> int:
    return os.getpid()


def _call_one_by_one(servers: list[Any], count: int) -> None:
    for number in range(count):
        fw.get(servers[number % len(servers)].small_value.remote())


def _call_round_robin(servers: list[Any], count: int) -> None:
    fw.get([servers[number % len(servers)].small_value.remote() for number in range(count)])


def _fan(settings: Settings) -> int:
    """The n of the 1:n and n:n rows: half the CPUs as in Ray's, but never fewer than two."""
    return max(2, settings.cpus // 2)


def _one_sync(server: type, **options: Any) -> Prepare:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        actor: Any = fw.remote(server)
        handle = actor.options(num_cpus=0, **options).remote()
        yield rate_measure(lambda: fw.get(handle.small_value.remote()))

    return prepare


def _one_async(server: type, *, argument: bool = False, **options: Any) -> Prepare:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        actor: Any = fw.remote(server)
        handle = actor.options(num_cpus=0, **options).remote()

        def calls() -> None:
            if argument:
                fw.get([handle.small_value_arg.remote(number) for number in range(IN_FLIGHT)])
            else:
                fw.get([handle.small_value.remote() for _ in range(IN_FLIGHT)])

        yield rate_measure(calls, IN_FLIGHT)

    return prepare


def _one_to_n(server: type) -> Prepare:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        actor: Any = fw.remote(server)
        servers = [actor.options(num_cpus=0).remote() for _ in range(_fan(settings))]
        client: Any = fw.remote(_Client)
        handle = client.options(num_cpus=0).remote(servers)
        count = settings.batch(_CALLS)
        yield rate_measure(lambda: fw.get(handle.call.remote(count)), count * len(servers))

    return prepare


@contextmanager
def _one_to_n_sync(settings: Settings) -> Iterator[Measure]:
    actor: Any = fw.remote(_Server)
    servers = [actor.options(num_cpus=0).remote() for _ in range(_fan(settings))]
    yield rate_measure(lambda: _call_one_by_one(servers, len(servers)), len(servers))


def _n_to_n(server: type, call: Callable[[list[Any], int], None], calls_each: int) -> Prepare:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        actor: Any = fw.remote(server)
        servers = [actor.options(num_cpus=0).remote() for _ in range(_fan(settings))]
        caller: Any = fw.remote(call)
        count = settings.batch(calls_each)

        def calls() -> None:
            fw.get([caller.remote(servers, count) for _ in range(_CALLERS)])

        yield rate_measure(calls, count * _CALLERS)

    return prepare


def _n_to_n_with_argument(server: type) -> Prepare:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        actor: Any = fw.remote(server)
        client: Any = fw.remote(_Client)
        servers = [actor.options(num_cpus=0).remote() for _ in range(_fan(settings))]
        clients = [client.options(num_cpus=0).remote([server]) for server in servers]
        count = settings.batch(_CALLS_WITH_ARGUMENT)

        def calls() -> None:
            fw.get([each.call_with_argument.remote(count) for each in clients])

        yield rate_measure(calls, count * len(clients))

    return prepare


def _actor_start(count: int) -> Prepare:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        class Server:  # sent by value, as what a script defines: its process imports no module of ours
            def small_value(self) -> bytes:
                return b"ok"

        actor: Any = fw.remote(Server)

        def start() -> float:
            begin = time.perf_counter()
            handles = [actor.options(num_cpus=0).remote() for _ in range(count)]
            fw.get([handle.small_value.remote() for handle in handles])
            taken = time.perf_counter() - begin
            for handle in handles:
                fw.kill(handle)
            return taken

        yield time_measure(start)

    return prepare


@contextmanager
def _worker_start(settings: Settings) -> Iterator[Measure]:
    # A worker that ends after one call: every call needs a new process, which the pid proves.
    decorate: Any = fw.remote(max_calls=1)
    once = decorate(_pid)
    seen: set[int] = set()

    def start() -> float:
        begin = time.perf_counter()
        pid = fw.get(once.remote())
        taken = time.perf_counter() - begin
        if pid in seen:
            raise RuntimeError("a worker outlived max_calls=1: this row would not measure a start")
        seen.add(pid)
        return taken

    yield time_measure(start)


@contextmanager
def _many_actors(settings: Settings) -> Iterator[Measure]:
    """Starts per second, and the memory that an idle actor shares with no other process."""

    class Idle:  # sent by value: its process imports no module of ours
        def pid(self) -> int:
            return os.getpid()

    actor: Any = fw.remote(Idle)
    count = settings.batch(_HUNDRED)

    def measure(seconds: float) -> Sequence[float]:
        begin = time.perf_counter()
        handles = [actor.options(num_cpus=0).remote() for _ in range(count)]
        pids = fw.get([handle.pid.remote() for handle in handles])
        taken = time.perf_counter() - begin
        memory = sum(map(private_memory, pids)) / count
        for handle in handles:
            fw.kill(handle)
        return count / taken, memory

    yield measure


def _row(name: str, floor: str, prepare: Prepare) -> Workload:
    return Workload("actors", (Row(name, PER_SECOND, floor),), prepare)


WORKLOADS: tuple[Workload, ...] = (
    _row("1:1 actor calls sync", ECHO_ONE, _one_sync(_Server)),
    _row("1:1 actor calls async", ECHO_BATCH, _one_async(_Server)),
    _row("1:1 actor calls concurrent", ECHO_BATCH, _one_async(_Server, max_concurrency=_CONCURRENCY)),
    _row("1:n actor calls sync", ECHO_ONE, _one_to_n_sync),
    _row("1:n actor calls async", ECHO_BATCH, _one_to_n(_Server)),
    _row("n:n actor calls sync", ECHO_ONE, _n_to_n(_Server, _call_one_by_one, _CALLS_SYNC)),
    _row("n:n actor calls async", ECHO_BATCH, _n_to_n(_Server, _call_round_robin, _CALLS)),
    _row("n:n actor calls with arg async", ECHO_BATCH, _n_to_n_with_argument(_Server)),
    _row("1:1 async-actor calls sync", ECHO_ONE, _one_sync(_AsyncServer)),
    _row("1:1 async-actor calls async", ECHO_BATCH, _one_async(_AsyncServer)),
    _row("1:1 async-actor calls with args async", ECHO_BATCH, _one_async(_AsyncServer, argument=True)),
    _row("1:n async-actor calls async", ECHO_BATCH, _one_to_n(_AsyncServer)),
    _row("n:n async-actor calls async", ECHO_BATCH, _n_to_n(_AsyncServer, _call_round_robin, _CALLS)),
    Workload(
        "actors",
        (Row("actor starts", PER_SECOND), Row("private memory of an idle actor", BYTES)),
        _many_actors,
    ),
    Workload("start-up", (Row("worker start", SECONDS, FORK),), _worker_start),
    Workload("start-up", (Row("actor start, one", SECONDS, FORK),), _actor_start(1)),
    Workload("start-up", (Row("actor start, a hundred", SECONDS, FORK, _HUNDRED),), _actor_start(_HUNDRED)),
)
