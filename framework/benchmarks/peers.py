"""The core rows for other systems, each with its own best-known idiom and as many workers as CPUs.

Every module of a peer is imported inside the function that needs it: none of them is a dependency.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from framework.benchmarks import peers_ray
from framework.benchmarks.floors import (
    ECHO_BATCH,
    ECHO_ONE,
    FORK,
    IN_FLIGHT,
    INTERPRETER,
    MEMCPY,
    MEMCPY_POPULATED,
)
from framework.benchmarks.fresh import first_result
from framework.benchmarks.model import GB_PER_SECOND, PER_SECOND, SECONDS, Measure, Row, Settings, Workload
from framework.benchmarks.runner import async_rate, rate_measure

TASK = "task, one at a time"
TASKS = "tasks, in flight"
ACTOR = "actor call, one at a time"
ACTORS = "actor calls, in flight"
START_UP = "import, start, first result"
PUT = "put of 128 MiB, store in use"
PUT_COLD = "put of 128 MiB, fresh store"
BATCHES = "tasks and get, batches of 1,000"
N_TO_N = "n:n actor calls"
MULTI_CLIENT = "tasks of four clients"
ITEMS = "generator items"
WAIT = "wait on 1k refs, one by one"
CONTAINED = "get of an object with 10k refs"
ARGUMENTS = "task with 10k arguments"
RETURNS = "task with 3k returns"
ACTOR_START = "actor start, one"
ACTOR_STARTS = "actor start, a hundred"

#: Core row to the row of the product that measures the same.
PRODUCT_ROWS: dict[str, str] = {
    TASK: "single client tasks sync",
    TASKS: "single client tasks async",
    ACTOR: "1:1 actor calls sync",
    ACTORS: "1:1 actor calls async",
    START_UP: "import + init + first result",
    PUT: "put of 128 MiB, store in use",
    PUT_COLD: "put of 128 MiB, fresh store",
    BATCHES: "single client tasks and get batch",
    N_TO_N: "n:n actor calls async",
    MULTI_CLIENT: "multi client tasks async",
    ITEMS: "streaming generator items",
    WAIT: "single client wait 1k refs",
    CONTAINED: "single client get object containing 10k refs",
    ARGUMENTS: "task with 10k object arguments",
    RETURNS: "task with 3k returns",
    ACTOR_START: "actor start, one",
    ACTOR_STARTS: "actor start, a hundred",
}
#: Name of each peer to the module that it needs (None: part of the standard library).
MODULES: dict[str, str | None] = {
    "ProcessPoolExecutor": None,
    "loky": "loky",
    "Ray": "ray",
    "Dask": "distributed",
    "xoscar": "xoscar",
}

Prepare = Callable[[Settings], AbstractContextManager[Measure]]


def installed(peer: str) -> bool:
    """Whether the module of `peer` can be found. Does not import it."""
    module = MODULES[peer]
    return module is None or importlib.util.find_spec(module) is not None


def small_value() -> bytes:
    """The task of every peer."""
    return b"ok"


class Server:
    """The actor of the peers that take plain classes."""

    def small_value(self) -> bytes:
        return b"ok"


@contextmanager
def _pool_one(settings: Settings) -> Iterator[Measure]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(settings.cpus) as pool:
        yield rate_measure(lambda: pool.submit(small_value).result())


@contextmanager
def _pool_batch(settings: Settings) -> Iterator[Measure]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(settings.cpus) as pool:

        def calls() -> None:
            for future in [pool.submit(small_value) for _ in range(IN_FLIGHT)]:
                future.result()

        yield rate_measure(calls, IN_FLIGHT)


@contextmanager
def _loky_one(settings: Settings) -> Iterator[Measure]:
    from loky import get_reusable_executor

    with get_reusable_executor(max_workers=settings.cpus) as pool:
        yield rate_measure(lambda: pool.submit(small_value).result())


@contextmanager
def _loky_batch(settings: Settings) -> Iterator[Measure]:
    from loky import get_reusable_executor

    with get_reusable_executor(max_workers=settings.cpus) as pool:

        def calls() -> None:
            for future in [pool.submit(small_value) for _ in range(IN_FLIGHT)]:
                future.result()

        yield rate_measure(calls, IN_FLIGHT)


def _dask(*, actor: bool, count: int) -> Prepare:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=settings.cpus, threads_per_worker=1, dashboard_address=None)
        with cluster, Client(cluster) as client:
            if actor:
                server = client.submit(Server, actor=True).result()

                def calls() -> None:
                    for future in [server.small_value() for _ in range(count)]:
                        future.result()
            else:

                def calls() -> None:
                    client.gather([client.submit(small_value, pure=False) for _ in range(count)])

            yield rate_measure(calls, count)

    return prepare


def _xoscar(count: int) -> Prepare:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        import xoscar as xo

        class AsyncServer(xo.Actor):  # type: ignore[misc]
            async def small_value(self) -> bytes:
                return b"ok"

        with asyncio.Runner() as runner:
            pool = runner.run(xo.create_actor_pool("127.0.0.1", n_process=settings.cpus))
            try:
                # In a process of its own: the pool's main address is this process.
                address = next(iter(pool.sub_processes), pool.external_address)
                server = runner.run(xo.create_actor(AsyncServer, address=address))

                async def calls() -> None:
                    if count == 1:
                        await server.small_value()
                    else:
                        await asyncio.gather(*[server.small_value() for _ in range(count)])

                def measure(seconds: float) -> Sequence[float]:
                    return (runner.run(async_rate(calls, seconds)) * count,)

                yield measure
            finally:
                runner.run(pool.stop())

    return prepare


def _start_up(peer: str) -> Prepare:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        def measure(seconds: float) -> Sequence[float]:
            stages = first_result(peer, settings)
            return (stages["import"] + stages["init"] + stages["first result"],)

        yield measure

    return prepare


def row_name(peer: str, core: str) -> str:
    """The name of the row that holds `core` for `peer`."""
    return f"{peer}: {core}"


_UNITS = {
    START_UP: SECONDS,
    PUT: GB_PER_SECOND,
    PUT_COLD: GB_PER_SECOND,
    ACTOR_START: SECONDS,
    ACTOR_STARTS: SECONDS,
}
#: Core row to its floor, and how many operations of that are in one unit.
_FLOORS: dict[str, tuple[str, float] | None] = {
    TASK: (ECHO_ONE, 1),
    ACTOR: (ECHO_ONE, 1),
    START_UP: (INTERPRETER, 1),
    PUT: (MEMCPY, 1),
    PUT_COLD: (MEMCPY_POPULATED, 1),
    BATCHES: (ECHO_BATCH, IN_FLIGHT),
    WAIT: (ECHO_BATCH, IN_FLIGHT),
    CONTAINED: None,
    ARGUMENTS: None,
    RETURNS: None,
    ACTOR_START: (FORK, 1),
    ACTOR_STARTS: (FORK, 100),
}


def _workload(peer: str, core: str, prepare: Prepare) -> Workload:
    floor = _FLOORS.get(core, (ECHO_BATCH, 1))
    row = Row(row_name(peer, core), _UNITS.get(core, PER_SECOND), *(floor or ()))
    # A sample that takes a fresh session has nothing to warm up.
    return Workload(
        f"peer {peer}",
        (row,),
        prepare,
        product=False,
        fresh=core in (START_UP, PUT_COLD, ACTOR_STARTS),
        once=core == ACTOR_STARTS,  # most of a minute, by one of them
    )


_PREPARE: dict[str, dict[str, Prepare]] = {
    "ProcessPoolExecutor": {TASK: _pool_one, TASKS: _pool_batch},
    "loky": {TASK: _loky_one, TASKS: _loky_batch},
    "Ray": {
        TASK: peers_ray.calls(actor=False, count=1),
        TASKS: peers_ray.calls(actor=False, count=IN_FLIGHT),
        BATCHES: peers_ray.calls(actor=False, count=IN_FLIGHT, batches=True),
        MULTI_CLIENT: peers_ray.multi_client,
        ACTOR: peers_ray.calls(actor=True, count=1),
        ACTORS: peers_ray.calls(actor=True, count=IN_FLIGHT),
        N_TO_N: peers_ray.n_to_n,
        ITEMS: peers_ray.generator,
        PUT: peers_ray.put_warm,
        PUT_COLD: peers_ray.put_cold,
        WAIT: peers_ray.wait,
        CONTAINED: peers_ray.contained,
        ARGUMENTS: peers_ray.arguments,
        RETURNS: peers_ray.returns,
        ACTOR_START: peers_ray.actor_start(1),
        ACTOR_STARTS: peers_ray.actor_start(100),
    },
    "Dask": {
        TASK: _dask(actor=False, count=1),
        TASKS: _dask(actor=False, count=IN_FLIGHT),
        ACTOR: _dask(actor=True, count=1),
        ACTORS: _dask(actor=True, count=IN_FLIGHT),
    },
    "xoscar": {ACTOR: _xoscar(1), ACTORS: _xoscar(IN_FLIGHT)},
}

WORKLOADS: tuple[Workload, ...] = tuple(
    _workload(peer, core, prepare)
    for peer in MODULES
    for core, prepare in {**_PREPARE[peer], START_UP: _start_up(peer)}.items()
)
