"""Objects: get, put, wait, containers of refs. Names and sizes as in Ray's microbenchmark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import framework as fw
from framework.benchmarks.floors import ECHO_BATCH, MEMCPY
from framework.benchmarks.model import GB_PER_SECOND, PER_SECOND, Measure, Row, Settings, Workload
from framework.benchmarks.runner import rate_measure

_ARRAY_ITEMS = 100 * 1024 * 1024  # of 8 bytes: 0.8 GB
_CLIENT_ARRAY_ITEMS = 10 * 1024 * 1024
_CLIENTS = 10
_CLIENT_PUTS = 100
_CLIENT_ARRAYS = 10
_CONTAINED = 10_000
_WAITED = 1000


def _small_value() -> bytes:
    return b"ok"


def _put_small(count: int) -> None:
    for _ in range(count):
        fw.put(0)


def _put_large(count: int, items: int) -> None:
    for _ in range(count):
        fw.put(np.zeros(items, dtype=np.int64))


def _container(count: int) -> list[Any]:
    return [fw.put(1) for _ in range(count)]


@contextmanager
def _get_calls(settings: Settings) -> Iterator[Measure]:
    ref: Any = fw.put(0)
    yield rate_measure(lambda: fw.get(ref))


@contextmanager
def _put_calls(settings: Settings) -> Iterator[Measure]:
    yield rate_measure(lambda: fw.put(0))


@contextmanager
def _multi_put_calls(settings: Settings) -> Iterator[Measure]:
    client: Any = fw.remote(_put_small)
    puts = settings.batch(_CLIENT_PUTS)
    yield rate_measure(lambda: fw.get([client.remote(puts) for _ in range(_CLIENTS)]), _CLIENTS * puts)


@contextmanager
def _put_gigabytes(settings: Settings) -> Iterator[Measure]:
    array = np.zeros(settings.batch(_ARRAY_ITEMS), dtype=np.int64)
    array[:] = 1  # pages that were never written all read from the one zero page, which flatters the copy
    yield rate_measure(lambda: fw.put(array), array.nbytes / 1e9)


@contextmanager
def _multi_put_gigabytes(settings: Settings) -> Iterator[Measure]:
    client: Any = fw.remote(_put_large)
    items = settings.batch(_CLIENT_ARRAY_ITEMS)

    def puts() -> None:
        fw.get([client.remote(_CLIENT_ARRAYS, items) for _ in range(_CLIENTS)])

    yield rate_measure(puts, _CLIENTS * _CLIENT_ARRAYS * items * 8 / 1e9)


@contextmanager
def _get_containing(settings: Settings) -> Iterator[Measure]:
    make: Any = fw.remote(_container)
    ref = make.remote(_CONTAINED)
    if len(fw.get(ref)) != _CONTAINED:
        raise RuntimeError("the container lost refs")
    yield rate_measure(lambda: fw.get(ref))


@contextmanager
def _wait_refs(settings: Settings) -> Iterator[Measure]:
    small: Any = fw.remote(_small_value)

    def wait_for_all() -> None:
        pending = [small.remote() for _ in range(_WAITED)]
        fetch = True  # asking once is enough, as in Ray's
        while pending:
            _, pending = fw.wait(pending, fetch_local=fetch)
            fetch = False

    yield rate_measure(wait_for_all)


WORKLOADS: tuple[Workload, ...] = (
    Workload("objects", (Row("single client get calls", PER_SECOND),), _get_calls),
    Workload("objects", (Row("single client put calls", PER_SECOND),), _put_calls),
    Workload("objects", (Row("multi client put calls", PER_SECOND),), _multi_put_calls),
    Workload("objects", (Row("single client put gigabytes", GB_PER_SECOND, MEMCPY),), _put_gigabytes),
    Workload("objects", (Row("multi client put gigabytes", GB_PER_SECOND, MEMCPY),), _multi_put_gigabytes),
    Workload("objects", (Row("single client get object containing 10k refs", PER_SECOND),), _get_containing),
    Workload("objects", (Row("single client wait 1k refs", PER_SECOND, ECHO_BATCH, _WAITED),), _wait_refs),
)
