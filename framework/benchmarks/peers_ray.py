"""Ray's rows, by its own names and idioms. Ray is imported inside the functions that need it.

What is sent to its workers is defined inside functions, so that it goes by value: by name, each of Ray's
processes would have to import this package. Sizes of batches that only set how many calls one sample holds
are smaller than in the product's rows (the figures are rates per call all the same).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from framework.benchmarks.model import Measure, Settings
from framework.benchmarks.runner import rate_measure, time_measure

Prepare = Callable[[Settings], AbstractContextManager[Measure]]
Operation = Callable[[], object]

_STORE_BYTES = 2 * 1024**3
_ARRAY_ITEMS = 16 * 1024**2  # of 8 bytes: 128 MiB
_COLD_ARRAYS = 6
_CALLERS = 4
_CALLS = 500
_CLIENTS = 4
_CLIENT_TASKS = 1000
_STREAMED = 1000
_WAITED = 1000
_CONTAINED = 10_000
_ARGUMENTS = 10_000
_RETURNS = 3000
_ACTORS_LIMIT = 240.0  # seconds that Ray gets for the actors of one sample to start


@contextmanager
def session(settings: Settings) -> Iterator[Any]:
    """Ray, started with as many CPUs as the product gets and enough store for what is put; then ended."""
    import ray

    ray.init(
        num_cpus=settings.cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=_STORE_BYTES,
    )
    try:
        yield ray
    finally:
        ray.shutdown()


def _rate(operation: Callable[[Any, Settings], Operation], per_call: Callable[[Settings], float]) -> Prepare:
    """A rate: `operation` sets up and returns one call, which makes `per_call` units."""

    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        with session(settings) as ray:
            yield rate_measure(operation(ray, settings), per_call(settings))

    return prepare


def _one(settings: Settings) -> float:
    return 1.0


def _fan(settings: Settings) -> int:
    return max(2, settings.cpus // 2)


def calls(*, actor: bool, count: int, batches: bool = False) -> Prepare:
    """`count` tasks or actor calls at a time, per second; with `batches`, batches per second."""

    def operation(ray: Any, settings: Settings) -> Operation:
        class Server:
            def small_value(self) -> bytes:
                return b"ok"

        def small_value() -> bytes:
            return b"ok"

        remote = ray.remote(Server).remote().small_value if actor else ray.remote(small_value)
        if count == 1:
            return lambda: ray.get(remote.remote())
        return lambda: ray.get([remote.remote() for _ in range(count)])

    return _rate(operation, lambda settings: 1.0 if batches else float(count))


def _n_to_n(ray: Any, settings: Settings) -> Operation:
    class Server:
        def small_value(self) -> bytes:
            return b"ok"

    def call_round_robin(servers: list[Any], count: int) -> None:
        import ray

        ray.get([servers[number % len(servers)].small_value.remote() for number in range(count)])

    servers = [ray.remote(Server).options(num_cpus=0).remote() for _ in range(_fan(settings))]
    caller = ray.remote(call_round_robin)
    count = settings.batch(_CALLS)
    return lambda: ray.get([caller.remote(servers, count) for _ in range(_CALLERS)])


def _multi_client(ray: Any, settings: Settings) -> Operation:
    def small_value() -> bytes:
        return b"ok"

    class Client:
        def __init__(self) -> None:
            import ray

            self._small: Any = ray.remote(small_value)

        def submit(self, count: int) -> None:
            import ray

            ray.get([self._small.remote() for _ in range(count)])

    clients = [ray.remote(Client).options(num_cpus=0).remote() for _ in range(_CLIENTS)]
    count = settings.batch(_CLIENT_TASKS)
    return lambda: ray.get([client.submit.remote(count) for client in clients])


def _generator(ray: Any, settings: Settings) -> Operation:
    def stream(count: int) -> Iterator[int]:
        for item in range(count):  # noqa: UP028 - as in the product's row
            yield item

    remote = ray.remote(stream)

    def drain() -> None:
        seen = 0
        for ref in remote.options(num_returns="streaming").remote(_STREAMED):
            ray.get(ref)
            seen += 1
        if seen != _STREAMED:
            raise RuntimeError(f"{seen} of {_STREAMED} items arrived")

    return drain


def _wait(ray: Any, settings: Settings) -> Operation:
    def small_value() -> bytes:
        return b"ok"

    small = ray.remote(small_value)

    def wait_for_all() -> None:
        pending = [small.remote() for _ in range(_WAITED)]
        fetch = True
        while pending:
            _, pending = ray.wait(pending, fetch_local=fetch)
            fetch = False

    return wait_for_all


def _contained(ray: Any, settings: Settings) -> Operation:
    def container(count: int) -> list[Any]:
        import ray

        return [ray.put(1) for _ in range(count)]

    ref = ray.remote(container).remote(_CONTAINED)
    if len(ray.get(ref)) != _CONTAINED:
        raise RuntimeError("the container lost refs")
    return lambda: ray.get(ref)


def _arguments(ray: Any, settings: Settings) -> Operation:
    def count_arguments(*arguments: int) -> int:
        return len(arguments)

    count = ray.remote(count_arguments)
    refs = [ray.put(number) for number in range(_ARGUMENTS)]

    def call() -> None:
        if ray.get(count.remote(*refs)) != _ARGUMENTS:
            raise RuntimeError("arguments were lost")

    return call


def _returns(ray: Any, settings: Settings) -> Operation:
    def many(count: int) -> tuple[int, ...]:
        return tuple(range(count))

    remote = ray.remote(many)

    def call() -> None:
        if ray.get(remote.options(num_returns=_RETURNS).remote(_RETURNS)) != list(range(_RETURNS)):
            raise RuntimeError("returns were lost")

    return call


@contextmanager
def put_warm(settings: Settings) -> Iterator[Measure]:
    """Gigabytes per second into memory that the store has used before, as in the product's row."""
    import numpy as np

    with session(settings) as ray:
        array = np.ones(_ARRAY_ITEMS)
        refs = [ray.put(array) for _ in range(12)]
        del refs
        yield rate_measure(lambda: ray.put(array), array.nbytes / 1e9)


@contextmanager
def put_cold(settings: Settings) -> Iterator[Measure]:
    """Gigabytes per second into a store that is new with each sample; no memory is used twice."""
    import numpy as np

    array = np.ones(_ARRAY_ITEMS)

    def measure(seconds: float) -> Sequence[float]:
        with session(settings) as ray:
            opened = ray.put(np.ones(1024))
            begin = time.perf_counter()
            refs = [ray.put(array) for _ in range(_COLD_ARRAYS)]
            taken = time.perf_counter() - begin
            del refs, opened
        return (_COLD_ARRAYS * array.nbytes / taken / 1e9,)

    yield measure


def actor_start(count: int) -> Prepare:
    """Seconds from the creation of `count` actors until all have answered; killing them is not timed."""

    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        class Server:
            def small_value(self) -> bytes:
                return b"ok"

        with session(settings) as ray:
            actor = ray.remote(Server)

            def start() -> float:
                begin = time.perf_counter()
                handles = [actor.options(num_cpus=0).remote() for _ in range(count)]
                ray.get([handle.small_value.remote() for handle in handles], timeout=_ACTORS_LIMIT)
                taken = time.perf_counter() - begin
                for handle in handles:
                    ray.kill(handle)
                return taken

            yield time_measure(start)

    return prepare


n_to_n = _rate(_n_to_n, lambda settings: float(_CALLERS * settings.batch(_CALLS)))
multi_client = _rate(_multi_client, lambda settings: float(_CLIENTS * settings.batch(_CLIENT_TASKS)))
generator = _rate(_generator, lambda settings: float(_STREAMED))
wait = _rate(_wait, _one)
contained = _rate(_contained, _one)
arguments = _rate(_arguments, _one)
returns = _rate(_returns, _one)
