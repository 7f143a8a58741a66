"""The object store: arrays put warm and cold, made in place, got first and again; many objects."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

import framework as fw
from framework.benchmarks.floors import MEMCPY, MEMCPY_POPULATED
from framework.benchmarks.model import GB_PER_SECOND, PER_SECOND, SECONDS, Measure, Row, Settings, Workload
from framework.benchmarks.runner import rate_measure, time_measure
from framework.util.state import store_stats

_ARRAY_BYTES = 128 * 1024 * 1024  # as the memcpy floors
_COLD_ARRAYS = 6
_STORE_BYTES = 4 * 1024**3  # sparse: memory is taken as it is written
_GIGABYTE = 1024**3
_MEGABYTE = 1024**2
_MANY = 10_000
_MANY_BYTES = 101 * 1024  # just too large for a message
_FREED_WITHIN = 10.0


def _array(nbytes: int) -> Any:
    return np.ones(nbytes // 8, dtype=np.float64)


def wait_until_free() -> None:
    """Until all objects are gone from the store, so that the next one finds their memory."""
    end = time.monotonic() + _FREED_WITHIN
    while store_stats()["objects"]:
        if time.monotonic() > end:
            raise RuntimeError("objects that nobody refers to are still in the store")
        time.sleep(0.001)


@contextmanager
def _put_warm(settings: Settings) -> Iterator[Measure]:
    array = _array(_ARRAY_BYTES)
    # Drops take a moment: several blocks take turns, and all of them have to be warm.
    refs = [fw.put(array) for _ in range(_COLD_ARRAYS)]
    del refs
    wait_until_free()
    yield rate_measure(lambda: fw.put(array), array.nbytes / 1e9)


@contextmanager
def _put_cold(settings: Settings) -> Iterator[Measure]:
    array = _array(_ARRAY_BYTES)

    def measure(seconds: float) -> Sequence[float]:
        # Memory is cold only once in a session, so every sample has one of its own.
        with fw.init(num_cpus=settings.cpus, object_store_memory=_STORE_BYTES, log_to_driver=False):
            opened = fw.put(_array(_MEGABYTE))  # the first put maps the arena
            begin = time.perf_counter()
            refs = [fw.put(array) for _ in range(_COLD_ARRAYS)]
            taken = time.perf_counter() - begin
            del refs, opened
        return (_COLD_ARRAYS * array.nbytes / taken / 1e9,)

    yield measure


def _in_place(nbytes: int) -> Callable[[Settings], AbstractContextManager[Measure]]:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        def timed() -> float:
            begin = time.perf_counter()
            array = fw.empty(nbytes // 8)
            ref = fw.put(array)
            taken = time.perf_counter() - begin
            del array, ref
            wait_until_free()
            return taken

        timed()  # provides the memory
        yield time_measure(timed)

    return prepare


@contextmanager
def _get_first(settings: Settings) -> Iterator[Measure]:
    fw.put(fw.empty(_GIGABYTE // 8))
    wait_until_free()

    def timed() -> float:
        ref = fw.put(fw.empty(_GIGABYTE // 8))
        begin = time.perf_counter()
        array = fw.get(ref)
        taken = time.perf_counter() - begin
        if array.flags.owndata or array.nbytes != _GIGABYTE:
            raise RuntimeError("the array was copied")
        del array, ref
        wait_until_free()
        return taken

    yield time_measure(timed)


@contextmanager
def _get_again(settings: Settings) -> Iterator[Measure]:
    ref: Any = fw.put(fw.empty(_GIGABYTE // 8))
    yield rate_measure(lambda: fw.get(ref))


def _many() -> list[Any]:
    array = np.ones(_MANY_BYTES, dtype=np.uint8)
    return [fw.put(array) for _ in range(_MANY)]


@contextmanager
def _get_many(settings: Settings) -> Iterator[Measure]:
    refs = _many()

    def get() -> None:
        if len(fw.get(refs)) != _MANY:
            raise RuntimeError("objects were lost")

    yield rate_measure(get)


def _count(*arguments: Any) -> int:
    return len(arguments)


@contextmanager
def _many_arguments(settings: Settings) -> Iterator[Measure]:
    refs = _many()
    count: Any = fw.remote(_count)

    def call() -> None:
        if fw.get(count.remote(*refs)) != _MANY:
            raise RuntimeError("arguments were lost")

    yield rate_measure(call)


WORKLOADS: tuple[Workload, ...] = (
    Workload("store", (Row("put of 128 MiB, store in use", GB_PER_SECOND, MEMCPY),), _put_warm),
    Workload(
        "store",
        (Row("put of 128 MiB, fresh store", GB_PER_SECOND, MEMCPY_POPULATED),),
        _put_cold,
        product=False,
    ),
    Workload("store", (Row("empty + put of 1 MiB", SECONDS),), _in_place(_MEGABYTE)),
    Workload("store", (Row("empty + put of 1 GiB", SECONDS),), _in_place(_GIGABYTE)),
    Workload("store", (Row("get of 1 GiB, first", SECONDS),), _get_first),
    Workload("store", (Row("get of 1 GiB, again", PER_SECOND),), _get_again),
    Workload("store", (Row("get of 10k stored objects", PER_SECOND),), _get_many),
    Workload("store", (Row("task with 10k stored arguments", PER_SECOND),), _many_arguments),
)
